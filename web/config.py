"""What the server is told when it starts, and the limits it holds every request to."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from spanbert.errors import UserError

TOKEN_VARIABLE = "SPANBERT_TOKEN"
MEBIBYTE = 1024 * 1024
#: Bounds that are part of the API, and so of its OpenAPI document; those of ``Limits`` are each server's own.
MOST_QUESTIONS = 32
MOST_ANSWERS = 20
MOST_PASSAGES = 20
MOST_DOCUMENTS = 100


@dataclass(frozen=True)
class Limits:
    """Where a request is refused. Raise them for bigger texts, together with the deadline."""

    body: int = 4 * MEBIBYTE
    """Largest JSON body, in bytes."""
    upload: int = 16 * MEBIBYTE
    """Largest document uploaded, in bytes."""
    text: int = 200_000
    """Longest text that is read whole, in characters; a longer one is for uploading, where only passages are read."""
    stored: int = 64 * MEBIBYTE
    """All uploaded documents together, in characters of their texts."""
    documents: int = 1000
    """Most uploaded documents."""
    receive: float = 20.0
    """Seconds in which a request's body has to arrive."""
    deadline: float = 60.0
    """Seconds from the whole request to its answer."""
    waiting: int = 64
    """Requests that may wait for the model; the next one is told to come back later (503)."""
    batch: int = 16
    """Most requests in one model call."""
    connections: int = 512
    """Most connections at a time."""

    def check(self) -> None:
        """UserError for a limit that lets nothing through."""
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"--limits.{name} {value}: give more than 0")


@dataclass(frozen=True)
class ServeConfig:
    """Answer questions over HTTP, and on a page in the browser: http://127.0.0.1:8000."""

    model: Positional[Path | None] = None
    """Model or run folder; left out, the bundled model answers."""
    index: str | None = None
    """Index of documents that questions may be asked about: a folder, or http(s)://HOST:9200/NAME for OpenSearch."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own (127.0.0.1, ::1, localhost) needs a token."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names in the Host header that are answered, as behind a proxy."""
    token_file: Path | None = None
    """File that holds the token which requests then have to bring (Authorization: Bearer …). The environment variable
    SPANBERT_TOKEN does the same. An option for the token itself would show it to everyone who lists processes."""
    workers: int = 1
    """Processes that run the model, over one copy of its weights. Each uses its share of the cores."""
    limits: Limits = field(default_factory=Limits)
    """Where requests are refused."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Arithmetic of the forward pass; int8 is for CPUs with units for it."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""

    def check(self) -> None:
        """UserError for values that cannot be served with."""
        self.limits.check()
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: ports are 0 … 65535")
        if self.workers < 1:
            raise UserError(f"--workers {self.workers}: give at least 1")
        if not is_loopback(self.host) and self.token() is None:
            raise UserError(
                f"--host {self.host} can be reached from other machines: give a token that requests have to bring, "
                f"with --token-file FILE or the environment variable {TOKEN_VARIABLE}"
            )

    def token(self) -> str | None:
        """The token that requests have to bring, or None. Raises UserError when it cannot be read or is too weak."""
        source = TOKEN_VARIABLE
        token = os.environ.get(TOKEN_VARIABLE)
        if self.token_file is not None:
            source = str(self.token_file)
            try:
                token = self.token_file.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--token-file {source}: cannot be read as a line of ASCII ({error})") from None
        if token is None:
            return None
        if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
            raise UserError(
                f"{source}: a token is at least 16 letters, digits or signs of ASCII without spaces; "
                "for instance the output of: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        return token

    def host_names(self) -> frozenset[str]:
        """Names that the Host header may have, in lower case and without the port."""
        own = () if self.host in ("0.0.0.0", "::", "") else (self.host,)
        return frozenset(
            name.lower().strip("[]") for name in ("localhost", "127.0.0.1", "::1", *own, *self.allowed_hosts)
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
