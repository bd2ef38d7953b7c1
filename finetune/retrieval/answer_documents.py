"""Answers over many passages: some are found, read in one packed batch, and their answers compared and merged.

A reader that was trained passage by passage gives logits that do not compare between passages: taking the best logit over
all of a long text finds the right answer less often the more text there is. So few passages are read, those that share
most with the question, and what the reader and the search say is added up (Yang et al. 2019, BERTserini).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from finetune.retrieval.combine import DEFAULT_COMBINATION, Combination, Features
from finetune.retrieval.confidence import Calibration, Evidence, Search, load_calibration, shares_and_margins
from finetune.retrieval.documents import Document
from finetune.retrieval.index import Hit, Retriever
from finetune.retrieval.sentences import sentence_around
from finetune.retrieval.terms import terms, words
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.decode import Decoded
from finetune.tasks.qa.metrics import normalize_answer
from spanbert.errors import UserError

SPANS_PER_PASSAGE = 5  # answers of one passage that are compared with those of the others
READ_WHOLE = 3  # passages of a text that is read as a whole: it fits a window, or nearly
READ_WITHOUT_SEARCH = 32  # passages that are all read when none shares a word with the question


@dataclass(frozen=True)
class Place:
    """Where an answer stands: document.text[start:end] == match."""

    document: str  # id
    title: str
    section: str | None
    start: int  # code points in the document's text
    end: int
    before: str  # the passage up to the answer
    match: str
    after: str  # the rest of the passage
    sentence: str
    passage_rank: int  # from 1
    retrieval_score: float  # BM25
    reader_score: float  # start logit + end logit
    sentence_start: int  # code point where the sentence begins in the document's text


@dataclass(frozen=True)
class DocumentAnswer:
    """An answer, with all places among the passages read where it was found. "" and no places: no answer."""

    text: str
    score: float
    confidence: float | None  # chance that it is right, where the model was calibrated
    places: tuple[Place, ...]  # best first

    @property
    def no_answer(self) -> bool:
        return not self.text


@dataclass(frozen=True)
class DocumentAnswers:
    """What was found for one question."""

    question: str
    answers: tuple[DocumentAnswer, ...]
    passages_read: int
    passages: int
    milliseconds: float
    words: tuple[str, ...]  # of the question, which stand in the passages read


@dataclass(frozen=True)
class Candidate:
    """One span of one passage, with what is known of it."""

    text: str
    place: Place
    features: Features
    null_odds: float  # of its passage: null score − best span's score


@dataclass(frozen=True)
class RankedAnswer:
    """A distinct answer among a question's candidates, and those that give it, best first. "": no answer."""

    text: str
    score: float
    candidates: tuple[Candidate, ...]
    evidence: Evidence


@dataclass(frozen=True)
class Reading:
    """One question and the passages read for it."""

    question: str
    hits: list[Hit]
    candidates: list[Candidate]
    words: tuple[str, ...]


class DocumentAnswerer:
    """A reader over what a retriever finds."""

    def __init__(
        self, answerer: QuestionAnswerer, retriever: Retriever, calibration: Calibration | None = None
    ) -> None:
        """Without a calibration the one is taken that lies in the model's folder for this way of asking, if any.

        Where there is one for another way alone, scores are added up by its weights, and no confidence is stated.
        """
        self.answerer = answerer
        self.retriever = retriever
        ways: tuple[Search, Search] = ("text", "documents")
        own, other = ways if retriever.document_count == 1 else ways[::-1]
        self.calibration = calibration or load_calibration(answerer.folder, own)
        known = self.calibration or load_calibration(answerer.folder, other)
        self.combination = known.combination if known else DEFAULT_COMBINATION

    @property
    def can_decline(self) -> bool:
        """Whether the model was trained to say that there is no answer."""
        return self.answerer.settings.null_allowed

    def answer(self, questions: Sequence[str], *, n_best: int = 3, passages: int = 5) -> list[DocumentAnswers]:
        """For each question its best answers from the `passages` best passages.

        milliseconds: the time for all questions, divided by their number, for they are read together.
        Raises UserError for a question without text or longer than the model reads.
        """
        begin = time.perf_counter()
        readings = self.read(questions, passages)
        answers = [self._answers(reading, n_best) for reading in readings]
        milliseconds = 1000 * (time.perf_counter() - begin) / max(1, len(questions))
        return [
            DocumentAnswers(one.question, found, len(one.hits), self.retriever.passages, milliseconds, one.words)
            for one, found in zip(readings, answers, strict=True)
        ]

    def read(self, questions: Sequence[str], passages: int) -> list[Reading]:
        """Find and read: the candidates of each question, not yet compared."""
        hits_Q = [self._hits(question, passages) for question in questions]
        texts: dict[tuple[int, int, int], list[int]] = {}  # passage → the questions that found it
        for number, hits in enumerate(hits_Q):
            for hit in hits:
                texts.setdefault((hit.document, hit.start, hit.end), []).append(number)
        documents = {hit.document: self.retriever.document_of(hit) for hits in hits_Q for hit in hits}
        decoded = self.answerer.read(
            [documents[document].text[start:end] for document, start, end in texts],
            [[questions[number] for number in numbers] for numbers in texts.values()],
            n_best=SPANS_PER_PASSAGE,
        )
        by_pair = {
            (number, passage): one
            for (passage, numbers), ones in zip(texts.items(), decoded, strict=True)
            for number, one in zip(numbers, ones, strict=True)
        }
        readings = []
        for number, (question, hits) in enumerate(zip(questions, hits_Q, strict=True)):
            ones = [by_pair[number, (hit.document, hit.start, hit.end)] for hit in hits]
            candidates = [
                candidate
                for hit, one in zip(hits, ones, strict=True)
                for candidate in candidates_of(documents[hit.document], hit, one)
            ]
            read = (documents[hit.document].text[hit.start : hit.end] for hit in hits)
            readings.append(Reading(question, hits, candidates, words_found(question, read)))
        return readings

    def _hits(self, question: str, passages: int) -> list[Hit]:
        if not question.strip():
            raise UserError("a question holds no text.")
        hits = self.retriever.search(question, passages)
        if not hits and self.retriever.passages <= READ_WITHOUT_SEARCH:
            return [self.retriever.passage(number) for number in range(self.retriever.passages)]
        return hits

    def _answers(self, reading: Reading, n_best: int) -> tuple[DocumentAnswer, ...]:
        if not reading.candidates:
            return (DocumentAnswer("", 0.0, None, ()),)
        found = ranked(reading.candidates, self.combination, self.answerer.settings.threshold)[:n_best]
        return tuple(
            DocumentAnswer(
                one.text,
                one.score,
                self.calibration.confidence(one.evidence) if self.calibration else None,
                places_of(one.candidates) if one.text else (),
            )
            for one in found
        )


