"""Reading texts and their labels. Four formats, plain or gz:

.tsv, .csv     a table whose first line names the columns (TSV without quoting, as GLUE has it)
JSON           objects with a key for the text and one for the label: a line each, in one list, or in a list "data"
plain lines    ``label text``, as TREC has them; to predict, each line is a text

Tables that were joined by ``cat`` may repeat their first line.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.json_documents import BLANK, Document, documents, first_line
from finetune.records import (
    MalformedRecord,
    NoLabel,
    Purpose,
    RecordReport,
    check_text,
    has,
    need_text,
    printable,
    readable,
    wrong_type,
)
from finetune.tasks.classification.targets import SEPARATOR, Problem, check_label, labels_of
from spanbert.errors import UserError

JSON_BEGINS = re.compile(r"\{|\[\s*(\{|$)")
LONGEST_FIELD = 1 << 30  # characters of a text in a .csv
LONGEST_NUMBER = 100  # digits of a label that is ordered by its value


@dataclass(frozen=True)
class LabelledText:
    """One text of a file; ``label`` is None where it is not known."""

    line: int  # from 1
    text: str
    label: str | None
    other: str | None = None
    """The second text of a pair."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table, or of the keys of JSON lines."""

    text: str = "text"
    label: str = "label"
    text_pair: str = ""
    """Of the second text; "" where texts are single."""


@dataclass
class TextFile:
    """The texts of a file, and what was met while reading it."""

    texts: list[LabelledText]
    report: RecordReport
    problem: Problem = "single"

    def labels(self) -> list[str]:
        """Every label that occurs, in order: numbers by their value, then words by the alphabet."""
        found = {
            label for text in self.texts if text.label is not None for label in labels_of(text.label, self.problem)
        }
        return sorted(found, key=_label_order)

    def summary(self) -> str:
        return f"{self.report.examples:,} texts{self.report.losses}"

    def first(self, limit: int | None) -> TextFile:
        """The first ``limit`` texts. Raises UserError for a limit below 1."""
        if limit is not None and limit < 1:
            raise UserError(f"--limit {limit}: give at least 1 text.")
        return replace(self, texts=self.texts[:limit])


def _label_order(label: str) -> tuple[int, int, str]:
    is_number = label.isdecimal() and len(label) <= LONGEST_NUMBER
    return (0, int(label), label) if is_number else (1, 0, label)


def read_texts(
    path: Path, purpose: Purpose, columns: Columns, known: tuple[str, ...] = (), problem: Problem = "single"
) -> TextFile:
    """The texts of ``path``, or of standard input for ``-``.

    known: labels there may be; empty when any will do. Raises UserError for a file without the columns or without a
    usable text, and, unless it is read to train on, at the first malformed record.
    """
    report = RecordReport(path, strict=purpose != "train", noun="texts")
    with readable(path, errors="surrogateescape") as stream:
        texts = _read(path, stream, purpose, columns, report, problem)
    kept = []
    for text in texts:
        try:
            check_text(text.text, columns.text)
            if text.other is not None:
                check_text(text.other, columns.text_pair)
            if text.label is not None and text.label.strip():
                check_text(text.label, columns.label)
            check_label(text.label, problem, known)
        except MalformedRecord as error:
            report.malformed(f"line {text.line}", error)
            continue
        kept.append(text)
    report.examples = len(kept)
    found = TextFile(kept, report, problem)
    if not kept:
        raise report.nothing_left(found.summary())
    return found


def _read(
    path: Path, stream: io.TextIOBase, purpose: Purpose, columns: Columns, report: RecordReport, problem: Problem
) -> list[LabelledText]:
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    labelled = purpose != "predict"
    if kind in (".tsv", ".csv"):
        csv.field_size_limit(LONGEST_FIELD)  # of the whole process, and 131,072 unless somebody says otherwise
        rows = (
            csv.reader(stream, strict=True) if kind == ".csv" else (line.rstrip("\r\n").split("\t") for line in stream)
        )
        try:
            return list(_table(path, rows, labelled, columns, report))
        except csv.Error as error:
            raise UserError(f"{path}: not a CSV file that can be read ({error}).") from None
    number, first = first_line(stream)
    if JSON_BEGINS.match(first.strip(BLANK)):
        return list(_json(documents(path, number, first, stream), labelled, columns, report, problem))
    text_lines = enumerate(itertools.chain([first], stream), number)
    lines = [(number, line.rstrip("\r\n")) for number, line in text_lines if line.strip()]
    if not labelled:
        return list(_texts(lines, columns, report))
    if columns.text_pair:
        raise UserError(f"{path}: lines of `label text` hold no pairs: give a table or JSON lines.")
    return list(_label_first(lines, report))


