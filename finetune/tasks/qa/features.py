"""Questions and contexts as token windows: `[CLS] question [SEP] part of the context [SEP]`, types 0 / 1 (§5).

Each context is tokenized once, however many questions it has; all pieces lie in one flat int32 array. A window is
three numbers (question, first context piece, how many), so a data set costs about 12 bytes a context piece at most
and building windows is arithmetic, not copying. Tokens are copied when a batch is packed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from finetune.tasks.qa.records import MalformedRecord, Paragraph
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch, pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer

SPECIALS = 3  # [CLS] and two [SEP]


@dataclass(frozen=True)
class WindowConfig:
    """How a context is cut. All three are in pieces."""

    window: int = 384
    """Length of a window, question and special tokens included."""
    stride: int = 128
    """Step from one window's first context piece to the next one's."""
    max_question: int = 64
    """Pieces of the question that are kept; cut questions are counted and reported."""

    def check(self, max_positions: int) -> None:
        """UserError unless every window fits the encoder and consecutive windows of any question overlap."""
        if self.window > max_positions:
            raise UserError(
                f"window {self.window} is longer than the model's {max_positions} positions; lower --window."
            )
        if self.stride < 1 or self.max_question < 1:
            raise UserError(f"stride {self.stride} and max-question {self.max_question} must both be at least 1 piece.")
        room = self.window - self.max_question - SPECIALS
        if self.stride >= room:
            raise UserError(
                f"stride {self.stride} must be below {room} (window {self.window} − question {self.max_question} − "
                f"{SPECIALS} special tokens), or text between windows would never be seen; lower --stride or raise --window."
            )


@dataclass(frozen=True)
class QuestionSet:
    """Q questions about C contexts, tokenized, and their W windows.

    Texts are kept only when asked for: decoding needs them, training does not.
    """

    config: WindowConfig
    cls_id: int
    sep_id: int
    ids: list[str]  # Q
    context_of_Q: np.ndarray  # int64, index of the context
    context_pieces: np.ndarray  # flat int32
    context_bounds: np.ndarray  # (C + 1,) int64: pieces of context c are context_pieces[bounds[c]:bounds[c + 1]]
    question_pieces: np.ndarray  # flat int32, already cut
    question_bounds: np.ndarray  # (Q + 1,) int64
    answer_Q2: np.ndarray  # int64, first and last context piece of the first gold answer; -1 for none
    truncated: int  # questions that were cut to max_question pieces
    contexts: list[str] | None  # C
    context_offsets: np.ndarray | None  # flat (·, 2) int32 character offsets beside context_pieces
    golds: list[tuple[str, ...]] | None  # Q
    window_question: np.ndarray  # (W,) int64, ascending
    window_first: np.ndarray  # (W,) int64, first context piece of the window
    window_count: np.ndarray  # (W,) int64, context pieces in the window

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def windows(self) -> int:
        return len(self.window_question)

    @cached_property
    def question_lengths_Q(self) -> np.ndarray:
        return np.diff(self.question_bounds)

    @cached_property
    def window_lengths_W(self) -> np.ndarray:
        """Tokens of each window, special tokens included."""
        return self.question_lengths_Q[self.window_question] + self.window_count + SPECIALS

    def labels(self) -> np.ndarray:
        """(W, 2) int64: first and last answer token within each window; (0, 0), `[CLS]`, where it is not all inside."""
        answer = self.answer_Q2[self.window_question]
        first, last = self.window_first, self.window_first + self.window_count - 1
        inside = (answer[:, 0] >= first) & (answer[:, 1] <= last) & (answer[:, 0] >= 0)
        shift = self.question_lengths_Q[self.window_question] + 2 - first
        return np.where(inside[:, None], answer + shift[:, None], 0)

    @cached_property
    def owned_ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last context piece that each window decides about: (W,) int64 each, in the context's numbering.

        A piece belongs to the window where its least-sided context, min(pieces to its left, pieces to its right), is
        largest (§5). Between two overlapping windows that is: up to the middle of the overlap the earlier one,
        beyond it the later one. So the owned ranges of a question's windows tile its context.
        """
        last = self.window_first + self.window_count - 1
        middle = (last[:-1] + self.window_first[1:]) // 2
        same = self.window_question[:-1] == self.window_question[1:]
        owned_first = np.zeros_like(last)
        owned_first[1:] = np.where(same, middle + 1, 0)
        owned_last = last.copy()
        owned_last[:-1] = np.where(same, middle, last[:-1])
        return owned_first, owned_last

    def packed(self, windows: Iterable[int]) -> PackedBatch[np.ndarray]:
        """These windows as one packed batch: `[CLS] question [SEP] part of the context [SEP]`."""
        pairs = []
        for window in np.asarray(windows, dtype=np.int64):
            question = self.window_question[window]
            begin = self.context_bounds[self.context_of_Q[question]] + self.window_first[window]
            pairs.append(
                (
                    self.question_pieces[self.question_bounds[question] : self.question_bounds[question + 1]],
                    self.context_pieces[begin : begin + self.window_count[window]],
                )
            )
        return pack_sequences(pairs, self.cls_id, self.sep_id)

    def select(self, questions: np.ndarray) -> QuestionSet:
        """The same contexts with only these questions, in this order."""
        questions = np.asarray(questions, dtype=np.int64)
        pieces = [
            self.question_pieces[a:b] for a, b in zip(self.question_bounds, self.question_bounds[1:], strict=False)
        ]
        kept = [pieces[q] for q in questions]
        part = replace(
            self,
            ids=[self.ids[q] for q in questions],
            context_of_Q=self.context_of_Q[questions],
            question_pieces=np.concatenate([np.zeros(0, np.int32), *kept]),
            question_bounds=_bounds([len(k) for k in kept]),
            answer_Q2=self.answer_Q2[questions],
            golds=None if self.golds is None else [self.golds[q] for q in questions],
        )
        return _with_windows(part)


