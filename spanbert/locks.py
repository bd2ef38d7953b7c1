"""Locks between processes: an open file that one process holds, and that the system lets go of when it ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO


def try_lock(path: Path, patience: int = 0) -> IO[str] | None:
    """Hold ``path`` (made if absent) until the file returned is closed, or None when another process holds it.

    patience: seconds to wait for that process.
    """
    for seconds_left in range(patience, -1, -1):
        handle = path.open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, path):
                return handle
        except BlockingIOError:
            time.sleep(1 if seconds_left else 0)
        except OSError as error:  # a file system without locks
            error.filename = str(path)
            handle.close()
            raise
        handle.close()
    return None


def _is_at(handle: IO[str], path: Path) -> bool:
    """Whether the open file is still the one at ``path``: a lock on one that was removed since keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def is_locked(path: Path) -> bool:
    """Whether another process holds ``path``; nothing is made or changed."""
    if not path.exists():
        return False
    with path.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
