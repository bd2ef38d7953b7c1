"""Stopping politely: a signal asks the training loop to end after its step, so that it can save first."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self


class StopRequest:
    """While active, SIGINT and SIGTERM only set ``requested``; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
