"""What a training command prints is not its work: when nobody can read it any more, the work continues."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Stream:
    """A text stream that goes silent, instead of raising, when its reader is gone (``| head``) or its disk is full."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._silence()

    def _silence(self) -> None:
        """Let the descriptor lead nowhere, so that what is still buffered, and Python's own last flush, fail no more."""
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor has none to redirect
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextlib.contextmanager
def output_may_fail() -> Iterator[None]:
    """While active, errors of standard output and standard error are swallowed, and the stream is silent from then on."""
    before = sys.stdout, sys.stderr
    with contextlib.redirect_stdout(_Stream(before[0])), contextlib.redirect_stderr(_Stream(before[1])):
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
