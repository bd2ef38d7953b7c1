"""The queue by itself: what waits, what was given up, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

import pytest

from tests.web.test_problems import until
from web.queue import BatchQueue, Busy, Stopped


class Gate:
    """A runner that answers when it is opened, or ends early when it is told to."""

    def __init__(self) -> None:
        self.opened, self.began = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []

    def __call__(self, batch: Sequence[str], stop: Callable[[], bool]) -> list[str | Exception]:
        self.batches.append(list(batch))
        self.began.set()
        while not self.opened.wait(0.01):
            if stop():
                raise Stopped
        return [one.upper() for one in batch]


@pytest.fixture
def gate() -> Gate:
    return Gate()


def busy_queue(gate: Gate, waiting: int = 2, batch: int = 1) -> BatchQueue[str, str]:
    """One job is running."""
    queue: BatchQueue[str, str] = BatchQueue([gate], waiting=waiting, batch=batch, cost=100)
    queue.submit("first")
    assert gate.began.wait(5)
    return queue


def test_requests_that_were_given_up_leave_room_for_others(gate: Gate) -> None:
    """Clients that had gone kept their places until the model came to them: 64 of them shut out everybody else."""
    queue = busy_queue(gate)
    left = [queue.submit("left"), queue.submit("left too")]
    with pytest.raises(Busy):
        queue.submit("too many")
    assert all(job.abandon() for job in left)
    wanted = queue.submit("wanted")
    gate.opened.set()
    assert wanted.future.result(5) == "WANTED"
    assert gate.batches == [["first"], ["wanted"]]
    queue.close(5)


def test_places_are_given_back_while_many_come_and_go(gate: Gate) -> None:
    """Jobs are given up while others are taken and added: each has an outcome, and none is run that was dropped."""
    gate.opened.set()
    queue: BatchQueue[str, str] = BatchQueue([gate, gate], waiting=4, batch=3, cost=100)
    jobs, dropped, refused = [], set(), 0
    for number in range(2000):
        try:
            jobs.append(queue.submit(f"job {number}"))
        except Busy:
            refused += 1
            time.sleep(0.0005)
            continue
        if number % 3 == 0 and jobs[-1].abandon():
            dropped.add(f"JOB {number}")
    done = set()
    for job in jobs:
        try:
            done.add(job.future.result(5))
        except CancelledError:
            assert job.work.upper() in dropped
    assert not done & dropped and len(done) + len(dropped) == len(jobs)
    run = {one.upper() for batch in gate.batches for one in batch}
    assert run == done
    queue.close(5)


def test_the_end_comes_after_its_time_however_many_run() -> None:
    """The time was given to each thread anew: with four model processes a server took four times its deadline to end."""
    gates = [Gate() for _ in range(4)]
    queue: BatchQueue[str, str] = BatchQueue(gates, waiting=9, batch=1, cost=100)
    jobs = [queue.submit(f"job {number}") for number in range(6)]
    until(lambda: all(gate.began.is_set() for gate in gates))
    began = time.monotonic()
    queue.close(timeout=0.3)
    assert 0.25 < time.monotonic() - began < 0.9
    outcomes = [job.future.exception(5) if not job.future.cancelled() else None for job in jobs[:4]]
    assert all(isinstance(one, Stopped) for one in outcomes), "what ran is told to stop"
    assert all(job.future.cancelled() for job in jobs[4:]), "what waited is dropped"
    assert sum(len(gate.batches) for gate in gates) == 4
    with pytest.raises(Busy):
        queue.submit("late")


def test_closing_finishes_what_there_is(gate: Gate) -> None:
    queue = busy_queue(gate, batch=5)
    jobs = [queue.submit("a"), queue.submit("b")]
    threading.Timer(0.1, gate.opened.set).start()
    queue.close(5)
    assert [job.future.result(0) for job in jobs] == ["A", "B"]
