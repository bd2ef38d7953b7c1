"""Stopping politely: a signal asks the training loop to end after its step, so that it can save first."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType
from typing import Self

#: Ctrl-C, a scheduler's or ``kill``'s request, and a terminal that was closed.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """A command ended early because a signal asked it to, after it had saved what it had and said so.

    The front door turns it into the exit status that shells expect, 128 + the signal's number (130, 143, 129), so that
    ``spanbert pretrain … && spanbert finetune …`` does not continue with half a model.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        return 128 + self.number


def votes(number: int | None) -> list[float]:
    """A signal (or none) as numbers that ranks can add up: one for each of ``STOP_SIGNALS``."""
    return [float(number == asked) for asked in STOP_SIGNALS]


def voted(totals: Sequence[float]) -> int | None:
    """The signal that any rank was sent, from the sum of all ranks' ``votes``; the same on every rank."""
    return next((number for number, ranks in zip(STOP_SIGNALS, totals, strict=True) if ranks), None)


class StopRequest:
    """While active, the stop signals only set ``number``; a second SIGINT interrupts at once.

    A SIGHUP that is ignored (``nohup``) stays ignored.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that came."""

    @property
    def requested(self) -> bool:
        return self.number is not None

    def __enter__(self) -> Self:
        handled = [n for n in STOP_SIGNALS if not (n == signal.SIGHUP and signal.getsignal(n) == signal.SIG_IGN)]
        self._before = {number: signal.signal(number, self._ask) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_if_requested(self) -> None:
        """Raises Stopped; to be called when everything is saved. (Ranks have to agree first: ``votes``.)"""
        if self.number is not None:
            raise Stopped(self.number)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is None:
            self.number = number
