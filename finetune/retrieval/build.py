"""`spanbert index`: files and folders made into an index on disk, and an index brought up to date.

What is unchanged since the last time, by the hash of a file's content or of a document's, keeps its text and postings; the
rest is read. Postings are collected in segments of bounded size and joined at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm
from tyro.conf import Positional

from finetune.retrieval.documents import Document, Skipped, Source, Sources
from finetune.retrieval.merge_postings import FILES, Part, merge_postings, open_postings, save_postings
from finetune.retrieval.opensearch import is_url
from finetune.retrieval.passages import document_passages
from finetune.retrieval.postings import PostingsBuilder
from finetune.retrieval.previous_index import PreviousIndex
from finetune.retrieval.store import (
    MANIFEST,
    SETTINGS,
    StoredDocument,
    save_table,
)
from finetune.retrieval.table import PassageTable
from finetune.retrieval.upload_opensearch import upload_index
from spanbert.errors import UserError
from spanbert.files import report_full_disk, sync_file, sync_folder, write_atomic
from spanbert.integrity import describe_files
from spanbert.locks import try_lock

SEGMENT_POSTINGS = 4 * 2**20  # 8 bytes each while they are collected
SHOWN_SKIPPED = 20
SKIPPED = "skipped.txt"
GENERATION = re.compile("data-[0-9a-f]+")
GENERATION_FILES = {"texts.bin", "documents.jsonl", "sources.jsonl", "lines.npy"} | {
    f"{name}.npy" for name in (*FILES, *(one.name for one in fields(PassageTable)))
}


@dataclass(frozen=True)
class IndexConfig:
    """Make an index of documents to answer from, or bring one up to date: text, Markdown, HTML, PDF, Word, JSON lines."""

    paths: Positional[tuple[Path, ...]]
    """Files and folders. The index then holds what is there now: new and changed documents are read, others deleted."""
    output: str
    """The index's folder, for `ask --index`; or http(s)://HOST:9200/NAME, a new index of OpenSearch."""


@dataclass
class Changes:
    """What an update found, in documents."""

    new: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    passages: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def documents(self) -> int:
        return self.new + self.changed + self.unchanged

    def __str__(self) -> str:
        counts = [
            (self.new, "new"),
            (self.changed, "changed"),
            (self.deleted, "deleted"),
            (self.unchanged, "unchanged"),
        ]
        parts = ", ".join(f"{count:,} {word}" for count, word in counts if count)
        skipped = f"; skipped {len(self.skipped):,}" if self.skipped else ""
        return f"{self.documents:,} documents in {self.passages:,} passages ({parts}){skipped}"


def run_index(config: IndexConfig) -> None:
    """Write the index and say in a line what changed."""
    if not config.paths:
        raise UserError("say what to index: spanbert index PATHS --output INDEX")
    begin = time.perf_counter()
    if is_url(config.output):
        uploaded = upload_index(config.paths, config.output)
        for one in uploaded.skipped:
            print(f"skipped {one}", file=sys.stderr)
        _show_end(uploaded.address, str(uploaded), begin)
        return
    folder = Path(config.output)
    changes = update_index(config.paths, folder)
    for one in changes.skipped[:SHOWN_SKIPPED]:
        print(f"skipped {one}", file=sys.stderr)
    listing = folder / SKIPPED
    if len(changes.skipped) > SHOWN_SKIPPED:
        write_atomic(listing, "".join(f"{one}\n" for one in changes.skipped))
        print(f"… and {len(changes.skipped) - SHOWN_SKIPPED:,} more: {listing}", file=sys.stderr)
    else:
        listing.unlink(missing_ok=True)
    _show_end(str(folder), str(changes), begin)


def _show_end(index: str, done: str, begin: float) -> None:
    print(f"{index}: {done}, in {time.perf_counter() - begin:.1f} s")
    print(f'next: spanbert ask --index {shlex.quote(index)} "your question"')


