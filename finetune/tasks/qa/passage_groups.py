"""Questions that are trained on over several passages at once: `spanbert finetune qa --passages N`.

Their windows share one softmax (``finetune.tasks.qa.shared_loss``), so that scores of different passages compare. What the
training loop orders, cuts into micro-batches and shares out to ranks is here no window but a group: a question with all
windows of all its passages. So no group is ever cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from finetune.tasks.qa.features import QuestionSet, Windows
from spanbert.model.batch import PackedBatch

#: Other paragraphs of a question from which each epoch draws, or as many as are asked for.
NEAREST = 10
#: Second word of the seed, so that the draw is not that of an epoch's order.
STREAM = 0x9A55


@dataclass(frozen=True, eq=False)  # hashed as one object
class PassageGroups:
    """Features, of ``finetune.task``, in which a question is one group; see ``finetune.epoch_draws``."""

    unit: ClassVar[str] = "groups of passages"

    own: QuestionSet
    """The questions over their own contexts."""
    passages: int
    """Of a question, its own one and negatives; fewer where there are fewer of these."""
    near_QK: np.ndarray  # int32, contexts to draw from for each question; −1 for none
    drawn_QN: np.ndarray  # int32, those that were drawn

    @classmethod
    def of(cls, own: QuestionSet, near_QK: np.ndarray, passages: int) -> PassageGroups:
        """With ``passages`` − 1 negatives a question, the nearest ones as long as no epoch has drawn."""
        return cls(own, passages, near_QK, near_QK[:, : passages - 1])

    def in_epoch(self, seed: int, epoch: int) -> PassageGroups:
        """With the negatives of this epoch, each of those there are as likely as another."""
        key_QK = np.random.default_rng([seed, STREAM, epoch]).random(self.near_QK.shape)
        key_QK[self.near_QK < 0] = 2.0  # last
        order_QN = np.argsort(key_QK, axis=1)[:, : self.passages - 1]
        return replace(self, drawn_QN=np.take_along_axis(self.near_QK, order_QN, axis=1))

    @cached_property
    def _pairs(self) -> tuple[QuestionSet, np.ndarray]:
        """Each (question, passage) as a question by itself, and where each group's windows begin: (Q + 1,)."""
        contexts_QP = np.concatenate([self.own.questions.context_Q[:, None], self.drawn_QN], axis=1)
        question_P, place_P = np.nonzero(contexts_QP >= 0)  # by question, its own passage first
        pairs = self.own.questions.select(question_P)
        pairs = replace(
            pairs,
            context_Q=contexts_QP[question_P, place_P],
            answer_Q2=np.where(place_P[:, None] == 0, pairs.answer_Q2, -1),
        )
        windows = Windows.over(pairs, self.own.contexts, self.own.config)
        found = replace(self.own, questions=pairs, windows=windows)
        return found, found.bounds[np.searchsorted(question_P, np.arange(self.examples + 1))]

    def windows_of(self, groups: np.ndarray) -> np.ndarray:
        """The windows of these groups, one group after the other."""
        bounds = self._pairs[1]
        return np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(bounds[group], bounds[group + 1]) for group in groups)]
        )

    @property
    def examples(self) -> int:
        return self.own.examples

    @cached_property
    def lengths(self) -> np.ndarray:
        """(Q,) int64: tokens of each group."""
        pairs, bounds = self._pairs
        return np.add.reduceat(pairs.lengths, bounds[:-1])

    @property
    def bounds(self) -> np.ndarray:
        """(Q + 1,) int64: a question is one group."""
        return np.arange(self.examples + 1)

    @property
    def notes(self) -> list[str]:
        """What the model does not see, and what is drawn."""
        asked_Q = self.own.questions.answer_Q2[:, 0] >= 0
        found_Q = (self.near_QK >= 0).sum(axis=1)
        notes = [
            *self.own.notes,
            f"a question is trained on over {self.passages} passages: its paragraph, and others of its article, drawn in each "
            f"epoch from the {self.near_QK.shape[1]} nearest without its answer; --batch-size and --micro-batch-size count "
            "questions",
        ]
        fewer = int((asked_Q & (found_Q < self.passages - 1)).sum())
        if fewer:
            none = int((asked_Q & (found_Q == 0)).sum())
            notes.append(f"{fewer:,} questions have fewer such paragraphs, and {none:,} of them none")
        if not asked_Q.all():
            notes.append(f"{int((~asked_Q).sum()):,} questions without an answer stay with their own paragraph")
        return notes

    def packed(self, windows: np.ndarray) -> PackedBatch[np.ndarray]:
        """All windows of these groups as one packed batch."""
        return self._pairs[0].packed(self.windows_of(windows))

    def labels(self, windows: np.ndarray) -> np.ndarray:
        """(B, 3) int64 for the B windows of these groups: first and last answer token as in ``QuestionSet``, and the group."""
        pairs, bounds = self._pairs
        group_B = np.repeat(windows, np.diff(bounds)[windows])
        return np.concatenate([pairs.labels(self.windows_of(windows)), group_B[:, None]], axis=1)

    def count(self, windows: np.ndarray) -> int:
        """Every question counts once in the mean loss, however many windows it has."""
        return len(windows)

    def select(self, chosen: np.ndarray) -> PassageGroups:
        """Only these questions, in this order."""
        return PassageGroups(self.own.select(chosen), self.passages, self.near_QK[chosen], self.drawn_QN[chosen])
