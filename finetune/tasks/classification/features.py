"""Texts, or pairs of texts, as windows: `[CLS] part of the text [SEP]`, `[CLS] part of one [SEP] part of the other [SEP]`.

What fits is one window. The windows of a long text are all full and evenly laid out: a last one of three words would weigh
as much in the mean as the others. Of a long pair, a text that takes no more than half of a window stands in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from finetune.records import NoTokens
from finetune.tasks.classification.records import LabelledText, TextFile
from finetune.tasks.classification.targets import Problem, target_array
from finetune.token_texts import TokenTexts
from spanbert.model.batch import PackedBatch, pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer

SPECIALS = 2  # [CLS] and [SEP]; a pair has another [SEP]


@dataclass(frozen=True)
class TextSet:
    """E tokenized texts, or pairs, with their labels."""

    window: int  # longest window, in tokens, special tokens included
    cls_id: int
    sep_id: int
    records: list[LabelledText]
    texts: TokenTexts
    label_E: np.ndarray  # as ``targets.target_array`` has them
    others: TokenTexts | None = None  # the second text of each pair

    @property
    def examples(self) -> int:
        return len(self.records)

    @cached_property
    def room_E2(self) -> np.ndarray:
        """(E, 2) int64: tokens of the text, and of the other, that a window holds."""
        room = self.window - SPECIALS - (self.others is not None)
        first_E, second_E = self._lengths_E2.T
        most_E = np.minimum(first_E, np.maximum(room - second_E, room // 2 if self.others is not None else room))
        return np.stack([most_E, np.minimum(second_E, room - most_E)], 1)

    @cached_property
    def _lengths_E2(self) -> np.ndarray:
        others = np.zeros_like(self.texts.lengths) if self.others is None else self.others.lengths
        return np.stack([self.texts.lengths, others], 1)

    @cached_property
    def bounds(self) -> np.ndarray:
        """(E + 1,) int64: as few windows as hold all of both texts."""
        count_E = (-(-self._lengths_E2 // np.maximum(self.room_E2, 1))).max(1, initial=1)
        return np.concatenate([[0], np.cumsum(count_E)]).astype(np.int64)

    @cached_property
    def text_W(self) -> np.ndarray:
        """The text of each window, (W,) int64."""
        return np.repeat(np.arange(self.examples), np.diff(self.bounds))

    @cached_property
    def first_W2(self) -> np.ndarray:
        """First token of each window in the text, and in the other, (W, 2) int64."""
        place_W = np.arange(len(self.text_W)) - self.bounds[self.text_W]
        gaps_W = np.maximum(np.diff(self.bounds)[self.text_W] - 1, 1)
        return place_W[:, None] * (self._lengths_E2 - self.room_E2)[self.text_W] // gaps_W[:, None]

    @cached_property
    def lengths(self) -> np.ndarray:
        """(W,) int64."""
        return self.room_E2[self.text_W].sum(1) + SPECIALS + (self.others is not None)

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
        return pack_sequences([self._parts(window) for window in np.asarray(windows)], self.cls_id, self.sep_id)

    def _parts(self, window: int) -> tuple[np.ndarray, ...]:
        """The tokens of the text, and of the other where there is one, in a window."""
        text = self.text_W[window]
        return tuple(
            texts[text][first : first + room]
            for texts, first, room in zip(
                (self.texts, self.others), self.first_W2[window], self.room_E2[text], strict=True
            )
            if texts is not None
        )

    def labels(self, windows: np.ndarray) -> np.ndarray:
        """A row of ``label_E`` for each: every window of a text has its label."""
        return self.label_E[self.text_W[windows]]

    def count(self, windows: np.ndarray) -> int:
        """Windows; with a sigmoid for every label, as many for each of them."""
        return len(windows) * (self.label_E.shape[1] if self.label_E.ndim > 1 else 1)

    def select(self, chosen: np.ndarray) -> TextSet:
        texts = TokenTexts.of([self.texts[e] for e in chosen])
        others = None if self.others is None else TokenTexts.of([self.others[e] for e in chosen])
        records = [self.records[e] for e in chosen]
        return replace(self, records=records, texts=texts, label_E=self.label_E[chosen], others=others)


def encode_texts(
    file: TextFile, tokenizer: Tokenizer, window: int, labels: tuple[str, ...], problem: Problem = "single"
) -> TextSet:
    """Tokenize all texts; those without a token are malformed records."""
    pairs = bool(file.texts) and file.texts[0].other is not None
    first = [encoded.ids for encoded in tokenizer.encode_batch([one.text for one in file.texts])]
    second = [encoded.ids for encoded in tokenizer.encode_batch([one.other or "" for one in file.texts])]
    kept = []
    for number, record in enumerate(file.texts):
        if not len(first[number]) or (pairs and not len(second[number])):
            file.report.malformed(f"line {record.line}", NoTokens("text"))
            continue
        kept.append(number)
    records = [file.texts[number] for number in kept]
    return TextSet(
        window,
        tokenizer.cls_id,
        tokenizer.sep_id,
        records,
        TokenTexts.of([first[number] for number in kept]),
        target_array([one.label for one in records], problem, labels),
        TokenTexts.of([second[number] for number in kept]) if pairs else None,
    )