def build_question_set(
    paragraphs: Iterable[Paragraph],
    tokenizer: Tokenizer,
    config: WindowConfig,
    *,
    keep_text: bool,
    malformed: Callable[[str, MalformedRecord], None],
    batch: int = 256,
) -> QuestionSet:
    """Tokenize paragraphs, `batch` at a time, and lay out their windows.

    keep_text: also keep contexts, gold answers and character offsets, which decoding needs.
    malformed: told about a context, question or answer in which the tokenizer finds no piece, such as one of control
               characters only; the record is left out if it returns (see `QAReader.malformed`).
    """
    empty = np.zeros(0, dtype=np.int32)
    context_parts, offset_parts, question_parts = [empty], [np.zeros((0, 2), dtype=np.int32)], [empty]
    context_lengths: list[int] = []
    ids: list[str] = []
    context_of: list[int] = []
    answers: list[tuple[int, int]] = []
    contexts: list[str] = []
    golds: list[tuple[str, ...]] = []
    truncated = 0
    for group in _batches(paragraphs, batch):
        questions = [question for paragraph in group for question in paragraph.questions]
        encoded_contexts = tokenizer.encode_batch([paragraph.context for paragraph in group])
        encoded_questions = iter(tokenizer.encode_batch([question.text for question in questions]))
        for paragraph, encoded in zip(group, encoded_contexts, strict=True):
            where = f'article "{paragraph.article}", paragraph {paragraph.number}'
            if not len(encoded.ids):
                malformed(where, MalformedRecord("no pieces: the context holds no text"))
            for question in paragraph.questions:
                pieces = next(encoded_questions).ids
                span = pieces_of(encoded.offsets, question.spans[0]) if question.spans else (-1, -1)
                if not len(encoded.ids):
                    continue
                if not len(pieces):
                    malformed(f"{where}, id {question.id}", MalformedRecord("no pieces: the question holds no text"))
                    continue
                if question.spans and span[0] > span[1]:
                    malformed(f"{where}, id {question.id}", MalformedRecord("no pieces: the answer holds no text"))
                    continue
                truncated += len(pieces) > config.max_question
                question_parts.append(pieces[: config.max_question])
                answers.append(span)
                ids.append(question.id)
                context_of.append(len(context_lengths))
                if keep_text:
                    golds.append(question.answers)
            context_lengths.append(len(encoded.ids))
            context_parts.append(encoded.ids)
            if keep_text:
                contexts.append(paragraph.context)
                offset_parts.append(encoded.offsets)
    nothing = np.zeros(0, dtype=np.int64)
    questions = QuestionSet(
        config=config,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        ids=ids,
        context_of_Q=np.array(context_of, dtype=np.int64),
        context_pieces=np.concatenate(context_parts),
        context_bounds=_bounds(context_lengths),
        question_pieces=np.concatenate(question_parts),
        question_bounds=_bounds([len(part) for part in question_parts[1:]]),
        answer_Q2=np.array(answers, dtype=np.int64).reshape(-1, 2),
        truncated=truncated,
        contexts=contexts if keep_text else None,
        context_offsets=np.concatenate(offset_parts) if keep_text else None,
        golds=golds if keep_text else None,
        window_question=nothing,
        window_first=nothing,
        window_count=nothing,
    )
    return _with_windows(questions)


def pieces_of(offsets: np.ndarray, span: tuple[int, int]) -> tuple[int, int]:
    """First and last piece that touch the characters [start, end) of `span`; first > last when none does."""
    first = int(np.searchsorted(offsets[:, 1], span[0], side="right"))
    last = int(np.searchsorted(offsets[:, 0], span[1], side="left")) - 1
    return first, last


def _with_windows(questions: QuestionSet) -> QuestionSet:
    """Lay windows over every question's context: steps of `stride` until the context's end is inside one."""
    lengths = np.diff(questions.context_bounds)[questions.context_of_Q]
    room = questions.config.window - SPECIALS - questions.question_lengths_Q
    stride = questions.config.stride
    count = 1 + np.maximum(0, -(-(lengths - room) // stride))
    window_question = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(window_question)) - np.repeat(np.cumsum(count) - count, count)
    first = place * stride
    return replace(
        questions,
        window_question=window_question,
        window_first=first,
        window_count=np.minimum(room[window_question], lengths[window_question] - first),
    )


def _bounds(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))]).astype(np.int64)


def _batches(paragraphs: Iterable[Paragraph], size: int) -> Iterator[list[Paragraph]]:
    iterator = iter(paragraphs)
    while group := list(itertools.islice(iterator, size)):
        yield group
