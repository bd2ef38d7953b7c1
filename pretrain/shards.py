"""One shard of a corpus: some documents to pieces, pieces to blocks, blocks to Arrow files. Runs in worker processes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.corpus import Document
from spanbert.files import write_atomic
from spanbert.tokenizer import Tokenizer

ENCODE_CHARACTERS = 1 << 20  # texts encoded at a time: bounds the memory of a worker
PIECE_CHARACTERS = 1 << 17  # a longer document is encoded in pieces cut at white space, which changes no token
SPLITS = ("train", "validation")


class Shard(NamedTuple):
    """Consecutive documents; spans holds (start, end) characters for each document, or is None."""

    number: int
    documents: list[Document]
    spans: list[list[tuple[int, int]]] | None


@dataclass
class ShardCounts:
    """Sums over documents; block_lengths counts blocks by number of pieces (specials not included)."""

    documents: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0
    no_token_documents: int = 0
    held_out_documents: int = 0
    held_out_tokens: int = 0
    spans: int = 0
    dropped_spans: int = 0
    block_lengths: dict[int, int] = field(default_factory=dict)

    def add(self, other: ShardCounts) -> None:
        for name, value in asdict(other).items():
            if name != "block_lengths":
                setattr(self, name, getattr(self, name) + value)
        for length, count in other.block_lengths.items():
            self.block_lengths[int(length)] = self.block_lengths.get(int(length), 0) + count


@dataclass(frozen=True)
class ShardSettings:
    folder: Path
    tokenizer: Path
    lowercase: bool | None
    block_length: int
    validation_share: float


class ShardWriter:
    """Turns shards into files shard-NNNNNN-{train,validation}.arrow and, last, shard-NNNNNN.json (its mark of done)."""

    def __init__(self, settings: ShardSettings) -> None:
        import datasets

        self.settings = settings
        self.tokenizer = Tokenizer.load(settings.tokenizer, lowercase=settings.lowercase)
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
        for document, ids, spans in self._encode(shard):
            split = "validation" if is_held_out(document.text, self.settings.validation_share) else "train"
            self._count(counts, ids, split)
            columns = self._blocks(document, ids, spans, counts)
            if len(ids):
                writers[split].write_batch(columns)
        for writer in writers.values():
            writer.finalize()
        write_atomic(done_file(self.settings.folder, shard.number), json.dumps(asdict(counts)))

    def _count(self, counts: ShardCounts, ids: np.ndarray, split: str) -> None:
        counts.documents += 1
        counts.tokens += len(ids)
        counts.words += int(self.tokenizer.starts_word[ids].sum())
        counts.unknown += int((ids == self.tokenizer.unk_id).sum())
        counts.no_token_documents += len(ids) == 0
        if split == "validation":
            counts.held_out_documents += 1
            counts.held_out_tokens += len(ids)

    def _blocks(
        self, document: Document, ids: np.ndarray, spans: np.ndarray | None, counts: ShardCounts
    ) -> dict[str, list]:
        """Columns for the ceil(n / room) blocks of one document of n pieces."""
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

    def _encode(self, shard: Shard) -> Iterator[tuple[Document, np.ndarray, np.ndarray | None]]:
        """Each document with its ids (n,) int32 and, when there is a sidecar, token spans (s, 2) int32."""
        begin = 0
        while begin < len(shard.documents):
            end, characters = begin, 0
            while end < len(shard.documents) and (end == begin or characters < ENCODE_CHARACTERS):
                characters += len(shard.documents[end].text)
                end += 1
            documents = shard.documents[begin:end]
            pieces = [(i, text) for i, document in enumerate(documents) for text in cut_text(document.text)]
            texts = [text for _, text in pieces]
            ids: list[list[np.ndarray]] = [[] for _ in documents]
            offsets: list[list[np.ndarray]] = [[] for _ in documents]
            if shard.spans is None:
                for (i, _), encoded_ids in zip(pieces, self.tokenizer.encode_ids(texts), strict=True):
                    ids[i].append(encoded_ids)
            else:
                shift, last = 0, -1
                for (i, text), encoded in zip(pieces, self.tokenizer.encode_batch(texts), strict=True):
                    shift = 0 if i != last else shift
                    ids[i].append(encoded.ids)
                    offsets[i].append(encoded.offsets + shift)
                    shift, last = shift + len(text), i
            for i, document in enumerate(documents):
                joined = np.concatenate(ids[i])
                spans = None
                if shard.spans is not None:
                    marked = shard.spans[begin + i]
                    spans = token_spans(marked, np.concatenate(offsets[i]), self.tokenizer.starts_word[joined])
                yield document, joined, spans
            begin = end


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
    """Pieces of about PIECE_CHARACTERS, cut before white space: BERT splits words there anyway, so nothing changes."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        match = _CUT.search(text, start + PIECE_CHARACTERS)
        if match is None:
            break
        yield text[start : match.start()]
        start = match.start()
    yield text[start:] if start else text


def is_held_out(text: str, share: float) -> bool:
    """By content, so that a copy of a document never sits on both sides, in any order or number of processes."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def shard_file(folder: Path, number: int, split: str) -> Path:
    return folder / f"shard-{number:06d}-{split}.arrow"


def done_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.json"


_writer: ShardWriter | None = None


def start_worker(settings: ShardSettings) -> None:
    """Called once in each worker process. Ctrl-C is the parent's business; one process uses one core."""
    global _writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _writer = ShardWriter(settings)


def write_shard(shard: Shard) -> int:
    assert _writer is not None, "start_worker runs first in every worker"
    _writer.write(shard)
    return shard.number
