"""The one exception that a user is meant to read, and notes about what was read otherwise than it may seem."""

from __future__ import annotations

import sys


class UserError(Exception):
    """Bad input or a wrong flag. The message is one sentence or two: what (file, line, record), expected what, do what.

    The command line prints it after ``error:`` and exits with status 2; nothing else in the message is for machines.
    """


_noted: set[str] = set()


def note(line: str) -> None:
    """Print ``note: line`` to standard error, the same line once in a process."""
    if line not in _noted:
        _noted.add(line)
        print(f"note: {line}", file=sys.stderr)
