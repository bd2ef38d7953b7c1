"""Training processes that take turns, so that a machine whose speed drifts is as fast or slow for each of them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from spanbert.device import tune_allocator


class Block(NamedTuple):
    """Some steps of one process."""

    seconds: float
    """Processor time."""
    losses: list[float]


class Steps(Protocol):
    """Takes training steps, in a process of its own."""

    @property
    def steps(self) -> int:
        """How many there are."""
        ...

    def step(self, number: int) -> Tensor:
        """Step ``number``, from 0, from windows to new weights → its mean loss, ()."""
        ...

    def finish(self) -> Any:
        """What there is to say when all steps are taken; it goes through a pipe."""
        ...


def answer(pipe: Connection, make: Callable[[Any], Steps], what: Any, keeps_memory: bool) -> None:
    """The process: says how many steps it has, answers ranges of them with blocks, None with ``finish``, and ends."""
    if keeps_memory:
        tune_allocator()
    torch.set_num_threads(1)
    trained = make(what)
    pipe.send(trained.steps)
    while (steps := pipe.recv()) is not None:
        begin = time.process_time()
        losses = [trained.step(number) for number in steps]
        seconds = time.process_time() - begin
        pipe.send(Block(seconds, [loss.item() for loss in losses]))
    pipe.send(trained.finish())


class TrainingProcess:
    """``make(what)`` in a process of its own, with one thread; ready when this returns, and disturbing nobody.

    keeps_memory: with the allocator settings that `spanbert finetune` makes (``spanbert.device.tune_allocator``).
    """

    def __init__(self, make: Callable[[Any], Steps], what: Any, keeps_memory: bool = True):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, far_end = spawn.Pipe()
        self.process = spawn.Process(target=answer, args=(far_end, make, what, keeps_memory), daemon=True)
        self.process.start()
        far_end.close()  # so that a process that dies is an EOFError here, and not silence
        self.steps: int = self.pipe.recv()

    def take(self, steps: range) -> Block:
        self.pipe.send(steps)
        return self.pipe.recv()

    def finish(self) -> Any:
        self.pipe.send(None)
        result = self.pipe.recv()
        self.process.join()
        return result


def take_turns(processes: Sequence[TrainingProcess], block: int) -> list[list[Block]]:
    """All steps of each process (they have equally many), a block at a time; in each round another one begins."""
    (steps,) = {process.steps for process in processes}
    blocks: list[list[Block]] = [[] for _ in processes]
    for turn, first in enumerate(range(0, steps, block)):
        numbers = range(first, min(first + block, steps))
        for place in range(len(processes)):
            which = (turn + place) % len(processes)
            blocks[which].append(processes[which].take(numbers))
    return blocks