def _texts(lines: list[tuple[int, str]], columns: Columns, report: RecordReport) -> Iterator[LabelledText]:
    """Lines to predict: a text each, or the two of a pair with a tab between them."""
    for number, line in lines:
        if not columns.text_pair:
            yield LabelledText(number, line, None)
            continue
        text, tab, other = line.partition("\t")
        if not tab:
            report.malformed(f"line {number}", MalformedRecord("one text of a pair", "expected two with a tab between"))
            continue
        yield LabelledText(number, text, None, other)


def _table(
    path: Path, rows: Iterator[list[str]], labelled: bool, columns: Columns, report: RecordReport
) -> Iterator[LabelledText]:
    header = next(rows, [])
    wanted = [columns.text] + [columns.text_pair] * bool(columns.text_pair) + [columns.label] * labelled
    for name in wanted:
        if header.count(name) != 1:
            found = "no column" if name not in header else "more than one column"
            names = printable(", ".join(header)) or "an empty first line"
            flags = " and ".join(["--text"] + ["--text-pair"] * bool(columns.text_pair) + ["--label"] * labelled)
            raise UserError(f'{path}: has {found} "{name}", only {names}; name the columns with {flags}.')
    for number, row in enumerate(rows, 2):
        if not any(row) or row == header:
            continue
        if len(row) != len(header):
            error = MalformedRecord("another number of columns", f"{len(row)}, the first line has {len(header)}")
            report.malformed(f"line {number}", error)
            continue
        fields = dict(zip(header, row, strict=True))
        label, other = fields[columns.label].strip() if labelled else None, fields.get(columns.text_pair)
        yield LabelledText(number, fields[columns.text], label, other if columns.text_pair else None)


def _json(
    found: Iterator[Document], labelled: bool, columns: Columns, report: RecordReport, problem: Problem
) -> Iterator[LabelledText]:
    """Rows: each a document, or an element of one that is a list or has a list "data". A row is numbered by its line, one
    of a list by its place there, from 1."""
    for document in found:
        if document.broken is not None:
            report.malformed(f"line {document.line}", document.broken)
            continue
        value, place, rows = document.value, "line", [(document.line, document.value)]
        listed = value["data"] if has(value, "data") and columns.text not in value else value
        if isinstance(listed, list):
            place, rows = "row", list(enumerate(listed, 1))
        for number, row in rows:
            try:
                text = need_text(row, columns.text)
                other = need_text(row, columns.text_pair) if columns.text_pair else None
                yield LabelledText(number, text, _json_label(row, columns.label, problem) if labelled else None, other)
            except MalformedRecord as error:
                report.malformed(f"{place} {number}", error)


def _json_label(entry: dict[str, Any], key: str, problem: Problem) -> str:
    value = entry.get(key)
    if value is None:
        raise NoLabel(key)
    if isinstance(value, float) and problem == "regression":
        return repr(value)
    if isinstance(value, list) and problem == "multi" and all(isinstance(v, str) and SEPARATOR not in v for v in value):
        return SEPARATOR.join(value)
    if not isinstance(value, str | int):
        expected = {"regression": "a number", "multi": "a list of strings without commas"}
        raise wrong_type(key, value, expected.get(problem, "a string or a whole number"))
    return str(value)


def _label_first(lines: list[tuple[int, str]], report: RecordReport) -> Iterator[LabelledText]:
    for number, line in lines:
        label, _, text = line.strip().partition(" ")
        if not text:
            report.malformed(f"line {number}", MalformedRecord("no text", f"only {label!r}"))
            continue
        yield LabelledText(number, text.strip(), label)
