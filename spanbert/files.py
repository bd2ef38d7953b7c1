"""Files that are whole or absent: written aside, synced to the disk, then renamed into place. Reading has bounds."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import itertools
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from safetensors import SafetensorError

from spanbert.errors import UserError
from spanbert.terminal import JSON_ESCAPES

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

    Lone surrogates, which UTF-8 lacks, are written as JSON writes them. Raises UserError when the disk is full; the old
    file then stands.
    """
    data = content.encode("utf-8", JSON_ESCAPES) if isinstance(content, str) else content
    with atomic_file(path) as handle:
        handle.write(data)


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[IO[bytes]]:
    """Give a new file to write, for content that comes bit by bit; when the block ends well, it is synced and becomes ``path``.

    Raises UserError when the disk is full. On that and any other exception the old file stands.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with report_full_disk(path), named_errors(path):
        try:
            with aside.open("wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            aside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path | str, replace: bool = True) -> Iterator[Path]:
    """Give a new empty sibling folder to fill; when the block ends well, sync it and rename it to ``path``.

    An existing ``path`` is replaced at the end and stands until then; without ``replace`` only an empty one is, and
    UserError is raised when another process has put something there meanwhile. On any exception the new folder is
    removed; what a killed process had left of one is removed at the beginning.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    with report_full_disk(path), named_errors(path):
        aside, owned = _new_folder_aside(path)
        try:
            yield aside
            for file in sorted(aside.rglob("*")):
                if file.is_file():
                    sync_file(file)
            for folder in [*(f for f in aside.rglob("*") if f.is_dir()), aside]:
                sync_folder(folder)
            if replace and path.exists():
                _swap(aside, path)
            else:
                _rename_to_new(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        finally:
            _let_go(owned)
        sync_folder(path.parent)


def _new_folder_aside(path: Path) -> tuple[Path, int | None]:
    """An empty folder beside ``path`` that nobody else has, and the lock that shows that its maker lives."""
    for number in itertools.count(os.getpid()):
        aside = path.with_name(f".{path.name}.{number}.partial")
        try:
            aside.mkdir()
        except FileExistsError:  # of a process of this number, on another machine or in another container
            continue
        owned = _claim(aside)
        if aside.is_dir():  # or another process took it for a left-over before it was claimed
            return aside, owned
        _let_go(owned)
    raise AssertionError


def _rename_to_new(aside: Path, path: Path) -> None:
    """A rename replaces a folder only if that is empty, whatever other processes do."""
    try:
        aside.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise UserError(f"{path}: another process has written it meanwhile; what it wrote stands") from error


def _swap(aside: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    owned = _claim(path)  # so that nobody brings it back between the two renames
    try:
        path.rename(old)
        try:
            aside.rename(path)
        except BaseException:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        _let_go(owned)


def _claim(folder: Path) -> int | None:
    """Lock a folder until ``_let_go``, or until this process and those forked of it have ended; None: it cannot be."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else has it, or the file system has no such locks
        os.close(descriptor)
        return None
    return descriptor


def _let_go(claimed: int | None) -> None:
    if claimed is not None:
        os.close(claimed)


def clear_leftovers(path: Path) -> None:
    """Remove what ``atomic_folder`` of killed processes left of ``path``, and bring back a folder they had moved aside.

    Theirs are folders of its names that no living process holds; where that cannot be told, they stay.
    """
    theirs = re.compile(rf"\.{re.escape(path.name)}\.[0-9]+\.(partial|old)")
    with contextlib.suppress(OSError):  # tidying is no reason to fail
        for entry in list(path.parent.iterdir()):
            match = theirs.fullmatch(entry.name)
            claimed = _claim(entry) if match else None
            if match is None or claimed is None:
                continue
            try:
                if match[1] == "old" and not path.exists():
                    entry.rename(path)
                else:
                    shutil.rmtree(entry, ignore_errors=True)
            finally:
                _let_go(claimed)


def check_writable(path: Path, kind: Literal["file", "files inside", "folder"], option: str = "--output") -> None:
    """Prove that ``path`` can be written, before the work whose result goes there; nothing is left of the proof.

    kind: a file, files in a folder that may be there already, or a folder as a whole, as ``atomic_folder`` makes it.
    Raises UserError when it cannot.
    """
    made: list[Path] = []
    inside = path if kind == "files inside" else path.parent
    probe = inside / f".{path.name}.{os.getpid()}.writable"  # longer than any name that is written
    try:
        if kind == "file" and path.is_dir():
            raise UserError(f"{option} {path} is a folder: name a file")
        if kind != "file" and path.exists() and not path.is_dir():
            raise UserError(f"{option} {path} is a file: give the name of a folder")
        if kind == "folder" and path.is_mount():
            raise UserError(f"{option} {path} is where a file system is mounted: name a folder in it")
        with contextlib.suppress(OSError):
            for old in inside.glob(f".{glob.escape(path.name)}.*.writable"):  # of a process that was killed
                old.unlink(missing_ok=True)
        try:
            for folder in reversed([probe.parent, *probe.parent.parents]):
                if not folder.is_dir():
                    folder.mkdir()
                    made.append(folder)
            with probe.open("wb") as handle:
                handle.write(bytes(4096))  # a full disk still makes empty files
                handle.flush()
                os.fsync(handle.fileno())
        finally:
            try:
                probe.unlink(missing_ok=True)  # where nothing can be removed, nothing can be renamed into place
            finally:
                for folder in reversed(made):
                    with contextlib.suppress(OSError):
                        folder.rmdir()
    except OSError as error:
        raise UserError(
            f"{option} {path} cannot be written ({error.strerror or error}): choose another place"
        ) from error


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
            "free some space and give the same command again, for training with --resume"
        ) from error


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Give the system's errors inside the block that name no file (of writing, syncing, closing) this one's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether ``error`` says that a disk or a quota is full. safetensors says it in words only."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in numbers
    return any(f"os error {number}" in str(error) for number in numbers)
