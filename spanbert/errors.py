"""The one exception that a user is meant to read, and notes about what was read otherwise than it may seem."""

from __future__ import annotations

import os
import re
import sys

LONGEST_MESSAGE = 2000  # characters


class UserError(Exception):
    """Bad input or a wrong flag. The message is one sentence or two: what (file, line, record), expected what, do what.

    The command line prints it after ``error:`` and exits with status 2; nothing else in the message is for machines.
    A message that quotes a file's or a flag's very long value is cut in the middle: what is wrong and what to do remain.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[: LONGEST_MESSAGE // 2]} … {message[-LONGEST_MESSAGE // 2 :]}"
        super().__init__(message)


def outside_cause(error: Exception) -> str | None:
    """What went wrong outside the program (a file, a disk, memory), in a sentence; None where it is a bug's exception."""
    if isinstance(error, OSError):
        return describe_os_error(error)
    if isinstance(error, RecursionError):
        return "the input is nested too deeply to be read"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        return f"memory ran out ({first_line(error)})" if str(error) else "memory ran out"
    return None


def describe_os_error(error: OSError) -> str:
    """The system's error in words, with the names of the files where it gives them."""
    names = " → ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
    reason = error.strerror or first_line(error)
    return f"{names}: {reason}" if names else reason


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its class's name where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


#: PyTorch's words for it; safetensors and the tokenizers library say it as an OSError or not at all.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)

_noted: set[str] = set()


def note(line: str) -> None:
    """Print ``note: line`` to standard error, the same line once in a process."""
    if line not in _noted:
        _noted.add(line)
        print(f"note: {line}", file=sys.stderr)
