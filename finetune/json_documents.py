"""The JSON values of a labelled file, one after another: one document, rows line by line, or files joined by ``cat``."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from finetune.records import MalformedRecord
from spanbert.errors import UserError

BLANK = " \t\r\n\ufeff"  # between two values; files that are joined bring their byte-order marks along


class Document(NamedTuple):
    """One JSON value, and the line on which it begins, from 1. ``broken`` says why there is none."""

    line: int
    value: Any
    broken: MalformedRecord | None = None


def first_line(stream: io.TextIOBase) -> tuple[int, str]:
    """Number and text of the first line that is not blank; the text is "" when there is none."""
    line, text = 1, stream.readline()
    while text and not text.strip(BLANK):
        line, text = line + 1, stream.readline()
    return line, text


def documents(path: Path, line: int, first: str, stream: io.TextIOBase) -> Iterator[Document]:
    """Every value of the file, in order. ``line``, ``first``: what ``first_line`` took from ``stream``.

    When a line is one whole object, and that is no ``{"data": …}``, the file has a row a line, and a line that is not
    JSON is a Document that says so. Otherwise values may stand anywhere, over any number of lines.
    Raises UserError, with the line, where such a file goes on with something that is not JSON.
    """
    head = _parsed(line, first)
    if head.broken is not None:
        yield from _anywhere(path, first + stream.read(), line)
    elif not isinstance(head.value, dict) or "data" in head.value:
        yield head
        yield from _anywhere(path, stream.read(), line + 1, may_be_rows=False)
    else:
        yield head
        yield from _rows(stream, line + 1)


def _rows(lines: Iterable[str], line: int) -> Iterator[Document]:
    for number, text in enumerate(lines, line):
        if text.strip(BLANK):
            yield _parsed(number, text)


def _parsed(line: int, text: str) -> Document:
    try:
        return Document(line, json.loads(text.strip(BLANK)))
    except (ValueError, RecursionError) as error:
        return Document(line, None, MalformedRecord("line is not valid JSON", _reason(error)))


def _anywhere(path: Path, text: str, line: int, *, may_be_rows: bool = True) -> Iterator[Document]:
    """The values of a text whose first line has the number ``line``.

    may_be_rows: nothing was read before, so a broken first line may be a broken row; it is when the next is a whole one.
    """
    decoder = json.JSONDecoder()
    place, counted = _skip_blank(text, 0), 0
    while place < len(text):
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            if may_be_rows and text[place] == "{":
                second = next(islice(_rows(text[: 1 << 20].split("\n"), line), 1, None), None)
                if second is not None and isinstance(second.value, dict):
                    yield from _rows(io.StringIO(text, newline="\n"), line)
                    return
            at = error.pos if isinstance(error, json.JSONDecodeError) else place
            wrong = line + text.count("\n", place, at)
            raise UserError(f"{path}: line {wrong}: not valid JSON: {_reason(error)}.") from None
        yield Document(line, value)
        may_be_rows, place = False, _skip_blank(text, end)


def _skip_blank(text: str, place: int) -> int:
    while place < len(text) and text[place] in BLANK:
        place += 1
    return place


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
