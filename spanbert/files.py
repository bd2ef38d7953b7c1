"""Files that are whole or absent: written aside, synced to the disk, then renamed into place. Reading has bounds."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from spanbert.errors import UserError

#: What a file that is read whole may hold: settings, vocabularies and indexes; a text; labelled or predicted records.
SETTINGS_BYTES, TEXT_BYTES, RECORDS_BYTES = 64 << 20, 256 << 20, 1 << 30
READ_BYTES = 1 << 20  # at a time


def read_bounded(path: Path | str, limit: int, what: str) -> bytes:
    """The bytes of a file or a pipe ("-": standard input) that is to be held in memory whole, at most ``limit`` of them.

    what: what the file is to the user, as in "the text". Memory grows with what there is, not with ``limit``. Raises
    UserError for what cannot be read, for folders, for devices (some of which never end) and for more than ``limit`` bytes.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            if sys.stdin is None:
                raise UserError(f"standard input is closed: {what} cannot be read from it")
            return _read_at_most(sys.stdin.buffer, limit, what, name)
        mode = Path(path).stat()
        if stat.S_ISDIR(mode.st_mode):
            raise UserError(f"{name} is a folder: {what} is read from a file")
        if stat.S_ISCHR(mode.st_mode) or stat.S_ISBLK(mode.st_mode):
            raise UserError(f"{name} is a device: {what} is read from a file or a pipe")
        if stat.S_ISREG(mode.st_mode) and mode.st_size > limit:
            raise _too_much(name, limit, what)
        with Path(path).open("rb") as handle:
            return _read_at_most(handle, limit, what, name)
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error
    except OSError as error:
        raise UserError(f"{name}: {what} cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a file name with a NUL, a closed stream
        raise UserError(f"{name}: {what} cannot be read ({error})") from error


def _read_at_most(handle: IO[bytes], limit: int, what: str, name: str) -> bytes:
    data = bytearray()
    while block := handle.read(READ_BYTES):
        data += block
        if len(data) > limit:
            raise _too_much(name, limit, what)
    return bytes(data)


def _too_much(name: str, limit: int, what: str) -> UserError:
    size = f"{limit / (1 << 20):,.0f} MiB" if limit >= 1 << 20 else f"{limit:,} bytes"
    return UserError(f"{name} holds more than {size}, the most that is read for {what}")


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Write ``content`` so that a reader (or a crash) sees the old file or the new one, never a part.

    Raises UserError when the disk is full; the old file then stands.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    data = content.encode("utf-8") if isinstance(content, str) else content
    with report_full_disk(path):
        try:
            with aside.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give a new empty sibling folder to fill; when the block ends well, sync it and rename it to ``path``.

    An existing ``path`` is replaced at the end and stands until then. On any exception the new folder is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    with report_full_disk(path):
        try:
            aside.mkdir()
            yield aside
            for file in sorted(aside.rglob("*")):
                if file.is_file():
                    sync_file(file)
            for folder in [*(f for f in aside.rglob("*") if f.is_dir()), aside]:
                sync_folder(folder)
            if path.exists():
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
                aside.rename(path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                aside.rename(path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written in ``folder``; bring back a folder it had moved aside."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if not entry.name.startswith("."):
            continue
        if entry.name.endswith(".old"):
            whole = folder / entry.name[1:].rsplit(".", 2)[0]
            if not whole.exists():
                entry.rename(whole)
                continue
        if entry.name.endswith((".partial", ".old")):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def remove_folder(path: Path) -> None:
    """Delete a folder so that a crash half-way leaves nothing that looks like one: it loses its name first."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable (a rename is only as safe as its directory entry)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(file: Path) -> None:
    """Make what was written to ``file`` durable: for one that another file, written later, vouches for."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def sha256(file: Path) -> str:
    """Hash of a file's content, in hexadecimal; the file is read in parts."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def report_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" inside the block into one sentence (UserError) that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        raise UserError(
            f"the disk is full while writing {path}: what was there before still stands; "
            "free some space and run the same command again"
        ) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether ``error`` says that a disk or a quota is full. safetensors says it in words only."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in numbers
    return any(f"os error {number}" in str(error) for number in numbers)
