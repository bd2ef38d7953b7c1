"""The folder of an index: what lies there, and opening it.

    INDEX/index.json        which generation holds, how it was made, how much it holds; replaced atomically
    INDEX/data-…/           one generation: texts.bin, documents.jsonl, sources.jsonl, and arrays that are memory-mapped

A new generation is written beside the old one, which stands until index.json names the new one. Opening reads index.json
and maps the arrays; a document's line and text are read when it is asked for.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

import numpy as np

from finetune.retrieval.documents import Document
from finetune.retrieval.passages import MAX_TERMS, OVERLAP_TERMS
from finetune.retrieval.readers import Section
from finetune.retrieval.table import PassageTable
from spanbert.config import read_json
from spanbert.errors import UserError
from spanbert.integrity import described_files, find_damage

MANIFEST = "index.json"
#: An index made otherwise is made anew. "format" changes with the files, the readers, the terms or the cutting.
SETTINGS = {"format": 2, "max_terms": MAX_TERMS, "overlap_terms": OVERLAP_TERMS}
CACHED_DOCUMENTS = 32
#: An index below this size is read and compared with its hashes whenever it is opened: a quarter of a second.
QUICK_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredDocument:
    """A line of documents.jsonl."""

    id: str
    title: str
    source: str  # id of its file
    sha256: str  # of title, text and sections
    begin: int  # bytes of texts.bin
    end: int
    passages: int
    sections: list[tuple[int, str]]


def generation_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the generation that holds, and the manifest. Raises UserError where there is no index."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: no index (no {MANIFEST}); make one: spanbert index PATHS --output {folder}")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("generation"), str):
        raise UserError(f"{folder}/{MANIFEST}: not the file of an index.")
    return folder / Path(manifest["generation"]).name, manifest


def check_generation(generation: Path, manifest: dict[str, Any], *, read: bool | None = None) -> str | None:
    """What is wrong with the files of a generation, or None: their sizes, and their hashes.

    read: whether hashes are compared; left out, where the index is small. Raises UserError when the manifest does not say.
    """
    files = described_files(manifest.get("files"), f"{generation.parent}/{MANIFEST}")
    if read is None:
        read = sum(file["bytes"] for file in files.values()) <= QUICK_BYTES
    return find_damage(generation, files, read=read)


def open_table(folder: Path) -> PassageTable:
    return PassageTable(
        **{one.name: np.load(folder / f"{one.name}.npy", mmap_mode="r") for one in fields(PassageTable)}
    )


def save_table(folder: Path, table: PassageTable) -> None:
    for one in fields(PassageTable):
        np.save(folder / f"{one.name}.npy", getattr(table, one.name))


class StoredDocuments(Sequence[Document]):
    """The documents of a generation, each read from the disk when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._lines_D1 = np.load(folder / "lines.npy", mmap_mode="r")  # where each line begins; the end
        self._records = np.memmap(folder / "documents.jsonl", dtype=np.uint8, mode="r")
        self._texts = np.memmap(folder / "texts.bin", dtype=np.uint8, mode="r")
        self._cached = functools.lru_cache(CACHED_DOCUMENTS)(self._load)

    def __len__(self) -> int:
        return len(self._lines_D1) - 1

    @overload
    def __getitem__(self, place: int) -> Document: ...
    @overload
    def __getitem__(self, place: slice) -> list[Document]: ...
    def __getitem__(self, place: int | slice) -> Document | list[Document]:
        if isinstance(place, slice):
            return [self._cached(number) for number in range(len(self))[place]]
        return self._cached(range(len(self))[place])

    def record(self, number: int) -> StoredDocument:
        """A document's line, without its text."""
        line = bytes(self._records[self._lines_D1[number] : self._lines_D1[number + 1]])
        return StoredDocument(**json.loads(line))

    def records(self) -> Iterator[StoredDocument]:
        return map(self.record, range(len(self)))

    def text_bytes(self, record: StoredDocument) -> bytes:
        """A document's text in UTF-8."""
        return bytes(self._texts[record.begin : record.end])

    def _load(self, number: int) -> Document:
        record = self.record(number)
        sections = tuple(Section(start, label) for start, label in record.sections)
        return Document(record.id, record.title, self.text_bytes(record).decode(), sections)
