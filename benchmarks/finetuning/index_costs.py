"""What an index on disk costs: to make, to find unchanged, to open, to ask.

`spanbert index` runs as a process of its own, so that its processor time and its peak of memory are its alone; pages of files
that it has mapped count in the peak while they are resident.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.retrieval.index import Index
from spanbert.errors import UserError

ROOT = Path(__file__).parents[2]
ROUNDS = 5  # of opening


def run_costs(documents: Path, folder: Path) -> dict[str, float]:
    """Of one run of the command. Raises UserError when it fails.

    load_average: of the machine, over the last minute: how busy others kept it, and the wall time with it.
    """
    begin = time.perf_counter()
    command = [sys.executable, "-m", "spanbert", "index", str(documents.resolve()), "--output", str(folder.resolve())]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = os.posix_spawn(sys.executable, command, os.environ | {"PYTHONPATH": path})
    _, status, used = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise UserError(f"spanbert index {documents} failed; what it said stands above.")
    return {
        "wall_s": time.perf_counter() - begin,
        "processor_s": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,  # Linux counts in KiB
        "load_average": os.getloadavg()[0],
    }


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def open_costs(folder: Path) -> dict[str, float]:
    """The best of ROUNDS, the files being in the page cache."""
    wall, processor = np.min([_timed(partial(Index.open, folder)) for _ in range(ROUNDS)], axis=0)
    return {"wall_s": float(wall), "processor_s": float(processor), "load_average": os.getloadavg()[0]}


def query_costs(index: Index, questions: Sequence[str], k: int) -> dict[str, Any]:
    """Milliseconds of a search for k passages, each question having been asked before."""
    for question in questions:
        index.search(question, k)
    times = [_timed(partial(index.search, question, k)) for question in questions]
    wall, processor = 1000 * np.array(times).T
    found: dict[str, Any] = {"questions": len(questions), "k": k, "load_average": os.getloadavg()[0]}
    for name, one in (("wall_ms", wall), ("processor_ms", processor)):
        found[name] = {"median": float(np.median(one)), "p95": float(np.percentile(one, 95))}
    return found


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor
