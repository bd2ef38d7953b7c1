"""Sentences as windows of whole words: `[CLS] words [SEP]`. A sentence that fits is one window.

A longer one is cut into windows that overlap; each word is labelled, and decided, in one of them: that in which it has
most words on its poorer side.

With context (FLERT, Schweter & Akbik 2020) a window also holds what stands before and after its sentence in the document, so
many tokens at either side as there are and fit; nothing is decided, or learned, about those words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from finetune.tasks.ner.records import Sentence, SentenceFile
from finetune.tasks.ner.schemes import tags_of
from finetune.token_texts import TokenTexts
from spanbert.model.batch import PackedBatch, pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer

SPECIALS = 2  # [CLS] and [SEP]
IGNORED = -100  # cross-entropy passes such labels over


@dataclass(frozen=True)
class Windows:
    """W windows of whole words, in the numbering of their sentence."""

    sentence_W: np.ndarray  # int64, ascending
    first_W: np.ndarray  # int64, first word
    stop_W: np.ndarray  # int64, last word + 1
    owned_W2: np.ndarray  # int64, first word and last word + 1 that the window decides about; they tile the sentence


@dataclass(frozen=True)
class SentenceSet:
    """E sentences as words of tokens, and their windows. Words and labels are those of the whole file, in its order."""

    room: int  # tokens that a window holds beside the special ones
    overlap: int
    context: int  # tokens of other sentences at either side, at most
    cls_id: int
    sep_id: int
    sentences: list[Sentence]
    words: TokenTexts
    words_E2: np.ndarray  # int64: the words of sentence e are words_E2[e, 0] … words_E2[e, 1] − 1
    document_E2: np.ndarray  # int64, those of its document likewise
    label_N: np.ndarray  # int64, one for each word; IGNORED where it is not known
    cut: int  # words longer than a window, of which the last tokens are not seen
    read_notes: tuple[str, ...]  # how the file was read

    @property
    def examples(self) -> int:
        return len(self.sentences)

    @cached_property
    def windows(self) -> Windows:
        parts = []
        for sentence, (begun, ended) in enumerate(self.words_E2.tolist()):
            lengths = self.words.lengths[begun:ended]
            for first, stop, begin, end in window_words(lengths, self.room, self.overlap):
                parts.append((sentence, first, stop, begin, end))
        table = np.array(parts, dtype=np.int64).reshape(-1, 5)
        return Windows(table[:, 0], table[:, 1], table[:, 2], table[:, 3:])

    @cached_property
    def token_bounds_W2(self) -> np.ndarray:
        """(W, 2) int64: the tokens of each window in ``words.tokens``, context included."""
        windows, words = self.windows, self.words.bounds
        sentence_W2 = self.words_E2[windows.sentence_W]
        own_W2 = sentence_W2[:, :1] + np.stack([windows.first_W, windows.stop_W], axis=1)
        inner_W2 = own_W2 != sentence_W2  # a side at which the sentence goes on has no context
        around_W2 = np.abs(words[own_W2] - words[self.document_E2[windows.sentence_W]])
        left_W, right_W = np.where(inner_W2, 0, np.minimum(around_W2, self.context)).T
        free_W = self.room - np.diff(words[own_W2])[:, 0]
        # the right side has half of what is free, or what the left one leaves of it; the left side the rest
        right_W = np.minimum(right_W, np.maximum(free_W // 2, free_W - left_W))
        left_W = np.minimum(left_W, free_W - right_W)
        return words[own_W2] + np.stack([-left_W, right_W], axis=1)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(W,) int64."""
        return np.diff(self.token_bounds_W2)[:, 0] + SPECIALS

    @cached_property
    def bounds(self) -> np.ndarray:
        """(E + 1,) int64: the windows of each sentence."""
        return np.searchsorted(self.windows.sentence_W, np.arange(self.examples + 1))

    @property
    def notes(self) -> list[str]:
        count_E = np.diff(self.bounds)
        long = count_E > 1
        notes = list(self.read_notes)
        if long.any():
            notes.append(
                f"{long.sum():,} sentences longer than {self.room + SPECIALS} tokens, seen in {count_E[long].sum():,} "
                "windows that overlap"
            )
        if self.cut:
            notes.append(f"{self.cut:,} words longer than {self.room} tokens, of which the rest is not seen")
        return notes

    def packed(self, windows: np.ndarray) -> PackedBatch[np.ndarray]:
        tokens = self.words.tokens
        parts = [(tokens[begin:end],) for begin, end in self.token_bounds_W2[windows].tolist()]
        return pack_sequences(parts, self.cls_id, self.sep_id)

    def starts(self, window: int) -> np.ndarray:
        """Place in a window of the first token of each word that it decides about, int64."""
        begin, end = self.windows.owned_W2[window]
        base = self.words_E2[self.windows.sentence_W[window], 0]
        return self.words.bounds[base + begin : base + end] - self.token_bounds_W2[window, 0] + 1  # after [CLS]

    def labels(self, windows: np.ndarray) -> np.ndarray:
        """(T,) int64, for every token of the packed windows: a word's label on its first token, else IGNORED."""
        parts = []
        for window in np.asarray(windows, dtype=np.int64):
            label = np.full(self.lengths[window], IGNORED, dtype=np.int64)
            begin, end = self.windows.owned_W2[window] + self.words_E2[self.windows.sentence_W[window], 0]
            label[self.starts(window)] = self.label_N[begin:end]
            parts.append(label)
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def count(self, windows: np.ndarray) -> int:
        """Words that the windows decide about: every word of a file is counted in one window."""
        return int(np.diff(self.windows.owned_W2[windows]).sum())

    def select(self, chosen: np.ndarray) -> SentenceSet:
        return replace(
            self,
            sentences=[self.sentences[e] for e in chosen],
            words_E2=self.words_E2[chosen],
            document_E2=self.document_E2[chosen],
        )


