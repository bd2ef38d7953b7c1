"""JSON as records: the values of an array or of a stream of values, and a field of a record by a dotted path."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from spanbert.errors import UserError
from spanbert.terminal import printable

MISSING = object()
_SPACE = re.compile(r"[\s,]*")


def read_values(blocks: Iterator[bytes], source: str) -> Iterator[Any]:
    """The elements of one JSON array, or JSON values one after the other, however they are broken into lines.

    Raises UserError where the text is no JSON or is cut short: what follows could not be found again.
    """
    decoder, scan = codecs.getincrementaldecoder("utf-8")("replace"), json.JSONDecoder().raw_decode
    buffer, begun, in_array, number, needed = "", False, False, 0, 0
    for block in _with_end(blocks):
        buffer += decoder.decode(block or b"", final=block is None)
        if block is not None and len(buffer) < needed:
            continue
        place = 0
        while True:
            space = _SPACE.match(buffer, place)
            place = space.end() if space else place
            if not begun and place < len(buffer):
                begun, in_array = True, buffer[place] == "["
                place += in_array
                continue
            if place == len(buffer):
                break
            if in_array and buffer[place] == "]":
                return
            try:
                value, place = scan(buffer, place)
            except (ValueError, RecursionError) as error:
                if block is not None:
                    break
                raise UserError(f"{source} is no JSON, or cut short, after {number:,} records: {error}") from error
            number += 1
            yield value
        buffer = buffer[place:]
        needed = 2 * len(buffer)  # a long value is not tried again at every block
    if in_array:
        raise UserError(f"{source} is cut short: its JSON array does not end ({number:,} records were read)")


def _with_end(blocks: Iterator[bytes]) -> Iterator[bytes | None]:
    yield from blocks
    yield None


def get_field(record: Any, path: str) -> Any:
    """The value under a field's name, or under names joined by dots for objects in objects; MISSING without one."""
    if isinstance(record, dict) and path in record:
        return record[path]
    for name in path.split("."):
        if not isinstance(record, dict) or name not in record:
            return MISSING
        record = record[name]
    return record


def check_first(source: str, record: Any, path: str) -> None:
    """Raise UserError when a source's first record has no text under ``path``; the fields it has are named."""
    if not isinstance(record, dict):
        raise UserError(
            f"{source}: the first record is a JSON {kind(record)}, expected an object with a field {path!r}"
        )
    value = get_field(record, path)
    if value is MISSING:
        raise UserError(f"{source} has no field {path!r} (it has {', '.join(fields(record))}): use --text-field")
    if isinstance(value, dict):
        inside = printable(", ".join(f"{path}.{name}" for name in value))
        raise UserError(f"{source}: field {path!r} is an object: name the text in it, --text-field (one of {inside})")
    if not isinstance(value, str | bytes | None):
        raise UserError(
            f"{source}: field {path!r} holds a {kind(value)}, expected text (it has {', '.join(fields(record))}): use --text-field"
        )


def fields(record: dict[str, Any]) -> list[str]:
    """Names of a record's fields, to be shown; those of objects in it as dotted paths."""
    names: list[str] = []
    for name, value in record.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) and value else [name]
    return list(map(printable, names))


def kind(value: Any) -> str:
    names = {bool: "truth value", int: "number", float: "number", list: "list", dict: "object", str: "string"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
