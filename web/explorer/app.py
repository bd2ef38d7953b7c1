"""The explorer's routes: the page's files, and what its views ask of the model."""

from __future__ import annotations

import asyncio
import base64
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from pydantic import Field

from web.application import new_application
from web.config import Limits
from web.docs_page import docs_page
from web.explorer.models import Explorer, Refused
from web.limits import Gate
from web.problems import Problem
from web.queue import BatchQueue, Busy
from web.schemas import Question, Request

HERE = Path(__file__).parent
HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
log = logging.getLogger("web")

Seed = Annotated[int, Field(ge=0, lt=2**53, description="Seed of the masks.")]


class TextRequest(Request):
    """A text."""

    text: str = Field(examples=["The canal was opened in 1869."])


class MasksRequest(TextRequest):
    """A text to mask."""

    seed: Seed = 0


class RunRequest(Request):
    """Token ids with [CLS] and [SEP], and the spans of them that are masked."""

    ids: list[int] = Field(max_length=512)
    spans: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(
        default=[], max_length=256, description="First and last token of each span."
    )


class AnswerRequest(TextRequest):
    """A question about a text."""

    question: Question


def create_app(explorer: Explorer, limits: Limits) -> FastAPI:
    """The application over ``explorer``, for this machine's own browsers."""
    queue: BatchQueue[Callable[[], Any], Any] = BatchQueue([_call], waiting=limits.waiting, batch=1, cost=1)

    app = new_application(
        "SpanBERT explorer",
        "How a SpanBERT model splits, masks, attends, predicts and answers.",
        queue,
        limits.deadline,
    )
    _add_views(app, explorer, limits, queue)
    _add_files(app)
    app.add_middleware(Gate, hosts=HOSTS, token=None, limits=limits)
    return app


def _call(batch: Sequence[Callable[[], Any]], _stop: Callable[[], bool]) -> list[Any]:
    """A runner of ``web.queue``: one view's request after the other, each with its result or its own exception."""
    results: list[Any] = []
    for work in batch:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)
    return results


def _add_views(app: FastAPI, explorer: Explorer, limits: Limits, queue: BatchQueue[Callable[[], Any], Any]) -> None:
    async def computed(work: Callable[[], Any]) -> Any:
        try:
            job = queue.submit(work, 1)
            return await asyncio.wait_for(asyncio.wrap_future(job.future), limits.deadline)
        except Busy as busy:
            raise Problem("busy", "too many requests wait for the model", retry_after=busy.retry_after) from None
        except TimeoutError:
            raise Problem("deadline", f"not computed within {limits.deadline:g} s: take a shorter text") from None
        except Refused as refused:
            raise Problem(refused.kind, refused.detail, field=refused.field) from None

    def readable(text: str) -> str:
        if not text.strip():
            raise Problem("empty", "text holds no text", field="text")
        if len(text) > limits.text:
            detail = f"text has {len(text):,} characters, the explorer shows at most {limits.text:,}"
            raise Problem("too-large", detail, field="text")
        return text

    @app.get("/v1/explorer", tags=["views"])
    async def describe() -> dict[str, Any]:
        """The models, and which of the heads they have."""
        return explorer.describe()

    @app.post("/v1/explorer/encode", tags=["views"])
    async def encode(asked: TextRequest) -> dict[str, Any]:
        """Tokens, ids, offsets in code points, and words."""
        text = readable(asked.text)
        return await computed(lambda: explorer.encode(text))

    @app.post("/v1/explorer/masks", tags=["views"])
    async def masks(asked: MasksRequest) -> dict[str, Any]:
        """What each scheme masks, and how long geometric spans are."""
        text = readable(asked.text)
        return await computed(lambda: explorer.masks(text, asked.seed))

    @app.post("/v1/explorer/run", tags=["views"])
    async def run(asked: RunRequest) -> dict[str, Any]:
        """Attention (bytes by layer, head, row and column, compressed with zlib, in base64) and predictions."""
        attention, found = await computed(lambda: explorer.run(asked.ids, asked.spans))
        packed = base64.b64encode(zlib.compress(attention.tobytes(), 6)).decode()
        return {"attention": {"shape": attention.shape[:3], "zlib": packed}, **found}

    @app.post("/v1/explorer/answer", tags=["views"])
    async def answer(asked: AnswerRequest) -> dict[str, Any]:
        """Start and end logits by window, the null score and the best answers."""
        text = readable(asked.text)
        return await computed(lambda: explorer.answer(asked.question, text))


def _add_files(app: FastAPI) -> None:
    files = {file.name: file for file in HERE.iterdir() if file.suffix in KINDS and file.name != "page.html"}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file(HERE / "page.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi(), False), headers={"Content-Security-Policy": DOCS_POLICY})

    @app.get("/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in files:
            raise Problem("not-found", f"GET /{name[:80]}")
        return _file(files[name])


def _file(path: Path) -> Response:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return Response(path.read_bytes(), media_type=f"{KINDS[path.suffix]}; charset=utf-8", headers=headers)
