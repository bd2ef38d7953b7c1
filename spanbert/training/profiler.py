"""Where the time of a few steps goes: a table to read and a trace for https://ui.perfetto.dev."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from spanbert.files import write_atomic

#: Steps to pass over (allocators and caches fill), to warm the profiler up on, and to record.
WAIT, WARM_UP, RECORD = 3, 1, 3


class Steps(Protocol):
    def step(self) -> None: ...


@contextlib.contextmanager
def profiled(output: Path | None) -> Iterator[Steps]:
    """Record a few steps into ``output``/profile/{table.txt, trace.json}; None: record nothing.

    Call ``step`` after every step; the files are there after the seventh.
    """
    if output is None:
        yield _Nothing()
        return
    folder = output / "profile"
    folder.mkdir(parents=True, exist_ok=True)

    def write(finished: profile) -> None:
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = finished.key_averages().table(sort_by=order, row_limit=40)
        write_atomic(folder / "table.txt", table)
        finished.export_chrome_trace(str(folder / "trace.json"))
        print(f"wrote {folder}/table.txt and {folder}/trace.json (open it in https://ui.perfetto.dev)")

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    plan = schedule(wait=WAIT, warmup=WARM_UP, active=RECORD, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler


class _Nothing:
    def step(self) -> None:
        pass
