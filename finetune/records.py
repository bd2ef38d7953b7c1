"""Labelled files record by record: what a reader met, what it left out, and why.

A malformed record is named by file and place. While training it is skipped, counted and listed; while evaluating or
predicting it ends the command, for a score over other records than the file's would be another file's score.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from spanbert.config import WORDS_FOR, kind_of
from spanbert.errors import UserError
from spanbert.files import TEXT_BYTES, read_bounded

#: What a file is read for: malformed records are skipped in training only, labels are needed except to predict.
Purpose = Literal["train", "evaluate", "predict"]

STDIN = Path("-")

#: Bytes that a gzip file of labelled records may unpack to; the training file of SQuAD 2.0 has 42 million.
LARGEST_UNPACKED = 1 << 31

#: No gzip file unpacks to more than this many times its size.
DEFLATE_RATIO = 1032


class MalformedRecord(ValueError):
    """What is wrong with one record. ``reason`` is the kind, for counts; ``detail`` is what was found in this one.

    examples: how many are lost with the record: all questions of a paragraph, for instance.
    """

    advice: ClassVar[str] = "correct the record"

    def __init__(self, reason: str, detail: str = "", examples: int = 1):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.examples = reason, detail, examples


class NoTokens(MalformedRecord):
    """The tokenizer finds nothing in a text, for instance in one of control characters only.

    It is noticed after reading, so its examples have been counted as read.
    """

    def __init__(self, part: str, examples: int = 1):
        super().__init__("no tokens", f"the {part} holds no text", examples)


class NoLabel(MalformedRecord):
    """The record lacks what a model is to learn, or is to be compared with; without it, it may still be predicted."""

    advice = "labels are needed to train and to evaluate, and none to run `spanbert predict`"

    def __init__(self, field: str):
        super().__init__(f'missing field "{field}"')


@dataclass
class RecordReport:
    """What was met in ``path``: examples read, and records skipped by reason with a line for each.

    strict: a malformed record ends the command instead.
    """

    path: Path
    strict: bool
    noun: str = "examples"
    examples: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    lost: int = 0
    """Examples in the skipped records."""
    unlabelled: int = 0
    """Skipped records that lack nothing but the label."""
    first: dict[str, str] = field(default_factory=dict)
    """Reason → place of the first record that was skipped for it."""

    def malformed(self, where: str, error: MalformedRecord) -> None:
        """Note one record. Raises UserError when the report is strict."""
        line = printable(f"{self.path}: {where}: {error}")
        if self.strict:
            raise UserError(f"{line}; {error.advice}.")
        self.skipped[error.reason] += 1
        self.first.setdefault(error.reason, printable(where))
        self.lost += error.examples
        self.unlabelled += isinstance(error, NoLabel)
        if isinstance(error, NoTokens):
            self.examples -= error.examples
        self.lines.append(line)

    @property
    def losses(self) -> str:
        """``; skipped 3 malformed records with 12 questions: 2 × … (first: line 3), 1 × …``, or nothing."""
        if not self.skipped:
            return ""
        reasons = ", ".join(
            f"{count:,} × {reason} ({'first: ' if count > 1 else ''}{self.first[reason]})"
            for reason, count in self.skipped.most_common()
        )
        records = sum(self.skipped.values())
        examples = f" with {self.lost:,} {self.noun}" if self.lost != records else ""
        return f"; skipped {records:,} malformed {'record' if records == 1 else 'records'}{examples}: {reasons}"

    def nothing_left(self, summary: str) -> UserError:
        """For a file without a single example that can be used."""
        advice = f"; {NoLabel.advice}" if self.unlabelled else ""
        return UserError(f"{self.path}: holds no usable {self.noun}. {summary}{advice}.")


def printable(text: str, longest: int = 1000) -> str:
    """The text on one line, cut where it is very long, and with escapes for what no terminal or file takes."""
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def readable(path: Path, errors: str = "strict") -> Iterator[io.TextIOWrapper]:
    """``path`` opened by ``open_text``, or for ``-`` standard input, of which at most TEXT_BYTES are taken.

    Whatever goes wrong while it is read becomes a UserError that names it, as is whatever is not a file: most are read
    more than once, which a pipe cannot be.
    """
    try:
        if path == STDIN:
            data = io.BytesIO(read_bounded("-", TEXT_BYTES, "labelled texts or texts to predict"))
            yield io.TextIOWrapper(data, encoding="utf-8-sig", errors=errors, newline="\n")
            return
        if path.is_dir():
            raise UserError(f"{path}: a folder; give a file.")
        if not path.is_file():
            raise UserError(f"{path}: {'a pipe or a device; give a file' if path.exists() else 'no such file'}.")
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
    Raises UserError for a gzip file that unpacks to more than LARGEST_UNPACKED bytes, before any of it is kept.
    """
    with path.open("rb") as probe:
        compressed = probe.read(2) == b"\x1f\x8b"
    if compressed:
        _check_unpacked(path)
    binary = gzip.open(path, "rb") if compressed else path.open("rb")  # noqa: SIM115 (closed by the wrapper)
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors=errors, newline="\n")


def _check_unpacked(path: Path) -> None:
    if path.stat().st_size * DEFLATE_RATIO <= LARGEST_UNPACKED:
        return
    with gzip.open(path, "rb") as stream:
        unpacked = 0
        while part := stream.read(1 << 20):
            unpacked += len(part)
            if unpacked > LARGEST_UNPACKED:
                raise UserError(
                    f"{path}: unpacks to more than {LARGEST_UNPACKED:,} bytes, the limit for a gzip file of labelled "
                    "records; if that is meant, unpack it (gunzip) and give the plain file."
                )


def parse_line(line: str) -> Any:
    """The JSON value of one line. MalformedRecord for what is none, a number of more digits than Python reads included."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise MalformedRecord("line is not valid JSON") from None


def has(entry: Any, key: str) -> bool:
    """Whether ``entry`` is an object with that key."""
    return isinstance(entry, dict) and key in entry


def need(entry: Any, key: str, kind: type) -> Any:
    """entry[key], or MalformedRecord when it is absent or not of `kind`."""
    check_object(entry)
    if key not in entry:
        raise MalformedRecord(f'missing field "{key}"')
    value = entry[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong_type(key, value, "a list" if kind is list else WORDS_FOR[kind])
    return value


def check_object(entry: Any) -> None:
    """MalformedRecord unless it is a JSON object."""
    if not isinstance(entry, dict):
        raise MalformedRecord("record is not an object", kind_of(entry))


def wrong_type(key: str, value: Any, expected: str) -> MalformedRecord:
    return MalformedRecord(f'field "{key}" of the wrong type', f"{kind_of(value)}, expected {expected}")


def need_text(entry: Any, key: str) -> str:
    """entry[key] as checked by ``check_text``."""
    text = need(entry, key, str)
    check_text(text, key)
    return text


def check_text(text: str, key: str) -> None:
    """MalformedRecord unless not blank and encodable (JSON allows lone surrogates; no tokenizer does)."""
    if not text.strip():
        raise MalformedRecord(f'empty field "{key}"')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= text[error.start] <= "\udcff":
            raise MalformedRecord("not UTF-8", f'in "{key}" at character {error.start}') from None
        raise MalformedRecord("lone surrogate", f'in "{key}" at character {error.start}') from None