def window_words(lengths: np.ndarray, room: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Windows over words of so many tokens each → (first word, stop, first word decided, stop) of each.

    room: tokens of a window; no word is longer. overlap: tokens that two neighbours share at least, where words allow it.
    The last window is full, so that the end of a sentence has words before it.
    """
    before = np.concatenate([[0], np.cumsum(lengths)])  # tokens before each word, and in all
    words, total = len(lengths), int(before[-1])
    if not words:
        return []
    spans = []
    first = 0
    while True:
        stop = int(np.searchsorted(before, before[first] + room, side="right")) - 1
        if stop >= words:
            break
        spans.append((first, stop))
        first = max(first + 1, int(np.searchsorted(before, before[stop] - overlap, side="right")) - 1)
    last = int(np.searchsorted(before, total - room, side="left")) if spans else 0
    spans.append((min(first, last), words))
    middles = [(right[0] + left[1]) // 2 for left, right in pairwise(spans)]
    decided = zip([0, *middles], [*middles, words])
    return [(*span, begin, end) for span, (begin, end) in zip(spans, decided) if begin < end]  # one in vain is left out


def encode_sentences(
    file: SentenceFile, tokenizer: Tokenizer, window: int, overlap: int, labels: tuple[str, ...], context: int = 0
) -> SentenceSet:
    """Tokenize all words by themselves; one in which the tokenizer finds nothing (an invisible character) is [UNK].

    labels: IOB2 tags. A model of another scheme (one trained elsewhere) decodes without them.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    room = window - SPECIALS
    unknown = np.array([tokenizer.unk_id], dtype=np.int32)
    words: list[np.ndarray] = []
    label_N: list[int] = []
    cut = 0
    for sentence in file.sentences:
        for start, end in sentence.words:
            ids = tokenizer.encode_ids(sentence.text[start:end])
            cut += len(ids) > room
            words.append(ids[:room] if len(ids) else unknown)
        if sentence.entities is None:
            label_N += [IGNORED] * len(sentence.words)
        else:
            label_N += [numbers.get(tag, IGNORED) for tag in tags_of(sentence.entities, len(sentence.words))]
    bounds = np.cumsum([0, *(len(sentence.words) for sentence in file.sentences)])
    document_E = np.array([sentence.document for sentence in file.sentences], dtype=np.int64)
    begins = np.flatnonzero(np.diff(document_E, prepend=-1))  # first sentence of each document
    notes = list(file.notes)
    if context:
        notes.append(
            f"{len(begins):,} documents, of which up to {context} tokens are seen at either side of a sentence"
        )
    return SentenceSet(
        room,
        overlap,
        context,
        tokenizer.cls_id,
        tokenizer.sep_id,
        file.sentences,
        TokenTexts.of(words),
        np.stack([bounds[:-1], bounds[1:]], axis=1),
        _document_bounds(bounds, begins),
        np.array(label_N, dtype=np.int64),
        cut,
        tuple(notes),
    )


def _document_bounds(bounds: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """(E, 2): the words of each sentence's document. bounds: of the E sentences; begins: first sentence of each document."""
    ends = np.append(begins[1:], len(bounds) - 1)
    return np.repeat(bounds[np.stack([begins, ends], axis=1)], ends - begins, axis=0)
