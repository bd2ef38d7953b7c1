"""What reaches the terminal: a user's text is shown, never obeyed, and no character or closed stream ends a command.

A document, a name or an error message may hold escape sequences, which retitle the window or hide what follows. While
``safe_output`` is active, everything that is printed shows them as ``\\u001b``: written so, JSON means what it meant.
The program's own colours pass, since ``colour`` marks them with a word that no text can know.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import secrets
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_SECRET = secrets.token_hex(8)
_COLOUR_OR_CONTROL = re.compile(rf"\x1b{_SECRET}(?P<colour>\[[0-9;]*m)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class OutputLost(OSError):
    """Standard output cannot be written, for the reason that ``error`` says."""

    def __init__(self, error: OSError):
        super().__init__(error.strerror)  # without its number: a full disk under the output is not one under a file
        self.reader_left = isinstance(error, BrokenPipeError)


def colour(codes: str) -> str:
    """The sequence that switches to ``codes`` ("1;32": bold green, "0": back), to be printed under ``safe_output``."""
    return f"\x1b{_SECRET}[{codes}m"


def printable(text: str) -> str:
    """``text`` on one line, with all its control characters shown: for names in tables."""
    return _CONTROL.sub(_shown, text)


def open_missing_streams() -> None:
    """Let standard streams that were closed (``2>&-``) lead nowhere.

    Else the next file that is opened takes the number of the closed one, and what a library prints is written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (for the process's life)


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """While active, what is printed is safe to show; OutputLost is raised where standard output cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=JSON_ESCAPES)
    with (
        contextlib.redirect_stdout(_SafeStream(sys.stdout, is_output=True)),
        contextlib.redirect_stderr(_SafeStream(sys.stderr, is_output=False)),
    ):
        yield


@contextlib.contextmanager
def untouched_output() -> Iterator[None]:
    """Inside ``safe_output``: while active, what is printed passes as it is. For a library's output that has colours."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, _SafeStream)]
    for stream in streams:
        stream.untouched = True
    try:
        yield
    finally:
        for stream in streams:
            stream.untouched = False


class _SafeStream:
    """A text stream that shows control characters. Standard error passes a return at the beginning, a bar's."""

    def __init__(self, stream: TextIO, is_output: bool):
        self._stream, self._is_output = stream, is_output
        self.untouched = self._bar_is_open = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        # an error may end what the bar counted
        ended = "\n" if self._bar_is_open and not text.startswith(("\r", "\n")) else ""
        shown = text
        self._bar_is_open = not self._is_output and text.startswith("\r") and not text.isspace()
        if not self.untouched:
            bar = "" if self._is_output or not text.startswith("\r") else "\r"
            shown = bar + _COLOUR_OR_CONTROL.sub(_passed_or_shown, text[len(bar) :])
        try:
            self._stream.write(ended + shown)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        """Lead the stream nowhere, so that Python's own last flush does not fail again; that of output ends the command."""
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor has none to redirect
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        if self._is_output:
            raise OutputLost(error) from error


def _passed_or_shown(match: re.Match[str]) -> str:
    return f"\x1b{match['colour']}" if match["colour"] else _shown(match)


def _shown(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _as_json_escapes(error: UnicodeError) -> tuple[str, int]:
    """What the terminal's encoding lacks, as JSON writes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2)), error.end


#: The ``errors`` of an encoding that writes what it lacks as JSON does.
JSON_ESCAPES = "spanbert.json_escapes"
codecs.register_error(JSON_ESCAPES, _as_json_escapes)
