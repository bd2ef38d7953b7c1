"""Errors as problem documents (RFC 9457): what is wrong, in which field, and what to do, with a kind for programs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"
log = logging.getLogger("web")

#: kind → (status, title). A problem's ``type`` is the anchor of its kind on the page /docs.
KINDS: dict[str, tuple[int, str]] = {
    "malformed-json": (400, "The body is not JSON"),
    "not-utf-8": (400, "The body is not UTF-8"),
    "bad-request": (400, "The request cannot be understood"),
    "token": (401, "A token is needed"),
    "other-origin": (403, "Requests from other sites are refused"),
    "not-found": (404, "There is nothing here"),
    "unknown-document": (404, "There is no such document"),
    "no-index": (404, "This server has no index"),
    "method": (405, "This method is not for this path"),
    "too-slow": (408, "The body did not arrive in time"),
    "too-large": (413, "Too large"),
    "content-type": (415, "The body has the wrong type"),
    "host": (421, "This server does not answer to that name"),
    "invalid": (422, "A field is missing or wrong"),
    "empty": (422, "A text is empty"),
    "question-too-long": (422, "A question is too long"),
    "unreadable-document": (422, "The document cannot be read"),
    "search-failed": (502, "The index's server did not answer as it should"),
    "internal": (500, "The server made a mistake"),
    "busy": (503, "The server is busy"),
    "deadline": (504, "The answer took too long"),
    "store-full": (507, "No room for more documents"),
}
BY_STATUS = {404: "not-found", 405: "method"}


class Problem(Exception):
    """Ends a request. ``field`` says where in the request, as in ``questions[2]``; ``errors`` lists more of them."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        field: str | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.field, self.errors = kind, detail, field, list(errors)
        self.retry_after = retry_after
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        return KINDS[self.kind][0]

    def response(self) -> JSONResponse:
        status, title = KINDS[self.kind]
        content: dict[str, Any] = {
            "type": f"/docs#{self.kind}",
            "title": title,
            "status": status,
            "detail": self.detail,
        }
        if self.field is not None:
            content["field"] = self.field
        if self.errors:
            content["errors"] = self.errors
        if self.retry_after is not None:
            content["retry_after"] = self.retry_after
            self.headers["Retry-After"] = str(self.retry_after)
        return JSONResponse(content, status, self.headers, MEDIA_TYPE)


def field_name(place: Sequence[str | int]) -> str:
    """("body", "questions", 2) → ``questions[2]``; parameters of the query keep their kind: ``query.name``."""
    parts = list(place[1:] if place and place[0] == "body" else place)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    return name or "body"


def of_validation(error: RequestValidationError) -> Problem:
    """What FastAPI found wrong with a request; the first is the problem's own field, all are listed."""
    found = error.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be parsed")
        return Problem("malformed-json", f"at character {first['loc'][-1]}: {reason}", field="body")
    errors = [{"field": field_name(one["loc"]), "detail": _sentence(one)} for one in found]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(
        "invalid", f"{errors[0]['field']}: {errors[0]['detail']}{more}", field=errors[0]["field"], errors=errors
    )


def _sentence(one: Mapping[str, Any]) -> str:
    message = str(one["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def add_handlers(app: FastAPI) -> None:
    """Make every error that leaves ``app`` a problem document."""

    async def problem(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        return error.response()

    async def validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return of_validation(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = BY_STATUS.get(error.status_code, "bad-request")
        detail = f"{request.method} {request.url.path}" if kind != "bad-request" else str(error.detail)
        return Problem(kind, detail, headers=error.headers).response()

    async def internal(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem("internal", "the server's log has more").response()

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, internal)
