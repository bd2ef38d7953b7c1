"""One shard of a corpus: some documents to tokens, tokens to blocks, blocks to Arrow files. Runs in worker processes."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretrain.data.corpus import Document
from spanbert.config import from_dict, read_json_object
from spanbert.errors import UserError, note
from spanbert.files import sync_file, write_atomic
from spanbert.integrity import describe_files, described_files, find_damage
from spanbert.tokenizer.wordpiece import Tokenizer

PART_CHARACTERS = 1 << 17  # a longer document is encoded in parts cut at white space, which changes no token
ROWS_PER_BATCH = 1000
LOOKED_AT = 10_000  # characters of a document that are searched for unknown ones
REFUSED_UNKNOWN = 0.9  # share of unknown tokens at which a text is no text for this tokenizer
KEPT = 100  # unknown characters that a shard reports
SPLITS = ("train", "validation")


class Shard(NamedTuple):
    """Consecutive documents; spans holds (start, end) characters for each document, or is None."""

    number: int
    documents: list[Document]
    spans: list[list[tuple[int, int]]] | None


@dataclass
class TokenCounts:
    """Sums over documents and parts. characters: without white space."""

    words: int = 0
    tokens: int = 0
    unknown: int = 0
    characters: int = 0
    unknown_characters: dict[str, int] = field(default_factory=dict)
    """Characters that the vocabulary lacks, the commonest ones, from the beginnings of documents with [UNK]."""

    def add(self, other: TokenCounts) -> None:
        for name in ("words", "tokens", "unknown", "characters"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for character, count in other.unknown_characters.items():
            self.unknown_characters[character] = self.unknown_characters.get(character, 0) + count


@dataclass
class ShardCounts:
    """Sums over documents and parts; block_lengths counts blocks by number of tokens (specials not included)."""

    no_token_documents: int = 0
    spans: int = 0
    dropped_spans: int = 0
    block_lengths: dict[int, int] = field(default_factory=dict)
    of_input: dict[int, TokenCounts] = field(default_factory=dict)
    """For each of the corpus's inputs with documents in this shard."""

    def add(self, other: ShardCounts) -> None:
        for name in ("no_token_documents", "spans", "dropped_spans"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for length, count in other.block_lengths.items():
            self.block_lengths[length] = self.block_lengths.get(length, 0) + count
        for number, counts in other.of_input.items():
            self.of_input.setdefault(number, TokenCounts()).add(counts)

    @property
    def total(self) -> TokenCounts:
        """Over all inputs."""
        total = TokenCounts()
        for counts in self.of_input.values():
            total.add(counts)
        return total

    @classmethod
    def of_json(cls, values: dict[str, Any], source: str) -> ShardCounts:
        """What `asdict` gave, out of JSON, which has only strings for keys. Raises UserError as `from_dict` does."""
        counts = from_dict(cls, values, source)
        counts.block_lengths = {int(length): count for length, count in counts.block_lengths.items()}
        counts.of_input = {
            int(number): from_dict(TokenCounts, of_one, f"{source}: input {number}")  # type: ignore[arg-type]
            for number, of_one in counts.of_input.items()
        }
        return counts


@dataclass(frozen=True)
class ShardSettings:
    folder: Path
    tokenizer: Path
    block_length: int
    validation_share: float


class ShardWriter:
    """Turns shards into files shard-NNNNNN-{train,validation}.arrow and, last, shard-NNNNNN.json (its mark of done)."""

    def __init__(self, settings: ShardSettings) -> None:
        import datasets

        self.settings = settings
        self.tokenizer = Tokenizer.load(settings.tokenizer)
        small = self.tokenizer.vocab_size <= 1 << 16
        self.features = {
            "input_ids": datasets.List(datasets.Value("uint16" if small else "int32")),
            "document": datasets.Value("int64"),
            "start": datasets.Value("int32"),
        }
        self.span_feature = {"spans": datasets.List(datasets.List(datasets.Value("int32")))}

    def write(self, shard: Shard) -> None:
        from datasets import Features
        from datasets.arrow_writer import ArrowWriter

        features = Features(self.features if shard.spans is None else self.features | self.span_feature)
        paths = {split: shard_file(self.settings.folder, shard.number, split) for split in SPLITS}
        writers = {split: ArrowWriter(features=features, path=str(path)) for split, path in paths.items()}
        counts = ShardCounts()
        waiting: dict[str, dict[str, list]] = {split: {name: [] for name in features} for split in SPLITS}
        threshold = self.settings.validation_share * 2**64
        for i, document in enumerate(shard.documents):
            # By content: a copy of a document never sits on the other side, whatever the order of the input.
            split = "validation" if document.hash < threshold else "train"
            ids, spans = self._encode(document.text, shard.spans[i] if shard.spans else None)
            self._count(counts, ids, document)
            for name, values in self._blocks(document, ids, spans, counts).items():
                waiting[split][name].extend(values)
            if len(waiting[split]["start"]) >= ROWS_PER_BATCH:
                writers[split].write_batch(waiting[split])
                waiting[split] = {name: [] for name in features}
        for split in SPLITS:
            if waiting[split]["start"]:
                writers[split].write_batch(waiting[split])
        for split, writer in writers.items():
            writer.finalize()
            sync_file(paths[split])  # the mark of done must not reach the disk before what it vouches for
        for of_one in counts.of_input.values():
            of_one.unknown_characters = commonest(of_one.unknown_characters, KEPT)
        mark = {"counts": asdict(counts), "files": describe_files(self.settings.folder, paths.values())}
        write_atomic(done_file(self.settings.folder, shard.number), json.dumps(mark))

    def _count(self, counts: ShardCounts, ids: np.ndarray, document: Document) -> None:
        unknown = int((ids == self.tokenizer.unk_id).sum())
        found = TokenCounts(
            words=int(self.tokenizer.starts_word[ids].sum()),
            tokens=len(ids),
            unknown=unknown,
            characters=sum(map(len, document.text.split())),
            unknown_characters=self.tokenizer.missing_characters(document.text[:LOOKED_AT]) if unknown else {},
        )
        counts.of_input.setdefault(document.input, TokenCounts()).add(found)
        counts.no_token_documents += len(ids) == 0

    def _blocks(
        self, document: Document, ids: np.ndarray, spans: np.ndarray | None, counts: ShardCounts
    ) -> dict[str, list]:
        """Columns for the ceil(n / room) blocks of one document of n tokens."""
        room = self.settings.block_length - 2  # [CLS] and [SEP] are put around a block when it is read
        starts = range(0, len(ids), room)
        blocks = [ids[start : start + room] for start in starts]
        columns: dict[str, list] = {
            "input_ids": blocks,
            "document": [document.index] * len(blocks),
            "start": list(starts),
        }
        for block in blocks:
            counts.block_lengths[len(block)] = counts.block_lengths.get(len(block), 0) + 1
        if spans is not None:
            columns["spans"] = [
                spans[(spans[:, 0] >= start) & (spans[:, 1] <= start + room)] - start for start in starts
            ]
            kept = sum(map(len, columns["spans"]))
            counts.spans += kept
            counts.dropped_spans += len(spans) - kept
        return columns

    def _encode(self, text: str, marked: list[tuple[int, int]] | None) -> tuple[np.ndarray, np.ndarray | None]:
        """ids (n,) int32 and, when there is a sidecar, token spans (s, 2) int32."""
        parts = list(cut_text(text))
        if marked is None:
            return np.concatenate([self.tokenizer.encode_ids(part) for part in parts]), None
        encoded = self.tokenizer.encode_batch(parts)
        shifts = np.cumsum([0, *map(len, parts)])
        offsets = np.concatenate([e.offsets + shift for e, shift in zip(encoded, shifts[:-1], strict=True)])
        ids = np.concatenate([e.ids for e in encoded])
        return ids, token_spans(marked, offsets, self.tokenizer.starts_word[ids])


def commonest(counts: dict[str, int], most: int) -> dict[str, int]:
    """The commonest characters of all, at most so many, the commonest first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])


def token_spans(spans: list[tuple[int, int]], offsets: np.ndarray, starts_word: np.ndarray) -> np.ndarray:
    """Character spans to token spans [start, end) that cover whole words; sorted, overlaps and empty ones removed.

    spans: (start, end) characters; offsets: (n, 2); starts_word: (n,) bool. Returns (s, 2) int32.
    Of overlapping spans the earlier stays, of those with one start the longer.
    """
    if not spans or not len(offsets):
        return np.zeros((0, 2), dtype=np.int32)
    chars = np.array(spans, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(offsets[:, 1], chars[:, 0], side="right")  # first token that ends after the start
    end = np.searchsorted(offsets[:, 0], chars[:, 1], side="left")  # first token that begins at or after the end
    keep = (first < end) & (chars[:, 0] < chars[:, 1])
    first, end = first[keep], end[keep]
    word_starts = np.append(np.flatnonzero(starts_word), len(offsets))
    first = word_starts[np.maximum(np.searchsorted(word_starts, first, side="right") - 1, 0)]
    end = word_starts[np.searchsorted(word_starts, end, side="left")]
    order = np.lexsort((-end, first))
    kept: list[tuple[int, int]] = []
    for span_start, span_end in zip(first[order].tolist(), end[order].tolist(), strict=True):
        if not kept or span_start >= kept[-1][1]:
            kept.append((span_start, span_end))
    return np.array(kept, dtype=np.int32).reshape(-1, 2)


_CUT = re.compile(r"[ \n\t\r]")


def cut_text(text: str) -> Iterator[str]:
    """Parts of about PART_CHARACTERS, cut before white space: BERT splits words there anyway, so nothing changes."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        match = _CUT.search(text, start + PART_CHARACTERS)
        if match is None:
            break
        yield text[start : match.start()]
        start = match.start()
    yield text[start:] if start else text


def shard_file(folder: Path, number: int, split: str) -> Path:
    return folder / f"shard-{number:06d}-{split}.arrow"


def done_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.json"


def read_done(folder: Path, number: int) -> ShardCounts | None:
    """What a finished shard counted; None when it is not finished, or its files are not what was written."""
    mark = done_file(folder, number)
    if not mark.exists():
        return None
    try:
        content = read_json_object(mark, "a shard's counts")
        damage = find_damage(folder, described_files(content["files"], str(mark)), read=True)
        counts = ShardCounts.of_json(content["counts"], str(mark))
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        damage, counts = f"{mark} is damaged or of another version", None
    if damage:
        note(f"{damage}: the shard is made again")
        mark.unlink()
        return None
    return counts


_writer: ShardWriter | None = None


def start_worker(settings: ShardSettings) -> None:
    """Called once in each worker process. Ctrl-C is the parent's business, and without a parent there is no work."""
    global _writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _writer = ShardWriter(settings)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def write_shard(shard: Shard) -> None:
    assert _writer is not None, "start_worker runs first in every worker"
    _writer.write(shard)
