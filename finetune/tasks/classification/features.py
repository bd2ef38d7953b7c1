"""Texts as windows: `[CLS] part of the text [SEP]`. A text that fits is one window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from finetune.records import NoTokens
from finetune.tasks.classification.records import LabelledText, TextFile
from finetune.token_texts import TokenTexts
from spanbert.model.batch import PackedBatch, pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer

SPECIALS = 2  # [CLS] and [SEP]


@dataclass(frozen=True)
class TextSet:
    """E tokenized texts with their labels."""

    window: int  # longest window, in tokens, special tokens included
    cls_id: int
    sep_id: int
    records: list[LabelledText]
    texts: TokenTexts
    label_E: np.ndarray  # int64, −1 where it is not known

    @property
    def examples(self) -> int:
        return len(self.records)

    @property
    def room(self) -> int:
        """Tokens of a text that a window holds."""
        return self.window - SPECIALS

    @cached_property
    def bounds(self) -> np.ndarray:
        """(E + 1,) int64: as few windows as hold all of the text."""
        count_E = -(-self.texts.lengths // self.room)
        return np.concatenate([[0], np.cumsum(count_E)]).astype(np.int64)

    @cached_property
    def text_W(self) -> np.ndarray:
        """The text of each window, (W,) int64."""
        return np.repeat(np.arange(self.examples), np.diff(self.bounds))

    @cached_property
    def first_W(self) -> np.ndarray:
        """First token of each window, (W,) int64. The windows of a long text are all full and evenly laid out: a last
        one of three words would weigh as much in the mean as the others."""
        place_W = np.arange(len(self.text_W)) - self.bounds[self.text_W]
        gaps_W = np.maximum(np.diff(self.bounds)[self.text_W] - 1, 1)
        return place_W * np.maximum(self.texts.lengths[self.text_W] - self.room, 0) // gaps_W

    @cached_property
    def lengths(self) -> np.ndarray:
        """(W,) int64."""
        return np.minimum(self.texts.lengths[self.text_W], self.room) + SPECIALS

    @property
    def notes(self) -> list[str]:
        count_E = np.diff(self.bounds)
        long = count_E > 1
        if not long.any():
            return []
        return [
            f"{long.sum():,} texts longer than {self.window} tokens, seen in {count_E[long].sum():,} windows whose "
            "logits are averaged"
        ]

    def packed(self, windows: np.ndarray) -> PackedBatch[np.ndarray]:
        parts = []
        for window in np.asarray(windows, dtype=np.int64):
            first = self.first_W[window]
            parts.append((self.texts[self.text_W[window]][first : first + self.room],))
        return pack_sequences(parts, self.cls_id, self.sep_id)

    def labels(self, windows: np.ndarray) -> np.ndarray:
        """(windows,) int64: every window of a text has its label."""
        return self.label_E[self.text_W[windows]]

    def count(self, windows: np.ndarray) -> int:
        return len(windows)

    def select(self, chosen: np.ndarray) -> TextSet:
        texts = TokenTexts.of([self.texts[e] for e in chosen])
        return replace(self, records=[self.records[e] for e in chosen], texts=texts, label_E=self.label_E[chosen])


def encode_texts(file: TextFile, tokenizer: Tokenizer, window: int, labels: tuple[str, ...]) -> TextSet:
    """Tokenize all texts; those without a token are malformed records."""
    numbers = {label: number for number, label in enumerate(labels)}
    records, texts = [], []
    for record, encoded in zip(file.texts, tokenizer.encode_batch([one.text for one in file.texts]), strict=True):
        if not len(encoded.ids):
            file.report.malformed(f"line {record.line}", NoTokens("text"))
            continue
        records.append(record)
        texts.append(encoded.ids)
    label_E = np.array([-1 if one.label is None else numbers[one.label] for one in records], dtype=np.int64)
    return TextSet(window, tokenizer.cls_id, tokenizer.sep_id, records, TokenTexts.of(texts), label_E)
