"""Questions and contexts as token windows: `[CLS] question [SEP] part of the context [SEP]`, types 0 / 1 (§5).

Each context is tokenized once, however many questions it has; all tokens lie in one flat int32 array. A window is
three numbers (question, first context token, how many), so a data set costs about 12 bytes a context token at most
and building windows is arithmetic, not copying. Tokens are copied when a batch is packed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from finetune.token_texts import TokenTexts
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch, pack_sequences

SPECIALS = 3  # [CLS] and two [SEP]


@dataclass(frozen=True)
class WindowConfig:
    """How a context is cut. All three are in tokens."""

    window: int = 384
    """Length of a window, question and special tokens included."""
    stride: int = 128
    """Step from one window's first context token to the next one's."""
    max_question: int = 64
    """Tokens of the question that are kept; cut questions are counted and reported."""

    @property
    def room(self) -> int:
        """Context tokens of a window whose question is as long as may be."""
        return self.window - self.max_question - SPECIALS

    def check(self, max_positions: int) -> None:
        """UserError unless every window fits the encoder and consecutive windows of any question overlap."""
        if self.window > max_positions:
            raise UserError(
                f"window {self.window} is longer than the model's {max_positions} positions; lower --window."
            )
        if self.stride < 1 or self.max_question < 1:
            raise UserError(f"stride {self.stride} and max-question {self.max_question} must both be at least 1 token.")
        if self.stride >= self.room:
            raise UserError(
                f"stride {self.stride} must be below {self.room} (window {self.window} − question {self.max_question} − "
                f"{SPECIALS} special tokens), or text between windows would never be seen; lower --stride or raise --window."
            )


@dataclass(frozen=True)
class Questions:
    """Q questions, cut to what the model reads."""

    ids: list[str]
    texts: TokenTexts
    context_Q: np.ndarray  # int64, index of the context
    answer_Q2: np.ndarray  # int64, first and last context token of the first gold answer; -1 for none
    cut_Q: np.ndarray  # bool, whether the question was longer

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, chosen: np.ndarray) -> Questions:
        """Only these questions, in this order."""
        return Questions(
            [self.ids[q] for q in chosen],
            TokenTexts.of([self.texts[q] for q in chosen]),
            self.context_Q[chosen],
            self.answer_Q2[chosen],
            self.cut_Q[chosen],
        )


@dataclass(frozen=True)
class Windows:
    """W windows over the questions' contexts."""

    question_W: np.ndarray  # int64, ascending
    first_W: np.ndarray  # int64, first context token of the window
    count_W: np.ndarray  # int64, context tokens in the window

    @classmethod
    def over(
        cls, questions: Questions, contexts: TokenTexts, config: WindowConfig, stride_Q: np.ndarray | None = None
    ) -> Windows:
        """Steps of `stride`, or of each question's own, until the context's end is inside a window."""
        stride_Q = np.full(len(questions), config.stride) if stride_Q is None else stride_Q
        lengths_Q = contexts.lengths[questions.context_Q]
        room_Q = config.window - SPECIALS - questions.texts.lengths
        count_Q = 1 + np.maximum(0, -(-(lengths_Q - room_Q) // stride_Q))
        question_W = np.repeat(np.arange(len(count_Q)), count_Q)
        place_W = np.arange(len(question_W)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)
        first_W = place_W * stride_Q[question_W]
        return cls(question_W, first_W, np.minimum(room_Q[question_W], lengths_Q[question_W] - first_W))

    def __len__(self) -> int:
        return len(self.question_W)

    @property
    def last_W(self) -> np.ndarray:
        """Last context token of each window."""
        return self.first_W + self.count_W - 1

    @cached_property
    def owned(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last context token that each window decides about: (W,) int64 each, in the context's numbering.

        A token belongs to the window where its least-sided context, min(tokens to its left, tokens to its right), is
        largest (§5). Between two overlapping windows that is: up to the middle of the overlap the earlier one,
        beyond it the later one. So the owned ranges of a question's windows tile its context.
        """
        last = self.last_W
        middle = (last[:-1] + self.first_W[1:]) // 2
        same = self.question_W[:-1] == self.question_W[1:]
        owned_first = np.zeros_like(last)
        owned_first[1:] = np.where(same, middle + 1, 0)
        owned_last = last.copy()
        owned_last[:-1] = np.where(same, middle, last[:-1])
        return owned_first, owned_last


@dataclass(frozen=True)
class QuestionSet:
    """Tokenized questions about tokenized contexts, and their windows: all that training needs."""

    config: WindowConfig
    cls_id: int
    sep_id: int
    contexts: TokenTexts
    questions: Questions
    windows: Windows

    @property
    def examples(self) -> int:
        return len(self.questions)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(W,) tokens of each window, special tokens included."""
        return self.questions.texts.lengths[self.windows.question_W] + self.windows.count_W + SPECIALS

    @cached_property
    def bounds(self) -> np.ndarray:
        """(Q + 1,) int64: the windows of question q are bounds[q] … bounds[q + 1] − 1."""
        return np.searchsorted(self.windows.question_W, np.arange(self.examples + 1))

    @property
    def notes(self) -> list[str]:
        """What the model does not see of the texts."""
        cut = int(self.questions.cut_Q.sum())
        return [f"{cut:,} questions cut to {self.config.max_question} tokens"] if cut else []

    @cached_property
    def labels_W2(self) -> np.ndarray:
        """int64: first and last answer token within each window; (0, 0), `[CLS]`, where it is not all inside."""
        windows = self.windows
        answer = self.questions.answer_Q2[windows.question_W]
        inside = (answer[:, 0] >= windows.first_W) & (answer[:, 1] <= windows.last_W) & (answer[:, 0] >= 0)
        shift = self.questions.texts.lengths[windows.question_W] + 2 - windows.first_W
        return np.where(inside[:, None], answer + shift[:, None], 0)

    def labels(self, windows: np.ndarray) -> np.ndarray:
        """The rows of `labels_W2`."""
        return self.labels_W2[windows]

    def count(self, windows: np.ndarray) -> int:
        """Every window counts once in the mean loss."""
        return len(windows)

    def packed(self, windows: Iterable[int]) -> PackedBatch[np.ndarray]:
        """These windows as one packed batch: `[CLS] question [SEP] part of the context [SEP]`."""
        pairs = []
        for window in np.asarray(windows, dtype=np.int64):
            question = self.windows.question_W[window]
            begin = self.contexts.bounds[self.questions.context_Q[question]] + self.windows.first_W[window]
            part = self.contexts.tokens[begin : begin + self.windows.count_W[window]]
            pairs.append((self.questions.texts[question], part))
        return pack_sequences(pairs, self.cls_id, self.sep_id)

    def select(self, chosen: np.ndarray) -> QuestionSet:
        """The same contexts with only these questions, in this order."""
        questions = self.questions.select(np.asarray(chosen, dtype=np.int64))
        return replace(self, questions=questions, windows=Windows.over(questions, self.contexts, self.config))


@dataclass(frozen=True)
class TextQuestionSet(QuestionSet):
    """A question set with the texts that answers are cut from and scored against."""

    context_texts: list[str]
    offsets: np.ndarray  # flat (·, 2) int32: first and last + 1 character of each of `contexts.tokens`
    golds: list[tuple[str, ...]]  # of each question

    def select(self, chosen: np.ndarray) -> TextQuestionSet:
        """The same contexts with only these questions, in this order."""
        questions = self.questions.select(np.asarray(chosen, dtype=np.int64))
        windows = Windows.over(questions, self.contexts, self.config)
        return replace(self, questions=questions, windows=windows, golds=[self.golds[q] for q in chosen])
