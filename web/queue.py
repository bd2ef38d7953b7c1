"""The queue before the model: bounded, first come first served, and what waits together is answered together.

One thread for each runner takes from the queue whatever waits, up to a batch, and gives it to its runner, which makes one
model call of it. Nothing waits for a batch to fill: while the model is busy a batch fills by itself.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

W = TypeVar("W")
R = TypeVar("R")
W_contra = TypeVar("W_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
log = logging.getLogger("web")


class Busy(Exception):
    """The queue is full, or closed. ``retry_after``: seconds after which there may be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"come back in {retry_after} s")
        self.retry_after = retry_after


class Stopped(Exception):
    """Nobody waits any longer for the answer that was being made."""


class Runner(Protocol[W_contra, R_co]):
    """Answers a batch in order, each with a result or the exception that is its own; ends early when ``stop()``."""

    def __call__(self, batch: Sequence[W_contra], stop: Callable[[], bool], /) -> Sequence[R_co | Exception]: ...


@dataclass(eq=False)
class Job(Generic[W, R]):
    """Something to do, and its outcome."""

    work: W
    cost: int
    future: Future[R] = field(default_factory=Future)
    entered: float = field(default_factory=time.monotonic)
    began: float | None = None
    together: int = 0
    """Jobs of the model call that it was part of."""
    abandoned: bool = False

    def abandon(self) -> bool:
        """Nobody waits for it any longer: a job that waits is dropped (True), a running one may end early."""
        self.abandoned = True
        return self.future.cancel()


class BatchQueue(Generic[W, R]):
    """``waiting``: jobs that may wait; ``batch``, ``cost``: most jobs, and most of their costs, that are run together."""

    def __init__(self, runners: Sequence[Runner[W, R]], *, waiting: int, batch: int, cost: int) -> None:
        self.limit, self.batch, self.cost = waiting, batch, cost
        self._jobs: deque[Job[W, R]] = deque()
        self._taken: set[Job[W, R]] = set()
        self._open = True
        self._change = threading.Condition()
        self._seconds = 0.5  # of a model call, lately
        self.calls = 0
        self.jobs_run = 0
        self.busy_seconds = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=(runner,), name=f"model {n}", daemon=True)
            for n, runner in enumerate(runners)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: W, cost: int = 1) -> Job[W, R]:
        """Raises Busy when as many wait as may, or the queue is closed."""
        with self._change:
            if len(self._jobs) >= self.limit:  # those that were given up take nobody's place
                self._jobs = deque(job for job in self._jobs if not job.future.cancelled())
            if not self._open or len(self._jobs) >= self.limit:
                raise Busy(self._wait())
            job: Job[W, R] = Job(work, cost)
            self._jobs.append(job)
            self._change.notify()
        return job

    def waiting(self) -> int:
        """Jobs that wait and are still wanted."""
        with self._change:
            return sum(not job.abandoned for job in self._jobs)

    def retry_after(self) -> int:
        """Seconds after which what waits now is probably done."""
        with self._change:
            return self._wait()

    def close(self, timeout: float | None = None) -> None:
        """Take no more, finish what waits and runs, and end the threads.

        timeout: seconds for all of that; what waits then is dropped, and what runs is asked to stop.
        """
        with self._change:
            self._open = False
            self._change.notify_all()
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        with self._change:
            for job in (*self._jobs, *self._taken):
                job.abandon()
            self._jobs.clear()

    def _wait(self) -> int:
        calls = (math.ceil(len(self._jobs) / self.batch) + 1) / max(1, len(self._threads))
        return min(60, max(1, math.ceil(calls * self._seconds)))

    def _take(self) -> list[Job[W, R]]:
        """The next batch; empty when the queue is closed and done."""
        with self._change:
            while True:
                jobs: list[Job[W, R]] = []
                cost = 0
                while self._jobs and len(jobs) < self.batch and (not jobs or cost + self._jobs[0].cost <= self.cost):
                    job = self._jobs.popleft()
                    if job.future.set_running_or_notify_cancel():
                        jobs.append(job)
                        cost += job.cost
                if jobs or not self._open:
                    self._taken.update(jobs)
                    return jobs
                self._change.wait()

    def _run(self, runner: Runner[W, R]) -> None:
        while jobs := self._take():
            began = time.monotonic()
            for job in jobs:
                job.began, job.together = began, len(jobs)
            try:
                results = runner([job.work for job in jobs], partial(_all_abandoned, jobs))
                pairs = list(zip(jobs, results, strict=True))
            except Exception as error:
                if not isinstance(error, Stopped):
                    log.error("a model call of %d requests failed", len(jobs), exc_info=error)
                pairs = [(job, error) for job in jobs]
            seconds = time.monotonic() - began
            with self._change:
                self._taken.difference_update(jobs)
                self.calls += 1
                self.jobs_run += len(jobs)
                self.busy_seconds += seconds
                self._seconds += 0.2 * (seconds - self._seconds)
            for job, result in pairs:
                if isinstance(result, Exception):
                    job.future.set_exception(result)
                else:
                    job.future.set_result(result)


def _all_abandoned(jobs: Sequence[Job[W, R]]) -> bool:
    return all(job.abandoned for job in jobs)
