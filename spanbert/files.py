"""Files that are whole or absent: written aside, synced to the disk, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from spanbert.errors import UserError


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
