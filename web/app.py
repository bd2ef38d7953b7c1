"""The routes: what each path takes and gives. Everything before them is in ``limits``, everything behind in ``service``."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, PlainTextResponse

from finetune.retrieval.documents import Document
from web.application import new_application
from web.docs_page import docs_page
from web.limits import Gate
from web.metrics import MEDIA_TYPE, Measured, resident_bytes
from web.problems import Problem
from web.reader import Work
from web.schemas import (
    AnswersRequest,
    AnswersResponse,
    Deleted,
    DocumentOut,
    DocumentText,
    HubAnswer,
    HubParameters,
    HubRequest,
    ModelCard,
    SectionOut,
    Uploaded,
)
from web.service import Service

PAGE = Path(__file__).with_name("page.html")
HUB_SETTINGS = {
    "doc_stride": "stride",
    "max_answer_len": "longest_answer",
    "max_seq_len": "window",
    "max_question_len": "longest_question",
}


def create_app(service: Service, *, hosts: frozenset[str], token: str | None = None) -> FastAPI:
    """The application over ``service``, which it closes at its end. hosts, token: see ``web.limits.Gate``."""

    app = new_application(
        "SpanBERT question answering",
        "Questions over texts and documents, answered in their own words.",
        service.queue,
        service.limits.deadline,
    )
    _add_questions(app, service)
    _add_documents(app, service)
    _add_state(app, service)
    _add_pages(app, token is not None)
    app.add_middleware(Gate, hosts=hosts, token=token, limits=service.limits)
    app.add_middleware(Measured, metrics=service.metrics)
    return app


def _add_questions(app: FastAPI, service: Service) -> None:
    def readable(text: str, field: str) -> str:
        if not text.strip():
            raise Problem("empty", f"{field} holds no text", field=field)
        if len(text) > service.limits.text:
            detail = f"{field} has {len(text):,} characters, at most {service.limits.text:,} are read whole"
            raise Problem("too-large", f"{detail}: upload it as a document instead (POST /v1/documents)", field=field)
        return text

    @app.post("/v1/answers", tags=["questions"])
    async def answers(asked: AnswersRequest, request: Request) -> AnswersResponse:
        """Answer 1 … 32 questions from a text, from uploaded documents, or from the server's index."""
        work = Work(tuple(asked.questions), asked.n_best, asked.passages)
        if asked.text is not None:
            work = dataclasses.replace(work, text=readable(asked.text, "text"))
        elif asked.documents is not None:
            work = dataclasses.replace(work, documents=service.documents.select(asked.documents))
        elif service.index is None:
            raise Problem("no-index", "the server was started without --index", field="index")
        return await service.answers(work, request)

    @app.post("/v1/hf", tags=["questions"])
    async def hub(asked: HubRequest, request: Request) -> list[HubAnswer]:
        """The same contract as Hugging Face's question-answering task. Offsets count code points; score is the share."""
        parameters = asked.parameters or HubParameters()
        for name, setting in HUB_SETTINGS.items():
            value, own = getattr(parameters, name), service.model.settings[setting]
            if value not in (None, own):
                field = f"parameters.{name}"
                raise Problem("invalid", f"{field} is {own} for this model and cannot be changed", field=field)
        if parameters.handle_impossible_answer and not service.model.can_decline:
            field = "parameters.handle_impossible_answer"
            raise Problem("invalid", f"{field}: this model cannot say that there is no answer", field=field)
        text = readable(asked.inputs.context, "inputs.context")
        extra = 0 if parameters.handle_impossible_answer else 1  # "no answer" is left out of the list
        work = Work((asked.inputs.question,), parameters.top_k + extra, text=text)
        (found,) = (await service.answers(work, request)).results
        return [
            HubAnswer(
                answer=one.text,
                score=one.share or 0.0,
                start=one.places[0].start if one.places else 0,
                end=one.places[0].end if one.places else 0,
            )
            for one in found.answers
            if one.text or parameters.handle_impossible_answer
        ][: parameters.top_k]


