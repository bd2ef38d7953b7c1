"""Labelled files record by record: what a reader met, what it left out, and why.

A malformed record is named by file and place. While training it is skipped, counted and listed; while evaluating or
predicting it ends the command, for a score over other records than the file's would be another file's score.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from spanbert.errors import UserError

#: What a file is read for: malformed records are skipped in training only, labels are needed except to predict.
Purpose = Literal["train", "evaluate", "predict"]


class MalformedRecord(ValueError):
    """What is wrong with one record. ``reason`` is the kind, for counts; ``detail`` is what was found in this one."""

    advice: ClassVar[str] = "correct the record"

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class NoTokens(MalformedRecord):
    """The tokenizer finds nothing in a text, for instance in one of control characters only."""

    def __init__(self, part: str):
        super().__init__("no tokens", f"the {part} holds no text")


@dataclass
class RecordReport:
    """What was met in ``path``: examples read, and records skipped by reason with a line for each.

    strict: a malformed record ends the command instead.
    """

    path: Path
    strict: bool
    examples: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def malformed(self, where: str, error: MalformedRecord) -> None:
        """Note one record. Raises UserError when the report is strict."""
        line = f"{self.path}: {where}: {error}"
        if self.strict:
            raise UserError(f"{line}; {error.advice}.")
        self.skipped[error.reason] += 1
        self.lines.append(line)

    @property
    def losses(self) -> str:
        """``; skipped 3 malformed records: 2 × …, 1 × …``, or nothing."""
        if not self.skipped:
            return ""
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in self.skipped.most_common())
        return f"; skipped {sum(self.skipped.values()):,} malformed records: {reasons}"


@contextlib.contextmanager
def readable(path: Path, errors: str = "strict") -> Iterator[io.TextIOWrapper]:
    """``path`` opened by ``open_text``; whatever goes wrong while it is read becomes a UserError that names it."""
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with open_text(path, errors) as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip file is damaged or cut short ({error}).") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None


def open_text(path: Path, errors: str = "strict") -> io.TextIOWrapper:
    """`path` as UTF-8 text, gunzipped when it starts with gzip's magic number, whatever its name.

    errors: "surrogateescape" for files of many lines, where ``check_text`` then finds the bytes that are not UTF-8.
    """
    with path.open("rb") as probe:
        compressed = probe.read(2) == b"\x1f\x8b"
    binary = gzip.open(path, "rb") if compressed else path.open("rb")  # noqa: SIM115 (closed by the wrapper)
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors=errors, newline="\n")


def has(entry: Any, key: str) -> bool:
    """Whether ``entry`` is an object with that key."""
    return isinstance(entry, dict) and key in entry


def need(entry: Any, key: str, kind: type) -> Any:
    """entry[key], or MalformedRecord when it is absent or not of `kind`."""
    if not has(entry, key):
        raise MalformedRecord("missing field", f'"{key}"')
    value = entry[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise MalformedRecord("field of the wrong type", f'"{key}" is {type(value).__name__}')
    return value


def need_text(entry: Any, key: str) -> str:
    """entry[key] as checked by ``check_text``."""
    text = need(entry, key, str)
    check_text(text, key)
    return text


def check_text(text: str, key: str) -> None:
    """MalformedRecord unless not blank and encodable (JSON allows lone surrogates; no tokenizer does)."""
    if not text.strip():
        raise MalformedRecord("empty field", f'"{key}"')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= text[error.start] <= "\udcff":
            raise MalformedRecord("not UTF-8", f'in "{key}" at character {error.start}') from None
        raise MalformedRecord("lone surrogate", f'in "{key}" at character {error.start}') from None
