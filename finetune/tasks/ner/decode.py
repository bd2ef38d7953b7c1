"""From a model's logits to entities: the best legal sequence of tags, and how probable each of its entities is.

A sequence's probability is the product of its words' softmax probabilities, divided by the sum of the same over all legal
sequences. The best one is found by Viterbi's algorithm. An entity's probability is the sum over all legal sequences in
which exactly these words are one entity of this type (forward-backward algorithm).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from finetune.tasks.ner.schemes import Entity, Tag, begins, entities_of, may_begin, may_end, may_follow

TINY = 1e-300  # in place of a probability that underflowed: something legal must stay possible


class FoundEntity(NamedTuple):
    entity: Entity
    probability: float


class TagDecoder:
    """Decodes logits over these labels.

    The scheme is that of the labels: BIOES where there are E- or S-, IOB2 where there are B-, and else (I- only) every
    sequence is legal.
    """

    def __init__(self, labels: Sequence[str]):
        self.tags = [Tag.of(label) for label in labels]
        letters = {tag.letter for tag in self.tags}
        scheme = "BIOES" if letters & {"E", "S"} else "IOB2" if "B" in letters else "IOB1"
        self.begin_L = np.array([may_begin(tag, scheme) for tag in self.tags])
        self.end_L = np.array([may_end(tag, scheme) for tag in self.tags])
        self.legal_LL = np.array([[may_follow(before, tag, scheme) for tag in self.tags] for before in self.tags])
        #: whether the second tag goes on with the entity of the first
        self.continues_LL = np.array(
            [[tag.letter != "O" and not begins(before, tag) for tag in self.tags] for before in self.tags]
        )

    def best(self, logits_NL: np.ndarray) -> np.ndarray:
        """The best legal sequence of labels for N words: (N,) int64."""
        score_NL = _log_softmax(logits_NL)
        jump_LL = np.where(self.legal_LL, 0.0, -np.inf)
        back_NL = np.zeros(score_NL.shape, dtype=np.int64)
        best_L = np.where(self.begin_L, score_NL[0], -np.inf)
        for n in range(1, len(score_NL)):
            through_LL = best_L[:, None] + jump_LL
            back_NL[n] = through_LL.argmax(0)
            best_L = through_LL.max(0) + score_NL[n]
        path_N = np.zeros(len(score_NL), dtype=np.int64)
        path_N[-1] = np.where(self.end_L, best_L, -np.inf).argmax()
        for n in range(len(score_NL) - 1, 0, -1):
            path_N[n - 1] = back_NL[n, path_N[n]]
        return path_N

    def decode(self, logits_NL: np.ndarray) -> list[FoundEntity]:
        """The entities of the best legal sequence for N words, with their probabilities."""
        if not len(logits_NL):
            return []
        path_N = self.best(logits_NL)
        entities = entities_of([self.tags[label] for label in path_N])
        if not entities:
            return []
        p_NL = np.maximum(np.exp(_log_softmax(logits_NL)), TINY)
        forward_NL, scale_N = self._forward(p_NL)
        backward_NL = self._backward(p_NL, scale_N)
        total = float(forward_NL[-1] @ self.end_L)
        found = []
        for entity in entities:
            first, last = entity.first, entity.stop - 1
            path = path_N[first : entity.stop]
            if first:
                before_L = self.legal_LL[:, path[0]] & ~self.continues_LL[:, path[0]]
                weight = float(forward_NL[first - 1] @ before_L)
            else:
                weight = 1.0
            weight *= float(np.prod(p_NL[np.arange(first, entity.stop), path] / scale_N[first : entity.stop]))
            if entity.stop < len(p_NL):
                after_L = self.legal_LL[path[-1]] & ~self.continues_LL[path[-1]]
                weight *= float((p_NL[last + 1] * backward_NL[last + 1]) @ after_L) / float(scale_N[last + 1])
            found.append(FoundEntity(entity, min(weight / total, 1.0)))
        return found

    def _forward(self, p_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For every label the share of the sequences up to a word that end in it, and what the shares were divided by."""
        forward_NL, scale_N = np.zeros_like(p_NL), np.zeros(len(p_NL))
        reach_L = self.begin_L.astype(np.float64)
        for n, p_L in enumerate(p_NL):
            row_L = reach_L * p_L
            scale_N[n] = row_L.sum()
            forward_NL[n] = row_L / scale_N[n]
            reach_L = forward_NL[n] @ self.legal_LL
        return forward_NL, scale_N

    def _backward(self, p_NL: np.ndarray, scale_N: np.ndarray) -> np.ndarray:
        """For every label the weight of all that may follow it, divided likewise."""
        backward_NL = np.zeros_like(p_NL)
        backward_NL[-1] = self.end_L
        for n in range(len(p_NL) - 1, 0, -1):
            backward_NL[n - 1] = self.legal_LL @ (p_NL[n] * backward_NL[n]) / scale_N[n]
        return backward_NL


def _log_softmax(logits_NL: np.ndarray) -> np.ndarray:
    x_NL = logits_NL.astype(np.float64)
    x_NL = x_NL - x_NL.max(1, keepdims=True)
    return x_NL - np.log(np.exp(x_NL).sum(1, keepdims=True))