def _add_documents(app: FastAPI, service: Service) -> None:
    store = service.documents

    body = {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }

    @app.post("/v1/documents", tags=["documents"], status_code=201, openapi_extra={"requestBody": body})
    async def upload(
        request: Request,
        response: Response,
        name: Annotated[str, Query(min_length=1, max_length=255, description="File name; its ending says the kind.")],
    ) -> Uploaded:
        """Keep a document in memory: the file itself is the body, ``?name=`` its name. 200 where it is there already."""
        document, new = await run_in_threadpool(store.add, name, await request.body())
        response.status_code = 201 if new else 200
        return Uploaded(**_brief(document), new=new)

    @app.get("/v1/documents", tags=["documents"])
    async def listed() -> list[DocumentOut]:
        """All uploaded documents, in the order of uploading."""
        return [DocumentOut(**_brief(document)) for document in store.all()]

    @app.delete("/v1/documents", tags=["documents"])
    def clear() -> Deleted:
        """Forget all uploaded documents."""
        return Deleted(deleted=service.forget_all())

    @app.get("/v1/documents/{number}", tags=["documents"])
    async def one(number: str) -> DocumentText:
        """An uploaded document with its text, in which the answers' offsets count."""
        return _whole(store.get(number))

    @app.delete("/v1/documents/{number}", tags=["documents"])
    def remove(number: str) -> Deleted:
        """Forget an uploaded document."""
        service.forget(number)
        return Deleted(deleted=1)

    @app.get("/v1/index/documents/{number:path}", tags=["documents"])
    async def of_index(number: str) -> DocumentText:
        """A document of the server's index, with its text."""
        return _whole(await run_in_threadpool(service.index_document, number))


def _brief(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "title": document.title,
        "characters": len(document.text),
        "sections": len(document.sections),
    }


def _whole(document: Document) -> DocumentText:
    parts = [SectionOut(start=one.start, label=one.label) for one in document.sections]
    return DocumentText(**_brief(document), text=document.text, parts=parts)


def _add_state(app: FastAPI, service: Service) -> None:
    model, index = service.model, service.index

    @app.get("/v1/model", tags=["server"])
    async def card() -> ModelCard:
        """The model: what it is, how good it is, what its scores mean, and the limits of this server."""
        sizes = None if index is None else {"documents": index.document_count, "passages": index.passages}
        more = {
            "parameters": model.parameters,
            "precision": model.precision,
            "confidence": model.confidence,
            "calibration": model.calibration,
            "card": model.card,
            "index": sizes,
            "limits": dataclasses.asdict(service.limits),
        }
        return ModelCard.model_validate(model.brief.model_dump() | model.settings | more)

    @app.get("/healthz", tags=["server"], response_class=PlainTextResponse)
    async def health() -> str:
        """200 while the server takes requests."""
        return "ok\n"

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        queue = service.queue
        text = service.metrics.text(
            waiting_requests=queue.waiting(),
            model_calls_total=queue.calls,
            model_requests_total=queue.jobs_run,
            model_busy_seconds_total=queue.busy_seconds,
            documents=len(service.documents),
            document_characters=service.documents.characters,
            resident_bytes=resident_bytes(),
        )
        return Response(text, media_type=MEDIA_TYPE)


def _add_pages(app: FastAPI, needs_token: bool) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        html, policy = _with_policy(PAGE.read_text(encoding="utf-8"))
        return HTMLResponse(html, headers=policy)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        html, policy = _with_policy(docs_page(app.openapi(), needs_token))
        return HTMLResponse(html, headers=policy)


@cache
def _with_policy(html: str) -> tuple[str, dict[str, str]]:
    """The page, and the header that lets in its own script and style, by their hashes, and nothing else."""
    sources = {}
    for tag in ("script", "style"):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        sources[tag] = " ".join(f"'sha256-{_digest(block)}'" for block in blocks) or "'none'"
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}


def _digest(block: str) -> str:
    return base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
