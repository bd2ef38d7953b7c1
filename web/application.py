"""What both servers have: an application without CDN pages, whose errors are problem documents and which ends with its queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

import spanbert
from web.problems import MEDIA_TYPE, add_handlers
from web.queue import BatchQueue
from web.schemas import ProblemOut


def new_application(title: str, summary: str, queue: BatchQueue[Any, Any], deadline: float) -> FastAPI:
    """deadline: seconds that ``queue`` has to finish what runs when the server ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close(timeout=deadline)

    app = FastAPI(
        title=title,
        version=spanbert.__version__,
        summary=summary,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={
            "default": {"model": ProblemOut, "content": {MEDIA_TYPE: {}}, "description": "A problem (RFC 9457)"}
        },
    )
    add_handlers(app)
    return app
