"""What is checked of every request before the application sees it: who it is for, who may ask, and how much is sent.

The body is counted while it arrives, and the application is only called once it is whole, so that neither a large body
nor a slow one holds memory or the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.config import Limits
from web.problems import Problem

#: Paths that need no token: the pages, which hold no data, and what a supervisor asks.
OPEN_PATHS = frozenset({"/", "/docs", "/healthz", "/openapi.json"})
UPLOAD_PATH = "/v1/documents"
#: How much of a refused body is read and thrown away, in bytes, and for how many seconds.
DISCARDED = 64 * 1024 * 1024
DISCARDING = 2.0
SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Disconnected(Exception):
    """The client went away before its body was whole."""


class Gate:
    """ASGI middleware. ``hosts``: names that the Host header may have; ``token``: what requests have to bring, if any."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], token: str | None, limits: Limits) -> None:
        self.app, self.hosts, self.token, self.limits = app, hosts, token, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        unread = True
        try:
            headers = Headers(scope=scope)
            self.check_host(headers)
            self.check_origin(headers)
            self.check_token(scope["path"], headers)
            body = await self.read_body(scope, headers, receive)
            unread = False
            if scope["path"] != UPLOAD_PATH:
                check_utf8(body)
        except Problem as problem:
            if unread:
                problem.headers["Connection"] = "close"  # what stays unread would be taken for the next request
                if problem.kind != "too-slow":
                    await _discard(receive)
            await problem.response()(scope, receive, _with_headers(send))
            return
        except Disconnected:
            return
        await self.app(scope, _replay(body, receive), _with_headers(send))

    def check_host(self, headers: Headers) -> None:
        """A page of another site whose name was pointed at this machine (DNS rebinding) brings its own name here."""
        name = host_name(headers.get("host", ""))
        if name not in self.hosts:
            raise Problem("host", f"the Host header names {name!r}; --allowed-hosts adds names", field="Host")

    def check_origin(self, headers: Headers) -> None:
        """Browsers say which site a request comes from; only this server's own pages may ask."""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise Problem("other-origin", f"the request comes from {origin[:200]}", field="Origin")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            raise Problem("other-origin", "the request comes from a page of another site", field="Sec-Fetch-Site")

    def check_token(self, path: str, headers: Headers) -> None:
        if self.token is None or path in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            detail = "send the header Authorization: Bearer TOKEN" if not given else "the token is not this server's"
            raise Problem("token", detail, field="Authorization", headers={"WWW-Authenticate": "Bearer"})

    async def read_body(self, scope: Scope, headers: Headers, receive: Receive) -> bytes:
        """The whole body, counted while it comes. Raises Problem, or Disconnected when it never becomes whole."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return b""
        uploading = scope["path"] == UPLOAD_PATH
        most, name = (self.limits.upload, "upload") if uploading else (self.limits.body, "body")
        too_large = Problem("too-large", f"the body is over {most:,} bytes (--limits.{name} raises it)", field="body")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if not uploading and kind != "application/json":
            raise Problem("content-type", f"send application/json, not {kind or 'nothing'!r}", field="Content-Type")
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.receive):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            seconds = f"{self.limits.receive:g} s"
            raise Problem("too-slow", f"{len(body):,} bytes came in {seconds}", field="body") from None
        return bytes(body)


def check_utf8(body: bytes) -> None:
    """Raises Problem. JSON may be nothing else, and Python's reader would guess at UTF-16 and UTF-32."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("not-utf-8", f"byte {error.start} is not UTF-8 ({error.reason})", field="body") from None


async def _discard(receive: Receive) -> None:
    """Read on for a while: a client that is still sending when the connection closes may never see the answer."""
    left = DISCARDED
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARDING):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def host_name(host: str) -> str:
    """The Host header's name without the port: ``[::1]:8000`` → ``::1``."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _replay(body: bytes, receive: Receive) -> Receive:
    """``body`` in one message, and then what the connection says."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            extra = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
            message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in present)]
        await send(message)

    return sending
