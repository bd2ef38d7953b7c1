"""Prepared blocks on disk, read as packed batches: memory-mapped Arrow, no Python per token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pretrain.data.integrity import check_counts, check_sizes
from spanbert.config import read_json_object
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch, pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer


class Blocks:
    """One split of a prepared corpus.

    Attributes: block_length (tokens, specials included), lengths ((n,) int32, specials included), has_spans,
    document ((n,) int64) and start ((n,) int32): which document a block is from, and at which of its tokens it begins.
    """

    def __init__(
        self,
        table: pa.Table,
        block_length: int,
        cls_id: int,
        sep_id: int,
        origin: tuple[str, str],
        vocab_size: int | None = None,
    ) -> None:
        self.block_length = block_length
        self.cls_id, self.sep_id = cls_id, sep_id
        self.vocab_size = vocab_size
        self._origin = origin
        self._table = table
        self._values, self._chunk, self._begin, lengths = _flatten(table.column("input_ids"))
        self.lengths = (lengths + 2).astype(np.int32)
        self.has_spans = "spans" in table.column_names
        if self.has_spans:
            self._spans, self._span_chunk, self._span_begin, self._span_count = _flatten(table.column("spans"))

    @classmethod
    def open(cls, folder: Path | str, split: str) -> Blocks:
        """Map folder/split (split: "train" or "validation"). Raises UserError when it is not a prepared corpus."""
        import datasets

        folder = Path(folder)
        settings = read_settings(folder, split)
        check_sizes(folder, settings, split)
        try:
            table = datasets.load_from_disk(folder / split).data.table
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} is not a prepared corpus with a {split!r} split: run spanbert prepare"
            ) from error
        tokenizer = Tokenizer.load(folder / "tokenizer")
        if tokenizer.fingerprint != settings["tokenizer_fingerprint"]:
            raise UserError(f"{folder}/tokenizer is not the one this corpus was prepared with: prepare it again")
        origin = (str(folder), split)
        blocks = cls(table, settings["block_length"], tokenizer.cls_id, tokenizer.sep_id, origin, tokenizer.vocab_size)
        tokens = int(blocks.lengths.sum(dtype=np.int64)) - 2 * len(blocks)
        check_counts(folder, settings, split, len(blocks), tokens)
        return blocks

    @classmethod
    def map(cls, split_folder: Path, block_length: int) -> Blocks:
        """The blocks alone, without the tokenizer beside them, for counting."""
        import datasets

        table = datasets.load_from_disk(split_folder).data.table
        return cls(table, block_length, 0, 0, (str(split_folder.parent), split_folder.name))

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # a copy in another process maps the files again instead of carrying the data
        return Blocks.open, self._origin

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def document(self) -> np.ndarray:
        return self._table.column("document").to_numpy()

    @property
    def start(self) -> np.ndarray:
        return self._table.column("start").to_numpy()

    def packed(self, indices: np.ndarray) -> tuple[PackedBatch[np.ndarray], list[np.ndarray] | None]:
        """Blocks as one packed batch, each as [CLS] … [SEP].

        indices: (B,) integers. Also returns, for each block, its linguistic spans (s, 2) int32: [start, end) in tokens
        counted without [CLS], ascending; None without a span column. Raises UserError for an id beyond the vocabulary.
        """
        indices = np.asarray(indices, dtype=np.int64)
        chunks, begins = self._chunk[indices].tolist(), self._begin[indices]
        ends = begins + self.lengths[indices] - 2
        rows = zip(chunks, begins.tolist(), ends.tolist(), strict=True)
        packed = pack_sequences(
            [(self._values[chunk][begin:end],) for chunk, begin, end in rows], self.cls_id, self.sep_id
        )
        if (
            self.vocab_size is not None
            and len(packed.input_ids_T)
            and (int(packed.input_ids_T.max()) >= self.vocab_size or int(packed.input_ids_T.min()) < 0)
        ):
            beyond = (packed.input_ids_T >= self.vocab_size) | (packed.input_ids_T < 0)
            row = int(np.searchsorted(packed.cu_seqlens, int(np.argmax(beyond)), side="right")) - 1
            raise UserError(
                f"{'/'.join(self._origin)} is damaged: block {int(indices[row])} holds the id "
                f"{int(packed.input_ids_T[beyond][0])}, the vocabulary ends at {self.vocab_size - 1}; "
                "copy it again or prepare it again with --overwrite"
            )
        return packed, [self._spans_of(i) for i in indices] if self.has_spans else None

    def _spans_of(self, index: int) -> np.ndarray:
        begin = self._span_begin[index]
        return self._spans[self._span_chunk[index]][begin : begin + self._span_count[index]]

    def unigram_counts(self) -> np.ndarray:
        """How often each token occurs, (largest id + 1,) int64; specials around blocks are not counted."""
        total = np.zeros(0, dtype=np.int64)
        for chunk in range(len(self._values)):
            rows = np.flatnonzero(self._chunk == chunk)
            if not len(rows):
                continue
            begin, end = self._begin[rows[0]], self._begin[rows[-1]] + self.lengths[rows[-1]] - 2
            counts = np.bincount(self._values[chunk][begin:end])
            if len(counts) > len(total):
                total = np.pad(total, (0, len(counts) - len(total)))
            total[: len(counts)] += counts
        return total


def read_settings(folder: Path, split: str = "train") -> dict[str, Any]:
    """prepare.json of a prepared corpus. Raises UserError when there is none."""
    try:
        settings = read_json_object(folder / "prepare.json", "a corpus's settings")
    except (UserError, OSError) as error:
        raise UserError(f"{folder} is not a prepared corpus with a {split!r} split: run spanbert prepare") from error
    length, fingerprint = settings.get("block_length"), settings.get("tokenizer_fingerprint")
    if type(length) is not int or length < 3 or not isinstance(fingerprint, str):
        raise UserError(
            f"{folder}/prepare.json is damaged: block_length is {length!r} and tokenizer_fingerprint {fingerprint!r}; "
            "copy it again or prepare the corpus again"
        )
    return settings


def _flatten(column: pa.ChunkedArray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """A list column as the mapped flat values of each chunk, and per row: chunk, first value, number of values.

    A list<list<int>> column of pairs gives values of shape (m, 2).
    """
    values: list[np.ndarray] = []
    chunk_of: list[np.ndarray] = []
    begin: list[np.ndarray] = []
    count: list[np.ndarray] = []
    for number, chunk in enumerate(column.chunks):
        offsets = chunk.offsets.to_numpy().astype(np.int64)
        inner = chunk.values
        if pa.types.is_list(inner.type) or pa.types.is_large_list(inner.type):
            pair_offset = inner.offsets.to_numpy()[0] if len(inner) else 0
            flat = inner.values.to_numpy(zero_copy_only=False)[pair_offset : pair_offset + 2 * len(inner)]
            values.append(flat.reshape(-1, 2))
        else:
            values.append(inner.to_numpy())
        chunk_of.append(np.full(len(chunk), number, dtype=np.int32))
        begin.append(offsets[:-1])
        count.append(np.diff(offsets))
    empty = np.zeros(0, dtype=np.int64)
    return (
        values,
        np.concatenate([empty.astype(np.int32), *chunk_of]),
        np.concatenate([empty, *begin]),
        np.concatenate([empty, *count]),
    )