def update_index(paths: Iterable[Path | str], folder: Path | str) -> Changes:
    """Make the index in ``folder`` hold the documents under ``paths``.

    Raises UserError for a path that does not exist, where no document can be read, where another process writes the same
    index, for a folder that holds something else, and when the disk is full; the old index then stands.
    """
    folder = Path(folder)
    sources = Sources.under(paths, without=folder)
    if folder.is_dir() and not all(map(_may_be_in_index, folder.iterdir())):
        raise UserError(f"{folder}: holds other files than an index; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = try_lock(folder / ".lock")
    if lock is None:
        raise UserError(f"{folder}: another process is writing this index.")
    with lock, report_full_disk(folder):
        old = PreviousIndex.open(folder)
        if old.generation is not None and old.holds(sources):
            generation = old.generation
            changes = Changes(unchanged=len(old.records), passages=old.passages, skipped=list(sources.skipped))
        else:
            generation, changes = _write_generation(sources, folder, old)
        for other in folder.iterdir():
            if other != generation and _is_generation(other):
                shutil.rmtree(other, ignore_errors=True)
    return changes


def _write_generation(sources: Sources, folder: Path, old: PreviousIndex) -> tuple[Path, Changes]:
    """A new generation, which index.json names once it is whole. Raises UserError where no document can be read."""
    generation = folder / f"data-{time.time_ns():x}"
    generation.mkdir()
    try:
        changes = _Writer(generation, old).write(sources)
        if not changes.documents:
            listed = "".join(f"\n  {one}" for one in changes.skipped[:SHOWN_SKIPPED])
            raise UserError(f"no document could be read.{listed}")
        for file in generation.iterdir():
            sync_file(file)
        sync_folder(generation)
        manifest = {
            "generation": generation.name,
            "settings": SETTINGS,
            "files": describe_files(generation, generation.iterdir()),
            "documents": changes.documents,
            "passages": changes.passages,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    except BaseException:
        shutil.rmtree(generation, ignore_errors=True)
        raise
    return generation, changes


def _is_generation(path: Path) -> bool:
    """By its name, and by holding nothing but what a generation, whole or half written, does."""
    return (
        GENERATION.fullmatch(path.name) is not None
        and path.is_dir()
        and all(map(_may_be_in_generation, path.iterdir()))
    )


def _may_be_in_generation(path: Path) -> bool:
    return path.name in GENERATION_FILES or path.name.startswith("segment-")


def _may_be_in_index(path: Path) -> bool:
    return path.name in (MANIFEST, SKIPPED) or path.name.startswith(".") or _is_generation(path)


class _Writer:
    """One new generation, written document by document."""

    def __init__(self, folder: Path, old: PreviousIndex) -> None:
        self.folder, self.old = folder, old
        self.changes = Changes()
        self.parts = list(old.parts)
        self.tables: list[PassageTable] = []  # of each document
        self.line_starts = [0]
        self.text_end = 0
        self.taken: set[str] = set()  # ids
        self.segments: list[Path] = []
        self._start_segment()

    def write(self, sources: Sources) -> Changes:
        changes = self.changes
        changes.skipped += sources.skipped
        with (
            (self.folder / "texts.bin").open("wb") as texts,
            (self.folder / "documents.jsonl").open("wb") as records,
            (self.folder / "sources.jsonl").open("w", encoding="utf-8") as hashes,
            tqdm(unit=" documents", desc="indexing", mininterval=0.5, disable=None) as bar,
        ):
            for source in sources.files:
                for _ in self._source(source, texts, records, hashes):
                    bar.update()
        self._close_segment()
        changes.deleted = len(self.old.records.keys() - self.taken)
        save_table(self.folder, PassageTable.joined(self.tables))
        np.save(self.folder / "lines.npy", np.array(self.line_starts, dtype=np.int64))
        if changes.documents:
            merge_postings(self.parts, self.folder)
        for segment in self.segments:
            shutil.rmtree(segment)
        return changes

    def _source(self, source: Source, texts: IO[bytes], records: IO[bytes], hashes: IO[str]) -> Iterator[None]:
        """Write the documents of a file; one that was read before and is the same is not read again."""
        before = len(self.changes.skipped)
        try:
            sha256 = source.sha256()
        except OSError as error:
            self.changes.skipped.append(Skipped(str(source.path), f"cannot be read ({error.strerror or error})"))
            return
        if self.old.hashes.get(source.id) == sha256:
            for name in self.old.by_source.get(source.id, []):
                if self._is_new_id(name):
                    self._keep(name, source.id, texts, records)
                    yield
        else:
            for document in source.documents(self.changes.skipped):
                if self._is_new_id(document.id):
                    self._take(document, source.id, texts, records)
                    yield
        if len(self.changes.skipped) == before:
            hashes.write(json.dumps([source.id, sha256]) + "\n")

    def _is_new_id(self, name: str) -> bool:
        if name in self.taken:
            self.changes.skipped.append(Skipped(name, "a second document of this id"))
            return False
        self.taken.add(name)
        return True

    def _take(self, document: Document, source: str, texts: IO[bytes], records: IO[bytes]) -> None:
        sections = [(one.start, one.label) for one in document.sections]
        content = json.dumps([document.title, document.text, sections]).encode()
        sha256 = hashlib.sha256(content).hexdigest()
        if document.id in self.old.records:
            if self.old.records[document.id][1].sha256 == sha256:
                self._keep(document.id, source, texts, records)
                return
            self.changes.changed += 1
        else:
            self.changes.new += 1
        passages = document_passages(document.title, document.text)
        table = PassageTable.of(len(self.tables), self.segment.adding(passages))
        first = self.changes.passages
        self.segment_numbers.append(np.arange(first, first + len(table), dtype=np.int32))
        self._record(
            table,
            StoredDocument(document.id, document.title, source, sha256, 0, 0, len(table), sections),
            document.text.encode(),
            texts,
            records,
        )
        if len(self.segment) >= SEGMENT_POSTINGS:
            self._close_segment()

    def _keep(self, name: str, source: str, texts: IO[bytes], records: IO[bytes]) -> None:
        old = self.old
        assert old.documents is not None and old.table is not None
        number, record = old.records[name]
        first, stop = int(old.first_D[number]), int(old.first_D[number + 1])
        new = self.changes.passages
        old.parts[0].numbers_N[first:stop] = np.arange(new, new + stop - first)
        self.changes.unchanged += 1
        table = old.table.rows(first, stop, len(self.tables))
        self._record(table, replace(record, source=source), old.documents.text_bytes(record), texts, records)

    def _record(
        self, table: PassageTable, record: StoredDocument, text: bytes, texts: IO[bytes], records: IO[bytes]
    ) -> None:
        texts.write(text)
        record = replace(record, begin=self.text_end, end=self.text_end + len(text))
        line = json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n"
        records.write(line)
        self.text_end += len(text)
        self.line_starts.append(self.line_starts[-1] + len(line))
        self.tables.append(table)
        self.changes.passages += len(table)

    def _start_segment(self) -> None:
        self.segment = PostingsBuilder()
        self.segment_numbers: list[np.ndarray] = []  # what the segment's passages are called in the whole

    def _close_segment(self) -> None:
        """Write the segment aside, to be joined with the others at the end."""
        if not len(self.segment):
            return
        folder = self.folder / f"segment-{len(self.segments)}"
        folder.mkdir()
        save_postings(folder, self.segment.finish())
        self.segments.append(folder)
        self.parts.append(Part(open_postings(folder), np.concatenate(self.segment_numbers)))
        self._start_segment()
