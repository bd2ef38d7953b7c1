"""How a server holds up: N clients ask for S seconds; answers a second, how long they took, errors, the server's memory.

    python -m benchmarks.finetuning.serving_load [--clients 8] [--seconds 10] [--workers 1]

The server is a process of its own, with the bundled model. Each client asks one question about a short text, waits for the
answer and asks the next. A 503 is counted, and waited out as its Retry-After says.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import tyro

from spanbert.errors import UserError

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "sample" / "text.txt"
QUESTIONS = ("When was the canal opened?", "Who founded the company?", "How long is the canal?", "Why was it built?")


@dataclass(frozen=True)
class LoadConfig:
    """Load a server of its own with clients that ask one question after the other."""

    clients: int = 8
    """Clients that ask at the same time."""
    seconds: float = 10.0
    """How long they ask, after one question to warm up."""
    workers: int = 1
    """Model processes of the server."""
    characters: int = 1000
    """Length of the text that is asked about."""


@dataclass(frozen=True)
class Load:
    """What was measured. Milliseconds are of the answers alone, errors and refusals left out."""

    answers: int
    answers_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    together: float  # requests in a model call, mean over the answers
    refused: int  # 503
    errors: dict[str, int]
    server_mib: float  # resident, all processes of the server; pages that they share count in each
    load_average: float  # of the machine, over the last minute


def measure(config: LoadConfig) -> Load:
    """Raises UserError when the server does not start."""
    command = [sys.executable, "-m", "spanbert", "serve", "--port", "0", "--workers", str(config.workers)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        if found is None:
            raise UserError("the server did not start")
        return _load(config, found.group(), server.pid)
    finally:
        server.terminate()
        server.wait()


def _load(config: LoadConfig, address: str, pid: int) -> Load:
    text = TEXT.read_text(encoding="utf-8")[: config.characters]
    _ask(HTTPConnection(urlsplit(address).netloc, timeout=120), text, 0)
    times: list[tuple[float, int]] = []
    errors: Counter[str] = Counter()
    end = time.perf_counter() + config.seconds
    threads = [
        threading.Thread(target=_client, args=(address, text, end, times, errors)) for _ in range(config.clients)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    refused = errors.pop("503", 0)
    if not times:
        raise UserError(f"not one answer: {dict(errors)}, {refused} refused")
    p50, p95, p99 = (float(q) for q in np.percentile([1000 * one for one, _ in times], [50, 95, 99]))
    mean = float(np.mean([together for _, together in times]))
    rate, memory = len(times) / seconds, _resident_mib(pid)
    return Load(len(times), rate, p50, p95, p99, mean, refused, dict(errors), memory, os.getloadavg()[0])


def _client(address: str, text: str, end: float, times: list[tuple[float, int]], errors: Counter[str]) -> None:
    connection = HTTPConnection(urlsplit(address).netloc, timeout=120)
    number = 0
    while time.perf_counter() < end:
        began = time.perf_counter()
        try:
            status, body, retry_after = _ask(connection, text, number)
        except (OSError, HTTPException) as error:
            errors[type(error).__name__] += 1
            connection.close()
            continue
        number += 1
        if status == 200:
            times.append((time.perf_counter() - began, json.loads(body)["together"]))
        else:
            errors[str(status)] += 1
            time.sleep(min(retry_after, max(0.0, end - time.perf_counter())))


def _ask(connection: HTTPConnection, text: str, number: int) -> tuple[int, bytes, float]:
    body = json.dumps({"questions": [QUESTIONS[number % len(QUESTIONS)]], "text": text})
    connection.request("POST", "/v1/answers", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read(), float(response.headers.get("Retry-After", 0))


def _resident_mib(pid: int) -> float:
    """Of a process and its children (Linux)."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(
                line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line
            )
        except OSError:
            continue
        if str(pid) in (folder.name, status.get("PPid", "").strip()):
            total += int(status.get("VmRSS", "0").split()[0])
    return total / 1024


def main() -> int:
    try:
        found = measure(tyro.cli(LoadConfig, description=LoadConfig.__doc__))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(found), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
