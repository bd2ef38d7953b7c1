"""Timing of one callable: medians with spread, plain and as a CUDA graph, and peak memory.

On a GPU every repetition is timed with events after a write that is larger than the L2 cache, so that inputs come from
memory as they would in a model. On a CPU the clock is read around the call. Inputs are made outside, never timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of `count` repetitions, and the interval that holds the middle 60 % of them."""

    median: float
    low: float
    high: float
    count: int


def summarise(seconds: list[float]) -> Timing:
    ordered = sorted(seconds)
    fifth = len(ordered) // 5
    return Timing(statistics.median(ordered), ordered[fifth], ordered[-1 - fifth], len(ordered))


class Stopwatch:
    """Times callables on one device."""

    def __init__(self, device: torch.device, budget: float, most: int = 200):
        """`budget`: seconds to spend on the repetitions of one callable; `most`: repetitions at most."""
        self.device, self.budget, self.most = device, budget, most
        self.flush = torch.empty(256 << 20, dtype=torch.int8, device=device) if device.type == "cuda" else None

    def time(self, body: Callable[[], object]) -> Timing:
        """Warm up twice, then repeat until the budget is spent, at least three times."""
        body()
        start = time.perf_counter()
        body()
        self._wait()
        estimate = max(time.perf_counter() - start, 1e-6)
        repetitions = max(3, min(self.most, int(self.budget / estimate)))
        return summarise(self._on_gpu(body, repetitions) if self.flush is not None else self._on_cpu(body, repetitions))

    def time_graph(self, body: Callable[[], object]) -> Timing | None:
        """The same, captured once as a CUDA graph and replayed; None on a CPU."""
        if self.flush is None:
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                body()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        timing = self.time(graph.replay)
        graph.reset()
        return timing

    def peak_bytes(self, body: Callable[[], object]) -> int | None:
        """Memory allocated during one call beyond what was held before it; None on a CPU."""
        if self.flush is None:
            return None
        self._wait()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        body()
        self._wait()
        return torch.cuda.max_memory_allocated() - held

    def _wait(self) -> None:
        if self.flush is not None:
            torch.cuda.synchronize()

    def _on_gpu(self, body: Callable[[], object], repetitions: int) -> list[float]:
        starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(repetitions)] for _ in "se")
        for start, end in zip(starts, ends):
            self.flush.zero_()
            start.record()
            body()
            end.record()
        self._wait()
        return [start.elapsed_time(end) / 1e3 for start, end in zip(starts, ends)]

    def _on_cpu(self, body: Callable[[], object], repetitions: int) -> list[float]:
        seconds = []
        for _ in range(repetitions):
            start = time.perf_counter()
            body()
            seconds.append(time.perf_counter() - start)
        return seconds


def measured_ceilings(device: torch.device, stopwatch: Stopwatch) -> tuple[float, float]:
    """(FLOP/s of a large half-precision product, byte/s of a large copy, read and write counted), on this machine."""
    small = device.type == "cpu"
    side, dtype = (512, torch.float32) if small else (8192, torch.bfloat16)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in "ab")
    flops = 2.0 * side**3 / stopwatch.time(lambda: a @ b).median
    source = torch.randn((1 << 22) if small else (1 << 28), device=device)
    target = torch.empty_like(source)
    bandwidth = 2.0 * source.numel() * 4 / stopwatch.time(lambda: target.copy_(source)).median
    return flops, bandwidth
