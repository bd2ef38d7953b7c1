"""Bytes of input files: found, opened, decompressed and counted; damage is reported with the file's name."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa

from spanbert.errors import UserError

COMPRESSIONS = (".gz", ".xz", ".zst")
FORMATS = (".txt", ".jsonl", ".parquet")
BLOCK_BYTES = 1 << 20


def find_files(inputs: tuple[str, ...]) -> list[str]:
    """Files, folders (recursively, sorted by path), hf:NAME and "-", as one list of sources in a fixed order.

    A folder gives the files in it whose names end in .txt, .jsonl or .parquet (each possibly compressed); a file that
    is named itself may end in anything and counts as text then. Raises UserError for a path that does not exist.
    """
    sources: list[str] = []
    for given in inputs:
        if given == "-" or given.startswith("hf:"):
            sources.append(given)
            continue
        path = Path(given)
        if path.is_dir():
            inside = sorted(
                p
                for p in path.rglob("*")
                if p.is_file() and file_format(p) and not any(n.startswith(".") for n in p.relative_to(path).parts)
            )
            if not inside:
                raise UserError(
                    f"folder {path} holds no file that ends in .txt, .jsonl or .parquet (or those + .gz/.xz/.zst)"
                )
            sources.extend(map(str, inside))
        elif path.exists():
            sources.append(given)
        else:
            raise UserError(f"input {path} does not exist: name files, folders, hf:NAME[:CONFIG[:SPLIT]] or -")
    if not sources:
        raise UserError("no input named: give files, folders, hf:NAME[:CONFIG[:SPLIT]] or - for standard input")
    if sources.count("-") > 1:
        raise UserError("standard input (-) is named twice; it can be read once")
    return sources


def file_format(path: Path) -> str | None:
    """ ".txt", ".jsonl" or ".parquet" by the name without its compression; None for any other name."""
    inner = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    return inner.suffix if inner.suffix in FORMATS else None


class Progress:
    """How many bytes of the inputs, as stored on disk, have been read."""

    def __init__(self) -> None:
        self.bytes = 0


class _Counted(io.RawIOBase):
    def __init__(self, raw: IO[bytes], progress: Progress) -> None:
        self._raw, self._progress = raw, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self._progress.bytes += len(data)
        return len(data)


@contextmanager
def open_stream(source: str, progress: Progress) -> Iterator[IO[bytes]]:
    """The decompressed bytes of one file, or of standard input for "-".

    Raises UserError naming the file when it cannot be read, or when its compressed data is damaged or cut short.
    """
    path = Path(source)
    try:
        raw = sys.stdin.buffer if source == "-" else path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from error
    try:
        counted = io.BufferedReader(_Counted(raw, progress), BLOCK_BYTES)
        if path.suffix == ".gz":
            yield gzip.GzipFile(fileobj=counted)
        elif path.suffix == ".xz":
            yield lzma.LZMAFile(counted)  # noqa: SIM115 (closing `raw` below is enough)
        elif path.suffix == ".zst":
            yield pa.CompressedInputStream(pa.PythonFile(counted, mode="r"), "zstd")
        else:
            yield counted
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{source} is damaged or cut short ({error}): copy or download it again") from error
    except OSError as error:
        if path.suffix == ".zst" and error.errno is None:  # what the decompressor says; the system sets a number
            raise UserError(f"{source} is damaged or cut short ({error}): copy or download it again") from error
        raise
    finally:
        if raw is not sys.stdin.buffer:
            raw.close()


def read_blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Blocks of about 1 MiB; the byte order mark of UTF-8 is dropped."""
    first = True
    while block := stream.read(BLOCK_BYTES):
        yield block.removeprefix(b"\xef\xbb\xbf") if first else block
        first = False


@contextmanager
def open_seekable(source: str, progress: Progress) -> Iterator[IO[bytes]]:
    """A file one can seek in, as parquet needs: the file itself, or a temporary copy of what is compressed."""
    if Path(source).suffix not in COMPRESSIONS:
        with Path(source).open("rb") as handle:
            yield handle
        return
    with tempfile.TemporaryFile() as copy, open_stream(source, progress) as stream:
        for block in read_blocks(stream):
            copy.write(block)
        copy.seek(0)
        yield copy
