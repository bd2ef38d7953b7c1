"""From start and end logits to answers: n-best spans per question, the null score, exact substrings (§5).

A span is scored start logit + end logit. Every pair with end ≥ start and at most `max_answer` tokens is looked at,
not only pairs of the best starts and ends, so the n-best list is exact. A start counts in one window only, the one
with most context around it (see `Windows.owned`), so no span comes twice.

Tokens need not end where characters do, as people see them: where accents are stripped, the accent of "e" + U+0301
belongs to no token. An answer begins and ends with whole ones.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from finetune.tasks.qa.features import TextQuestionSet, Windows

JOINER = "\u200d"


@dataclass(frozen=True)
class DecodeConfig:
    """How answers are chosen."""

    n_best: int = 20
    """Spans kept for each question."""
    max_answer: int = 30
    """Longest answer, in tokens."""


@dataclass(frozen=True)
class Candidate:
    """A span of the context: text == context[start:end]."""

    text: str
    start: int
    end: int
    score: float  # start logit + end logit
    probability: float  # softmax of the scores over the n-best list, and over the null score where it may be chosen


@dataclass(frozen=True)
class Decoded:
    """All that is known about one question: its best spans, best first, and the score of answering nothing."""

    id: str
    candidates: tuple[Candidate, ...]
    null_score: float

    @property
    def null_odds(self) -> float:
        """Null score − best span score: the higher, the likelier that there is no answer."""
        return self.null_score - self.candidates[0].score

    def answer(self, threshold: float | None) -> str:
        """The best span's text; "" when the null odds exceed `threshold`. None: always a span (SQuAD 1.1)."""
        if threshold is not None and self.null_odds > threshold:
            return ""
        return self.candidates[0].text


def best_pairs(start_N: np.ndarray, end_M: np.ndarray, max_answer: int, n_best: int) -> tuple[np.ndarray, ...]:
    """The `n_best` best (start, end) pairs with start ≤ end < start + max_answer, best first.

    start_N: scores of the first N positions as starts; end_M: scores of M ≥ N positions as ends.
    Returns (starts, ends, scores), each of min(n_best, number of pairs); ties go to the earlier, then shorter span.
    """
    starts = len(start_N)
    max_answer = min(max_answer, len(end_M))
    padded = np.concatenate([end_M, np.full(max_answer, -np.inf, dtype=end_M.dtype)])
    scores = (start_N[:, None] + sliding_window_view(padded, max_answer)[:starts]).ravel()
    keep = min(n_best, scores.size)
    worst = np.partition(scores, scores.size - keep)[scores.size - keep]
    chosen = np.flatnonzero(scores >= worst)
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:keep]
    chosen = chosen[np.isfinite(scores[chosen])]
    return chosen // max_answer, chosen // max_answer + chosen % max_answer, scores[chosen]


def decode_question(
    questions: TextQuestionSet,
    question: int,
    logits: Sequence[np.ndarray],
    config: DecodeConfig,
    *,
    null_allowed: bool,
) -> Decoded:
    """Merge the windows of one question. `logits`: for each window its start and end logits, (2, tokens) float."""
    windows = range(questions.bounds[question], questions.bounds[question + 1])
    skip = int(questions.questions.texts.lengths[question]) + 2
    found = []
    null_score = math.inf
    for window, (start, end) in zip(windows, logits, strict=True):
        null_score = min(null_score, float(start[0]) + float(end[0]))
        found.append(_spans_of_window(questions.windows, window, start[skip:], end[skip:], config))
    sums, begins, lasts = (np.concatenate(arrays) for arrays in zip(*found, strict=True))  # of a long text, millions
    context = int(questions.questions.context_Q[question])
    spans = _distinct(questions, context, sums, begins, lasts, config.n_best)
    text = questions.context_texts[context]
    scores = [score for score, _, _ in spans]
    shares = softmax([*scores, null_score] if null_allowed else scores)
    candidates = tuple(
        Candidate(text[from_:to], from_, to, score, share)
        for (score, from_, to), share in zip(spans, shares, strict=False)
    )
    return Decoded(questions.questions.ids[question], candidates, null_score)


def _spans_of_window(
    windows: Windows, window: int, start: np.ndarray, end: np.ndarray, config: DecodeConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, first and last tokens, in the context, of the best spans that start in what the window owns.

    start, end: logits from the window's first context token on.
    """
    owned_first, owned_last = windows.owned
    first, count = int(windows.first_W[window]), int(windows.count_W[window])
    low, high = int(owned_first[window]) - first, int(owned_last[window]) - first + 1
    begins, ends, scores = best_pairs(start[low:high], end[low:count], config.max_answer, config.n_best)
    shift = first + low
    return scores, begins + shift, ends + shift


def _distinct(
    questions: TextQuestionSet, context: int, scores: np.ndarray, begins: np.ndarray, lasts: np.ndarray, n_best: int
) -> list[tuple[float, int, int]]:
    """(score, from, to) in characters of the context; a text that occurs twice is listed once, where it scores best."""
    text, base = questions.context_texts[context], int(questions.contexts.bounds[context])
    spans, seen = [], set()
    for place in np.lexsort((lasts, begins, -scores)):
        begin, last = int(begins[place]), int(lasts[place])
        from_, to = whole_clusters(
            text, int(questions.offsets[base + begin, 0]), int(questions.offsets[base + last, 1])
        )
        if text[from_:to] not in seen:
            seen.add(text[from_:to])
            spans.append((float(scores[place]), from_, to))
        if len(spans) == n_best:
            break
    return spans


def whole_clusters(text: str, start: int, end: int) -> tuple[int, int]:
    """The least stretch of whole clusters that holds text[start:end].

    A cluster is a character with the combining marks, variation selectors and skin tones that follow it, and emoji that
    are joined by U+200D (the part of UAX #29, "Unicode Text Segmentation", that tokens can cut).
    """
    while end < len(text) and _continues(text, end):
        end += 1
    while start > 0 and _continues(text, start) and not text[start - 1].isspace():
        start -= 1
    return start, end


def _continues(text: str, place: int) -> bool:
    """Whether the character there belongs to the cluster of the one before it."""
    character = text[place]
    if character < "\u0300":
        return False
    if unicodedata.category(character)[0] == "M" or "\U0001f3fb" <= character <= "\U0001f3ff":
        return True
    if character == JOINER:
        return place + 1 < len(text) and unicodedata.category(text[place + 1]) == "So"
    return text[place - 1] == JOINER and place > 1 and unicodedata.category(character) == "So"


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
