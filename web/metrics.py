"""Counters in the Prometheus text format. They change on the event loop's thread alone."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What happened since the server started."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self.durations: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))
        self.seconds: dict[str, float] = defaultdict(float)
        self.questions = 0
        self.gone = 0

    def record(self, method: str, route: str, status: int, seconds: float) -> None:
        self.requests[method, route, status] += 1
        self.durations[route][bisect_left(BUCKETS, seconds)] += 1
        self.seconds[route] += seconds

    def text(self, **gauges: float) -> str:
        """``gauges``: what is so at this moment, name → value, named as they are printed after ``spanbert_``."""
        return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: dict[str, float]) -> Iterator[str]:
        yield "# HELP spanbert_requests_total Requests answered."
        yield "# TYPE spanbert_requests_total counter"
        for (method, route, status), count in sorted(self.requests.items()):
            yield f'spanbert_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}'
        yield "# HELP spanbert_request_seconds Time from a request's first byte to the end of its answer."
        yield "# TYPE spanbert_request_seconds histogram"
        for route, counts in sorted(self.durations.items()):
            total = 0
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
                total += count
                yield f'spanbert_request_seconds_bucket{{route="{route}",le="{bound}"}} {total}'
            yield f'spanbert_request_seconds_sum{{route="{route}"}} {self.seconds[route]:.6f}'
            yield f'spanbert_request_seconds_count{{route="{route}"}} {total}'
        counters = {
            "questions_total": ("Questions answered.", self.questions),
            "clients_gone_total": ("Requests whose client went away before the answer.", self.gone),
        }
        for name, (meaning, value) in counters.items():
            yield f"# HELP spanbert_{name} {meaning}"
            yield f"# TYPE spanbert_{name} counter"
            yield f"spanbert_{name} {value}"
        for name, number in gauges.items():
            yield f"# TYPE spanbert_{name} {'counter' if name.endswith('_total') else 'gauge'}"
            yield f"spanbert_{name} {number:.10g}"


class Measured:
    """ASGI middleware, the outermost: counts what leaves, refusals included. Routes are named by their pattern."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = monotonic(), 499  # as nginx writes it: the client went away

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD") else "other"
            self.metrics.record(method, route, status, monotonic() - began)


def resident_bytes() -> int:
    """Memory of this process that is in RAM (Linux), or 0."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