def candidates_of(document: Document, hit: Hit, decoded: Decoded) -> list[Candidate]:
    """The best spans of one passage, with their places in the document."""
    found = []
    for span in decoded.candidates[:SPANS_PER_PASSAGE]:
        start, end = hit.start + span.start, hit.start + span.end
        low, high = sentence_around(document.text, start, end)
        place = Place(
            document=document.id,
            title=document.title,
            section=document.section_at(start),
            start=document.offset + start,
            end=document.offset + end,
            before=document.text[min(low, hit.start) : start],
            match=document.text[start:end],
            after=document.text[end : max(high, hit.end)],
            sentence=document.text[low:high],
            passage_rank=hit.rank,
            retrieval_score=hit.score,
            reader_score=span.score,
            sentence_start=document.offset + low,
        )
        features = Features(span.score, span.score - decoded.null_score, hit.score)
        found.append(Candidate(span.text, place, features, decoded.null_odds))
    return found


def ranked(candidates: Sequence[Candidate], combination: Combination, threshold: float | None) -> list[RankedAnswer]:
    """Distinct answers, best first; texts that are the same to SQuAD's metric are one answer.

    threshold: "no answer" comes first when the null odds of the best answer's passage exceed it; None: it takes no part.
    """
    scored = sorted(((combination.score(one.features), one) for one in candidates), key=lambda pair: -pair[0])
    groups: dict[str, list[tuple[float, Candidate]]] = {}
    for score, candidate in scored:
        groups.setdefault(answer_key(candidate.text), []).append((score, candidate))
    best = scored[0][1]
    declines = threshold is not None and best.null_odds > threshold
    answers = []
    if declines:
        assert threshold is not None
        evidence = Evidence(first=1.0, declined=1.0, declined_odds=best.null_odds - threshold)
        answers.append(RankedAnswer("", scored[0][0], (best,), evidence))
    numbers = shares_and_margins([group[0][0] for group in groups.values()])
    for place, (group, (log_odds, margin)) in enumerate(zip(groups.values(), numbers, strict=True)):
        top = group[0][1]
        evidence = Evidence(
            log_odds=log_odds,
            margin=margin,
            first=float(place == 0 and not declines),
            logit=top.features.logit,
            null_odds=top.null_odds,
            retrieval=top.features.retrieval,
            places=math.log(len(group)),
        )
        answers.append(RankedAnswer(top.text, group[0][0], tuple(one for _, one in group), evidence))
    return answers


def surer_than(found: DocumentAnswers, confidence: float) -> DocumentAnswers:
    """Without the answers that are less sure; with nothing but "no answer" where none is left."""
    kept = tuple(one for one in found.answers if one.confidence is not None and one.confidence >= confidence)
    return replace(found, answers=kept or (DocumentAnswer("", 0.0, None, ()),))


def answer_key(text: str) -> str:
    """The same for answers that count as one."""
    return normalize_answer(text) or text


def places_of(candidates: Iterable[Candidate]) -> tuple[Place, ...]:
    """Without those that overlap a better one: "the engine" beside "engine", or what two passages share."""
    places: list[Place] = []
    for candidate in candidates:
        new = candidate.place
        if not any(one.document == new.document and one.start < new.end and new.start < one.end for one in places):
            places.append(new)
    return tuple(places)


def words_found(question: str, texts: Iterable[str]) -> tuple[str, ...]:
    """The words of the question, as written there, of which one of the texts has a term."""
    present = {term for text in texts for term in terms(text)}
    return tuple(dict.fromkeys(word for word, found in words(question) if present.intersection(found)))
