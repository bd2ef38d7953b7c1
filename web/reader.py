"""What the model does for the server: a batch of requests in, answers to all their questions out, in few model calls."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.retrieval.answer_documents import READ_WHOLE, DocumentAnswerer, DocumentAnswers, Place
from finetune.retrieval.confidence import Calibration
from finetune.retrieval.documents import Document
from finetune.retrieval.index import Index, Retriever, SearchFailed
from finetune.retrieval.opensearch import open_retriever
from finetune.retrieval.passages import cut_passages
from finetune.retrieval.sentences import sentence_around
from finetune.tasks.qa.answerer import Answer, QuestionAnswerer, ranked_answers
from spanbert.errors import UserError
from web.queue import Stopped

INDEXES_KEPT = 8  # of sets of uploaded documents, the latest used
TOKENS_ON_CPU = 4096  # of one forward pass: between two passes a request can be given up
TEXT_PLACE = ""  # document of an answer from the request's own text


@dataclass(frozen=True)
class Work:
    """The questions of one request, and one of: a text, documents, the server's index."""

    questions: tuple[str, ...]
    n_best: int = 3
    passages: int = 5
    text: str | None = None
    documents: tuple[Document, ...] = ()

    @property
    def cost(self) -> int:
        """Characters that the model reads for it, about."""
        return len(self.questions) * (len(self.text) if self.text is not None else 1000 * self.passages)


@dataclass(frozen=True)
class FoundAnswer:
    """An answer and its places, best first; "" and no places: no answer."""

    text: str
    score: float
    share: float | None  # softmax over the answers considered in a text
    confidence: float | None  # chance that it is right, where the model was calibrated
    confidence_words: str | None  # what that means, as measured
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Found:
    """What was found for one question. The last three are of a search, where there was one."""

    question: str
    answers: tuple[FoundAnswer, ...]
    words: tuple[str, ...]
    passages_read: int | None
    passages: int | None


class Refused(Exception):
    """The reader cannot answer this: a kind of problem, a sentence, and the field of the request (``web.problems``)."""

    def __init__(self, kind: str, detail: str, field: str | None) -> None:
        super().__init__(kind, detail, field)  # all of them, so that it can go from one process to another
        self.kind, self.detail, self.field = kind, detail, field


