"""`spanbert serve`: the model loaded, the address checked, and the application run until a signal ends it."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import socket
from collections.abc import Sequence
from types import FrameType

from spanbert.checkpoint.store import find_model
from spanbert.errors import UserError
from spanbert.training.signals import Stopped as StoppedBySignal
from spanbert.weights import qa_model_path
from web.config import Limits, ServeConfig
from web.queue import Runner
from web.reader import Found, Work, load_reader
from web.workers import model_processes

try:
    import uvicorn
    from fastapi import FastAPI

    from web.app import create_app
    from web.service import ModelInfo, Service
except ImportError as error:  # pragma: no cover
    raise UserError(f"`spanbert serve` needs more packages ({error.name}): pip install 'spanbert[serve]'") from None

KEEP_ALIVE = 15  # seconds that an idle connection stays open


def run_serve(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM, then finish what runs. Raises UserError for what cannot be served."""
    config.check()
    token = config.token()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        _serve(config, token)
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _: FrameType | None) -> None:
    """While it starts, and again after uvicorn's own handler: what was made, processes and files, is taken away first."""
    signal.signal(number, signal.SIG_IGN)
    raise StoppedBySignal(number)


def _serve(config: ServeConfig, token: str | None) -> None:
    listening = listen(config.host, config.port)
    with contextlib.closing(listening):
        folder = find_model(config.model or qa_model_path())
        reader = load_reader(
            folder, config.index, device=config.device, precision=config.precision, backend=config.backend
        )
        info = ModelInfo.of(folder, reader.answerer)
        with contextlib.ExitStack() as stack:
            runners: Sequence[Runner[Work, list[Found]]] = [reader]
            if config.workers > 1:
                runners = stack.enter_context(model_processes(reader, config.index, config.workers))
            service = Service(info, runners, reader.index, config.limits)
            app = create_app(service, hosts=config.host_names(), token=token)
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(
                f"{info.name} ({info.fingerprint[:19]}…, {info.precision}) answers at http://{shown}:{port}", flush=True
            )
            for note in info.notes:
                print(f"note: {note}", flush=True)
            uvicorn.Server(uvicorn_settings(app, config.limits)).run([listening])


def uvicorn_settings(app: FastAPI, limits: Limits) -> uvicorn.Config:
    """A signal ends the server when what it is answering is done, at the latest after the deadline."""
    return uvicorn.Config(
        app,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(limits.deadline) + 5,
        limit_concurrency=limits.connections,
    )


def listen(host: str, port: int) -> socket.socket:
    """Before the model is loaded, so that a wrong address is told at once. Raises UserError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return listening
