"""Servers for tests: the bundled model behind the whole application, and runners that do what a test tells them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

pytest.importorskip("fastapi", reason="the server needs the packages of the extra `serve`")

from starlette.testclient import TestClient

from finetune.retrieval.documents import Document, Section
from finetune.retrieval.index import Index
from spanbert.weights import bundled_path
from web.app import create_app
from web.config import Limits
from web.reader import Found, FoundAnswer, Reader, Work, load_reader
from web.serve import listen, uvicorn_settings
from web.service import ModelInfo, Service

BASE = "http://127.0.0.1:8000"
HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

CANAL = "The canal was opened on 17 November 1869. It was dug by the Suez Canal Company."
INDEXED = (
    Document("bridges/tower.txt", "Tower Bridge", "Tower Bridge was built in 1894. It crosses the Thames."),
    Document(
        "canals.txt",
        "Canals",
        "About this book.\n\n" + CANAL,
        (Section(0, "Preface"), Section(18, "page 2")),
    ),
)


@pytest.fixture(scope="session")
def reader() -> Reader:
    return load_reader(bundled_path("scratch"), device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def info(reader: Reader) -> ModelInfo:
    return ModelInfo.of(bundled_path("scratch"), reader.answerer)


@pytest.fixture
def serve(reader: Reader, info: ModelInfo) -> Iterator[Callable[..., TestClient]]:
    """serve(runner=…, index=…, token=…, can_decline=…, limit=…) → a client of a new server."""
    open_clients: list[TestClient] = []

    def make(
        runner: Callable | None = None,
        *,
        index: Sequence[Document] = (),
        token: str | None = None,
        can_decline: bool = False,
        **limits: float,
    ) -> TestClient:
        held = replace(Limits(), **limits)
        retriever = Index.of(index) if index else None
        one = runner or Reader(reader.answerer, retriever)
        service = Service(replace(info, can_decline=can_decline), [one], retriever, held)
        app = create_app(service, hosts=HOSTS, token=token)
        client = TestClient(app, base_url=BASE, raise_server_exceptions=False)
        client.service = service
        open_clients.append(client.__enter__())
        return client

    yield make
    for client in open_clients:
        client.__exit__(None, None, None)


def instant(batch: Sequence[Work], _stop: Callable[[], bool]) -> list[list[Found]]:
    """A runner that knows one answer to everything: nothing."""
    return [
        [Found(question, (FoundAnswer("", 0.0, 1.0, None, None, ()),), (), None, None) for question in work.questions]
        for work in batch
    ]


@pytest.fixture
def live(reader: Reader, info: ModelInfo) -> Iterator[Callable[..., str]]:
    """live(runner=…, index=…, token=…, limit=…) → the address of a server on a port of its own, in a thread."""
    import uvicorn

    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def make(
        runner: Callable | None = None, *, index: Sequence[Document] = (), token: str | None = None, **limits: float
    ) -> str:
        held = replace(Limits(), **limits)
        retriever = Index.of(index) if index else None
        service = Service(info, [runner or Reader(reader.answerer, retriever)], retriever, held)
        app = create_app(service, hosts=HOSTS, token=token)
        server = uvicorn.Server(uvicorn_settings(app, held))
        listening = listen("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield make
    for server, thread in running:
        server.should_exit = True
        thread.join()
