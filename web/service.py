"""Between the routes and the model: a request's work is queued, waited for until its deadline, and put into words."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from starlette.requests import Request

from finetune.retrieval.answer_documents import Place
from finetune.retrieval.documents import Document
from finetune.retrieval.index import Retriever, SearchFailed
from finetune.tasks.qa.answerer import QuestionAnswerer
from spanbert.files import sha256
from web.config import Limits
from web.documents import DocumentStore
from web.metrics import Metrics
from web.problems import Problem
from web.queue import BatchQueue, Busy, Job, Runner, Stopped
from web.reader import Found, FoundAnswer, Refused, Work
from web.schemas import AnswerOut, AnswersResponse, ModelOut, PlaceOut, QuestionOut

FINGERPRINTED = (
    "config.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "tokenizer.json",
    "vocab.txt",
    "calibration.json",
)
BATCH_COST = 400_000  # characters read in one model call, about; a request that needs more is run alone
SHARE = (
    "share is the model's weight on this answer among those it considered in this text. It says how far an answer is "
    "ahead of the others, not how often such an answer is right."
)
NO_CONFIDENCE = "This model was not calibrated: how often an answer like this is right has not been measured."
CALIBRATED = "confidence is the chance that the answer is right, as measured on questions that the model had not seen."
NEVER_DECLINES = (
    "This model cannot say that there is no answer: it names a passage even where the text does not hold the answer."
)


@dataclass(frozen=True)
class ModelInfo:
    """What the server says about its model."""

    name: str
    fingerprint: str
    can_decline: bool
    parameters: int
    precision: str
    settings: dict[str, int]
    calibration: dict[str, Any] | None
    card: str | None

    @classmethod
    def of(cls, folder: Path, answerer: QuestionAnswerer) -> ModelInfo:
        """``folder``: where the model's files are."""
        settings = answerer.settings
        calibration, card = folder / "calibration.json", folder / "README.md"
        return cls(
            name=folder.resolve().name,
            fingerprint=fingerprint(folder),
            can_decline=settings.null_allowed,
            parameters=sum(parameter.numel() for parameter in answerer.model.parameters()),
            precision=answerer.machine.precision,
            settings={
                "window": settings.window,
                "stride": settings.stride,
                "longest_question": settings.max_question,
                "longest_answer": settings.max_answer,
            },
            calibration=json.loads(calibration.read_text(encoding="utf-8")) if calibration.is_file() else None,
            card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
        )

    @property
    def brief(self) -> ModelOut:
        return ModelOut(
            name=self.name,
            fingerprint=self.fingerprint,
            can_decline=self.can_decline,
            calibrated=self.calibration is not None,
        )

    @property
    def notes(self) -> list[str]:
        """What a reader of its answers has to know."""
        return [] if self.can_decline else [NEVER_DECLINES]

    @property
    def confidence(self) -> str:
        return f"{CALIBRATED if self.calibration is not None else NO_CONFIDENCE} {SHARE}"


def fingerprint(folder: Path) -> str:
    """``sha256:…`` over the names and contents of the files that answers depend on."""

    files = sorted({file for pattern in FINGERPRINTED for file in folder.glob(pattern)})
    lines = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


@runtime_checkable
class Forgets(Protocol):
    """A runner that keeps something of documents which it was asked about."""

    def forget(self, documents: Iterable[str], /) -> None: ...