class Reader:
    """One model, and the index of the server if it has one. Used by one thread at a time."""

    def __init__(self, answerer: QuestionAnswerer, index: Retriever | None = None) -> None:
        if answerer.machine.device.type == "cpu":
            answerer.machine = replace(answerer.machine, tokens=min(TOKENS_ON_CPU, answerer.machine.tokens))
        self.answerer = answerer
        self.index = index
        self._indexes: OrderedDict[tuple[str, ...], Retriever] = OrderedDict()
        self._change = threading.Lock()  # documents are forgotten by another thread
        self._stop: Callable[[], bool] = lambda: False
        answerer.model.register_forward_pre_hook(self._before_model)

    def __call__(self, batch: Sequence[Work], stop: Callable[[], bool]) -> list[list[Found] | Exception]:
        """The answers of each request, or why it has none. Raises Stopped when ``stop()`` says so on the way."""
        self._stop = stop
        try:
            return self._answers(batch)
        finally:
            self._stop = lambda: False

    def _answers(self, batch: Sequence[Work]) -> list[list[Found] | Exception]:
        results: list[list[Found] | Exception | None] = [self.refusal(work) for work in batch]
        groups: dict[Any, list[int]] = {}
        for place, work in enumerate(batch):
            if results[place] is None:
                groups.setdefault(_group(work), []).append(place)
        for places in groups.values():
            for place, result in zip(places, self._together([batch[place] for place in places]), strict=True):
                results[place] = result
        return [result if result is not None else RuntimeError("left out") for result in results]

    def refusal(self, work: Work) -> Refused | None:
        """What is wrong with the questions as this model's tokenizer sees them."""
        longest = self.answerer.settings.max_question
        for number, encoded in enumerate(self.answerer.tokenizer.encode_batch(list(work.questions))):
            field, tokens = f"questions[{number}]", len(encoded.ids)
            if not tokens:
                return Refused("empty", f"{field} holds no text", field)
            if tokens > longest:
                detail = f"{field} has {tokens} tokens, this model reads questions of at most {longest}"
                return Refused("question-too-long", detail, field)
        return None

    def _together(self, works: Sequence[Work]) -> list[list[Found] | Exception]:
        """Requests of one group. Where one spoils the batch each is tried alone, and the others lose nothing."""
        text = works[0].text
        answer = self._over_passages if text is None else self._over_long_text if is_long(text) else self._over_texts
        try:
            return list(answer(works))
        except SearchFailed as error:
            return [Refused("search-failed", str(error), None) for _ in works]
        except UserError as error:
            if len(works) > 1:
                return [result for work in works for result in self._together([work])]
            return [Refused("invalid", str(error).rstrip(".") + ".", "text" if works[0].text is not None else None)]

    def _over_long_text(self, works: Sequence[Work]) -> list[list[Found]]:
        """A text of many passages is searched: the reader's scores do not compare over the whole of it."""
        (work,) = works
        answerer = DocumentAnswerer(self.answerer, Index.of([Document(TEXT_PLACE, "", work.text or "")]))
        answers = answerer.answer(work.questions, n_best=work.n_best, passages=work.passages)
        return [[_of_documents(one, answerer.calibration) for one in answers]]

    def _over_texts(self, works: Sequence[Work]) -> list[list[Found]]:
        """Texts read whole: all windows of all texts and questions go into one call."""
        texts = [work.text or "" for work in works]
        n_best = max(work.n_best for work in works)
        decoded = self.answerer.read(texts, [work.questions for work in works], n_best=n_best)
        threshold = self.answerer.settings.threshold
        return [
            [
                _of_text(question, text, ranked_answers(one, threshold)[: work.n_best])
                for question, one in zip(work.questions, ones, strict=True)
            ]
            for work, text, ones in zip(works, texts, decoded, strict=True)
        ]

    def _over_passages(self, works: Sequence[Work]) -> list[list[Found]]:
        """Questions about the same documents: their passages are read together."""
        answerer = DocumentAnswerer(self.answerer, self._retriever(works[0].documents))
        questions = [question for work in works for question in work.questions]
        answers = answerer.answer(questions, n_best=works[0].n_best, passages=works[0].passages)
        found = (_of_documents(one, answerer.calibration) for one in answers)
        return [[next(found) for _ in work.questions] for work in works]

    def _retriever(self, documents: tuple[Document, ...]) -> Retriever:
        if not documents:
            assert self.index is not None, "a question about the index of a server that has none"
            return self.index
        key = tuple(document.id for document in documents)
        with self._change:
            found = self._indexes.pop(key, None)
        index = found or Index.of(documents)
        with self._change:
            self._indexes[key] = index
            if len(self._indexes) > INDEXES_KEPT:
                self._indexes.popitem(last=False)
        return index

    def forget(self, documents: Iterable[str]) -> None:
        """Keep nothing of the uploaded documents of these ids."""
        gone = set(documents)
        with self._change:
            for key in [key for key in self._indexes if gone.intersection(key)]:
                del self._indexes[key]

    def _before_model(self, *_: object) -> None:
        if self._stop():
            raise Stopped


def _group(work: Work) -> object:
    """Requests with the same one are answered together."""
    if work.text is not None:
        return id(work) if is_long(work.text) else "text"
    return (work.n_best, work.passages, *(document.id for document in work.documents))


def is_long(text: str) -> bool:
    """Whether a text is searched rather than read whole."""
    return len(list(islice(cut_passages(text), READ_WHOLE + 1))) > READ_WHOLE


def _of_text(question: str, text: str, answers: Sequence[Answer]) -> Found:
    """The text is one passage, which nothing searched for."""
    found = []
    for answer in answers:
        low, high = sentence_around(text, answer.start, answer.end)
        place = Place(
            document=TEXT_PLACE,
            title="",
            section=None,
            start=answer.start,
            end=answer.end,
            before=text[low : answer.start],
            match=text[answer.start : answer.end],
            after=text[answer.end : high],
            sentence=text[low:high],
            sentence_start=low,
            passage_rank=0,
            retrieval_score=0.0,
            reader_score=answer.score,
        )
        places = () if answer.no_answer else (place,)
        found.append(FoundAnswer(answer.text, answer.score, answer.probability, None, None, places))
    return Found(question, tuple(found), (), None, None)


def _of_documents(found: DocumentAnswers, calibration: Calibration | None) -> Found:
    answers = []
    for one in found.answers:
        words = calibration.in_words(one.confidence) if calibration and one.confidence is not None else None
        answers.append(FoundAnswer(one.text, one.score, None, one.confidence, words, one.places))
    return Found(found.question, tuple(answers), found.words, found.passages_read, found.passages)


def load_reader(
    model: Path,
    index: Path | str | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
) -> Reader:
    """Raises UserError when there is no such model or index."""
    retriever = None if index is None else open_retriever(index)
    answerer = QuestionAnswerer.load(model, device=device, precision=precision, backend=backend)
    return Reader(answerer, retriever)
