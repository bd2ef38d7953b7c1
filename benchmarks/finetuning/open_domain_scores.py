"""What is kept of a search and of a reading, and what is counted of it afterwards: recall, exact match, F1.

A question's passages are read once, as many as the largest setting wants; every smaller one is those of the first ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.finetuning.encyclopedia import Asked
from finetune.retrieval.answer_documents import SPANS_PER_PASSAGE, Candidate, Place, Reading, ranked
from finetune.retrieval.combine import Combination, Features
from finetune.retrieval.confidence import Calibration
from finetune.retrieval.index import Hit, Retriever
from finetune.retrieval.reliability import auroc, calibration_error
from finetune.tasks.qa.decode import Decoded
from finetune.tasks.qa.metrics import normalize_answer, score_question

READER_ALONE = Combination(logit=1.0, null_margin=0.0, retrieval=0.0)


@dataclass(frozen=True)
class Found:
    """The ranks, from 1, at which a question's search first met something; None: it did not."""

    id: str
    answer: int | None  # a passage that holds a gold answer
    article: int | None  # one of the right article
    both: int | None  # one of the right article that holds a gold answer


@dataclass(frozen=True)
class Kept:
    """A candidate answer, without its surroundings."""

    text: str
    rank: int  # of its passage
    document: str
    start: int
    logit: float
    null_margin: float
    retrieval: float
    null_odds: float

    @classmethod
    def of(cls, one: Candidate) -> Kept:
        place, features = one.place, one.features
        return cls(
            one.text,
            place.passage_rank,
            place.document,
            place.start,
            features.logit,
            features.null_margin,
            features.retrieval,
            one.null_odds,
        )

    def candidate(self) -> Candidate:
        """As ``ranked`` takes it; what stood around it is left empty."""
        end = self.start + len(self.text)
        place = Place(
            document=self.document,
            title="",
            section=None,
            start=self.start,
            end=end,
            before="",
            match=self.text,
            after="",
            sentence="",
            passage_rank=self.rank,
            retrieval_score=self.retrieval,
            reader_score=self.logit,
            sentence_start=self.start,
        )
        features = Features(self.logit, self.null_margin, self.retrieval)
        return Candidate(self.text, place, features, self.null_odds)


@dataclass(frozen=True)
class Read:
    """A question's candidates of all passages read, and those of the paragraph that it was written for."""

    id: str
    kept: list[Kept]
    given: list[Kept]
    seconds: float  # of the processor, for finding and reading the passages

    @classmethod
    def of(cls, asked: Asked, reading: Reading, given: Decoded, seconds: float) -> Read:
        own = [
            Kept(one.text, 1, asked.article, one.start, one.score, one.score - given.null_score, 0.0, given.null_odds)
            for one in given.candidates[:SPANS_PER_PASSAGE]
        ]
        return cls(asked.id, [Kept.of(one) for one in reading.candidates], own, seconds)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Read:
        kept, given = ([Kept(**one) for one in entry[name]] for name in ("kept", "given"))
        return cls(entry["id"], kept, given, entry["seconds"])


def found_by(retriever: Retriever, asked: Asked, k: int) -> Found:
    """Search once and look where the answer and the article come first."""
    hits = retriever.search(asked.text, k)
    golds = [normal for answer in asked.answers if (normal := normalize_answer(answer))]
    holding, right = [], []
    for hit in hits:
        holding.append(holds(retriever, hit, golds))
        right.append(retriever.document_of(hit).title == asked.article)
    both = [one and other for one, other in zip(holding, right, strict=True)]
    return Found(asked.id, first(holding), first(right), first(both))


def holds(retriever: Retriever, hit: Hit, golds: Iterable[str]) -> bool:
    """Whether one of the normalised answers stands, in whole words, in the passage normalised in the same way."""
    text = f" {normalize_answer(retriever.document_of(hit).text[hit.start : hit.end])} "
    return any(f" {gold} " in text for gold in golds)


def first(marks: Sequence[bool]) -> int | None:
    """The place of the first true one, from 1."""
    return next((place for place, mark in enumerate(marks, 1) if mark), None)