class Service:
    """Model, queue, documents and counters of a server."""

    def __init__(
        self, model: ModelInfo, runners: Sequence[Runner[Work, list[Found]]], index: Retriever | None, limits: Limits
    ) -> None:
        self.model, self.index, self.limits = model, index, limits
        self.documents = DocumentStore(limits)
        self.metrics = Metrics()
        self._keepers = [runner for runner in runners if isinstance(runner, Forgets)]
        self.queue: BatchQueue[Work, list[Found]] = BatchQueue(
            runners, waiting=limits.waiting, batch=limits.batch, cost=BATCH_COST
        )

    def forget(self, number: str) -> None:
        """Delete an uploaded document, and all that was made of it. Raises Problem when it is not there."""
        self.documents.remove(number)
        for keeper in self._keepers:
            keeper.forget((number,))

    def forget_all(self) -> int:
        """→ how many there were."""
        numbers = [document.id for document in self.documents.all()]
        count = self.documents.clear()
        for keeper in self._keepers:
            keeper.forget(numbers)
        return count

    async def answers(self, work: Work, request: Request) -> AnswersResponse:
        """Raises Problem when it is refused, and when its time is over."""
        began = time.monotonic()
        job, found = await self._run(work, request)
        now = time.monotonic()
        self.metrics.questions += len(found)
        return AnswersResponse(
            results=[question_out(one) for one in found],
            model=self.model.brief,
            milliseconds=round(1000 * (now - began), 1),
            waited=round(1000 * ((job.began or now) - job.entered), 1),
            together=job.together,
            notes=self.model.notes,
        )

    async def _run(self, work: Work, request: Request) -> tuple[Job[Work, list[Found]], list[Found]]:
        try:
            job = self.queue.submit(work, work.cost)
        except Busy as busy:
            detail = f"{self.limits.waiting} requests wait already"
            raise Problem("busy", detail, retry_after=busy.retry_after) from None
        outcome = asyncio.wrap_future(job.future)
        gone = asyncio.ensure_future(_gone(request))
        try:
            either: set[asyncio.Future[Any]] = {outcome, gone}
            await asyncio.wait(either, timeout=self.limits.deadline, return_when=asyncio.FIRST_COMPLETED)
            if outcome.done():
                return job, outcome.result()
            waited_only = job.abandon()
            if gone.done():
                self.metrics.gone += 1
                raise Problem("busy", "the client has gone", retry_after=1)
            if waited_only:
                detail = f"the model did not come to this request within {self.limits.deadline:g} s"
                raise Problem("busy", detail, retry_after=self.queue.retry_after())
            detail = f"not answered within {self.limits.deadline:g} s: ask fewer questions or send less text at once"
            raise Problem("deadline", detail)
        except Refused as refused:
            raise Problem(refused.kind, refused.detail, field=refused.field) from None
        except Stopped:
            raise Problem("busy", "the model stopped while it answered", retry_after=1) from None
        finally:
            job.abandon()
            outcome.cancel()
            gone.cancel()

    def index_document(self, number: str) -> Document:
        """Raises Problem when the server has no index, or that has no such document."""
        if self.index is None:
            raise Problem("no-index", "the server was started without --index")
        try:
            document = self.index.document(number)
        except SearchFailed as error:
            raise Problem("search-failed", str(error)) from None
        if document is None:
            raise Problem("unknown-document", f"the index has no document {number[:80]!r}")
        return document


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def question_out(found: Found) -> QuestionOut:
    answers = [
        AnswerOut(
            text=one.text,
            score=one.score,
            share=one.share,
            confidence=one.confidence,
            confidence_words=confidence_words(one),
            places=[place_out(place) for place in one.places],
        )
        for one in found.answers
    ]
    return QuestionOut(
        question=found.question,
        answers=answers,
        words=list(found.words),
        passages_read=found.passages_read,
        passages=found.passages,
    )


def place_out(place: Place) -> PlaceOut:
    """Without what only a search knows, where there was none."""
    searched = place.passage_rank > 0
    return PlaceOut(
        start=place.start,
        end=place.end,
        before=place.before,
        match=place.match,
        after=place.after,
        sentence=place.sentence,
        sentence_start=place.sentence_start,
        document=place.document or None,
        title=place.title or None,
        section=place.section,
        passage_rank=place.passage_rank if searched else None,
        retrieval_score=place.retrieval_score if searched else None,
        reader_score=place.reader_score,
    )


def confidence_words(answer: FoundAnswer) -> str:
    """What may be concluded, and no more: without calibration only how far the answer is ahead of the others."""
    if answer.confidence_words is not None:
        return answer.confidence_words
    if answer.share is None:
        return "confidence not measured for this model: only the order of the answers means something"
    if answer.share >= 0.8:
        ahead = "far ahead of the other candidates"
    elif answer.share >= 0.5:
        ahead = "ahead of the other candidates"
    elif answer.share >= 0.2:
        ahead = "one of a few candidates"
    else:
        ahead = "one of many candidates"
    return ahead
