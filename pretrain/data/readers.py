"""Bytes of input files: found, opened, decompressed and counted; damage is reported with the file's name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import pyarrow as pa

from pretrain.data.formats import FORMATS, NAMES, compression_of, looks_like_text, name_suffixes
from spanbert.errors import UserError, note

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16  # enough to say what a file is


class Found(NamedTuple):
    """Sources in a fixed order, how many files of which kind were left out of folders, and for each source its input."""

    sources: list[str]
    left_out: dict[str, int]
    input_of: list[int]


def find_files(inputs: tuple[str, ...]) -> Found:
    """Files, folders (recursively, sorted by path), hf:NAME and "-", as one list of sources in a fixed order.

    A folder gives the files in it with a known suffix in any case (``formats.FORMATS``, each possibly compressed) and
    those without a suffix that look like text. Links are followed, but nothing is read twice. A file that is named
    itself may be called anything. Raises UserError for a path that does not exist.
    """
    sources: list[str] = []
    input_of: list[int] = []
    left_out: Counter[str] = Counter()
    for number, given in enumerate(inputs):
        path = Path(given)
        if given == "-" or given.startswith("hf:"):
            sources.append(given)
        elif path.is_dir():
            inside = _search(path, left_out)
            if not inside:
                besides = f"; it holds {describe_left_out(left_out)}" if left_out else ""
                raise UserError(f"folder {path} holds no file that ends in {NAMES}{besides}")
            sources.extend(map(str, inside))
        elif path.exists():
            sources.append(given)
        else:
            raise UserError(f"input {path} does not exist: name files, folders, hf:NAME[:CONFIG[:SPLIT]] or -")
        input_of += [number] * (len(sources) - len(input_of))
    if not sources:
        raise UserError("no input named: give files, folders, hf:NAME[:CONFIG[:SPLIT]] or - for standard input")
    if sources.count("-") > 1:
        raise UserError("standard input (-) is named twice; it can be read once")
    return Found(sources, dict(sorted(left_out.items())), input_of)


def describe_left_out(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(left_out.items()))


def _search(top: Path, left_out: Counter[str]) -> list[Path]:
    """The files of a folder that are read; what is not is counted by kind."""
    files: list[Path] = []
    entered = {top.resolve()}
    for folder, folders, names in os.walk(top, followlinks=True):
        here = Path(folder)
        for name in sorted(folders):
            inner = (here / name).resolve()
            if name.startswith("."):
                left_out["hidden (folders)"] += 1
            elif inner in entered:
                left_out["linked again (folders)"] += 1
            else:
                entered.add(inner)
                continue
            folders.remove(name)
        folders.sort()
        files += [here / name for name in names]
    chosen: list[Path] = []
    known: set[Path] = set()
    for path in sorted(files, key=lambda path: (path.is_symlink(), path)):  # a file itself before links to it
        if kind := _why_not(path):
            left_out[kind] += 1
        elif path.resolve() in known:
            left_out["linked again"] += 1
        else:
            known.add(path.resolve())
            chosen.append(path)
    return sorted(chosen)


def _why_not(path: Path) -> str | None:
    """The kind of a file that is not read; None for one that is."""
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "broken links or no files"
    suffix, _ = name_suffixes(path)
    if suffix in FORMATS:
        return None
    if suffix:
        return suffix
    try:
        with path.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError:
        return "unreadable"
    return (
        None if compression_of(head) or head.startswith(b"PAR1") or looks_like_text(head) else "without suffix, no text"
    )


class Progress:
    """How many bytes of the inputs, as stored on disk, have been read."""

    def __init__(self) -> None:
        self.bytes = 0


class _Counted(io.RawIOBase):
    def __init__(self, raw: IO[bytes], progress: Progress) -> None:
        self._raw, self._progress = raw, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self._progress.bytes += len(data)
        return len(data)


class Readable(Protocol):
    """What a decompressor is here."""

    def read(self, size: int, /) -> bytes: ...


class Stream:
    """Bytes that can be looked at before they are read. read gives as many as asked for, but at the end."""

    def __init__(self, raw: Readable) -> None:
        self._raw = raw
        self._head = b""

    def peek(self, size: int = HEAD_BYTES) -> bytes:
        while len(self._head) < size and (more := self._raw.read(size - len(self._head))):
            self._head += more
        return self._head[:size]

    def read(self, size: int) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        return data + self._raw.read(size - len(data)) if len(data) < size else data


@contextmanager
def open_stream(source: str, progress: Progress) -> Iterator[Stream]:
    """The decompressed bytes of one file, or of standard input for "-"; compression is told by the first bytes.

    Raises UserError naming the file when it cannot be read, or when its compressed data is damaged or cut short.
    """
    path = Path(source)
    try:
        raw = sys.stdin.buffer if source == "-" else path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from error
    compression = None
    try:
        counted = io.BufferedReader(_Counted(raw, progress), BLOCK_BYTES)
        head = counted.peek(8)[:8]
        compression = compression_of(head)
        promised = None if source == "-" else name_suffixes(path)[1]
        if head and promised != compression and promised is not None:
            damage = "is damaged or cut short (it does not begin as such a file does)"
            raise UserError(f"{source} {damage}: copy or download it again, or rename it if it is not {promised[1:]}")
        if compression != promised and compression is not None:
            note(f"{source} is compressed ({compression[1:]}), whatever its name says: read as that")
        if compression == ".gz":
            yield Stream(gzip.GzipFile(fileobj=counted))
        elif compression == ".xz":
            yield Stream(lzma.LZMAFile(counted))  # noqa: SIM115 (closing `raw` below is enough)
        elif compression == ".bz2":
            yield Stream(bz2.BZ2File(counted))
        elif compression == ".zst":
            yield Stream(pa.CompressedInputStream(pa.PythonFile(counted, mode="r"), "zstd"))
        else:
            yield Stream(counted)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{source} is damaged or cut short ({error}): copy or download it again") from error
    except OSError as error:
        if (
            compression in (".zst", ".bz2") and error.errno is None
        ):  # the decompressors' words; the system sets a number
            raise UserError(f"{source} is damaged or cut short ({error}): copy or download it again") from error
        raise
    finally:
        if raw is not sys.stdin.buffer:
            raw.close()


def read_blocks(stream: Stream) -> Iterator[bytes]:
    """Blocks of about 1 MiB; the byte order mark of UTF-8 is dropped."""
    first = True
    while block := stream.read(BLOCK_BYTES):
        yield block.removeprefix(b"\xef\xbb\xbf") if first else block
        first = False


@contextmanager
def open_seekable(source: str, stream: Stream) -> Iterator[IO[bytes]]:
    """A file one can seek in, as parquet needs: the file itself, or a temporary copy of what is compressed or piped."""
    if source != "-":
        with Path(source).open("rb") as handle:
            if handle.read(4) == b"PAR1":
                yield handle
                return
    with tempfile.TemporaryFile() as copy:
        while block := stream.read(BLOCK_BYTES):
            copy.write(block)
        copy.seek(0)
        yield copy


def read_lines(stream: Stream) -> Iterator[bytes]:
    """Lines without their ends. (A line is one record here, so it has to fit into memory.)"""
    pending: list[bytes] = []
    for block in read_blocks(stream):
        first, *others = block.split(b"\n")
        pending.append(first)
        for line in others:
            yield b"".join(pending)
            pending = [line]
    if last := b"".join(pending):
        yield last


def whole_lines(blocks: Iterator[bytes], longest: int) -> Iterator[bytes]:
    """The same bytes in blocks that end with a line, so that no tag is cut; one above ``longest`` bytes comes as it is."""
    pending = b""
    for block in blocks:
        lines, end, rest = (pending + block).rpartition(b"\n")
        if lines or end:
            yield lines + end
        pending = rest
        if len(pending) > longest:
            yield pending
            pending = b""
    yield pending