def recall_rows(asked: dict[str, Asked], found: Sequence[Found], ks: Iterable[int]) -> list[dict[str, Any]]:
    """For each k the share of questions whose first k passages hold it, with its standard error."""
    rows, articles = [], [asked[one.id].article for one in found]
    for k in ks:
        row: dict[str, Any] = {"k": k, "questions": len(found)}
        for name in ("answer", "article", "both"):
            ranks = [getattr(one, name) for one in found]
            row[name] = mean_and_error([rank is not None and rank <= k for rank in ranks], articles)
        rows.append(row)
    return rows


def answer_rows(
    asked: dict[str, Asked],
    reads: Sequence[Read],
    ks: Iterable[int],
    combinations: dict[str, Combination],
    threshold: float | None,
) -> list[dict[str, Any]]:
    """EM and F1 for every number of passages and way of comparing; the right paragraph first.

    "best": as if the best of a question's candidates were always chosen. declining: with the model's threshold for "no
    answer"; otherwise some span is always given, as all of these questions have an answer.
    """
    articles = [asked[one.id].article for one in reads]
    rows = [_row("the right paragraph", 1, reads, asked, [one.given for one in reads], READER_ALONE, threshold)]
    for k in ks:
        kept = [[candidate for candidate in one.kept if candidate.rank <= k] for one in reads]
        rows += [_row(way, k, reads, asked, kept, one, threshold) for way, one in combinations.items()]
        best = [
            max(_score(asked[one.id], answer) for answer in {"", *(c.text for c in candidates)})
            for one, candidates in zip(reads, kept, strict=True)
        ]
        rows.append({"way": "best", "passages": k, "forced": _means(best, articles)})
    return rows


def _row(
    way: str,
    k: int,
    reads: Sequence[Read],
    asked: dict[str, Asked],
    kept: Sequence[Sequence[Kept]],
    combination: Combination,
    threshold: float | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"way": way, "passages": k}
    for name, limit in (("forced", None), ("declining", threshold)):
        if name == "declining" and threshold is None:
            continue
        answers = [best_answer(candidates, combination, limit) for candidates in kept]
        scores = [_score(asked[one.id], answer) for one, answer in zip(reads, answers, strict=True)]
        row[name] = _means(scores, [asked[one.id].article for one in reads])
    return row


def best_answer(kept: Sequence[Kept], combination: Combination, threshold: float | None) -> str:
    """ "" where nothing was found, or where the threshold says so."""
    if not kept:
        return ""
    return ranked([one.candidate() for one in kept], combination, threshold)[0].text


def confidence_rows(
    asked: dict[str, Asked],
    reads: Sequence[Read],
    ks: Iterable[int],
    calibrations: dict[str, Calibration],
    threshold: float | None,
) -> list[dict[str, Any]]:
    """How sure each calibration is of the questions that are answered, "no answer" left out, and how often it is right."""
    rows = []
    for k in ks:
        for way, calibration in calibrations.items():
            sure, right = [], []
            for one in reads:
                kept = [candidate.candidate() for candidate in one.kept if candidate.rank <= k]
                best = ranked(kept, calibration.combination, threshold)[0] if kept else None
                if best is not None and best.text:
                    sure.append(calibration.confidence(best.evidence))
                    right.append(_score(asked[one.id], best.text)[0])
            row: dict[str, Any] = {"way": way, "passages": k, "answered": len(sure)}
            if sure:
                sure_N, right_N = np.array(sure), np.array(right)
                row |= {"confidence": float(sure_N.mean()), "right": float(right_N.mean())}
                row |= {"ece": calibration_error(sure_N, right_N), "auroc": auroc(sure_N, right_N)}
            rows.append(row)
    return rows


def _score(asked: Asked, answer: str) -> tuple[float, float]:
    return score_question(answer, asked.answers, version_2=False)


def _means(scores: Sequence[tuple[float, float]], articles: Sequence[str]) -> dict[str, Any]:
    exact, f1 = zip(*scores, strict=True)
    return {"exact": mean_and_error(exact, articles), "f1": mean_and_error(f1, articles)}


def mean_and_error(values: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """The mean over questions, and its standard error where those of a group, an article, are alike (cluster-robust)."""
    array = np.array(values, dtype=np.float64)
    numbers = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(numbers, weights=array - array.mean())
    correction = len(sums) / max(1, len(sums) - 1)
    return {"mean": float(array.mean()), "error": float((correction * (sums**2).sum()) ** 0.5 / len(array))}
