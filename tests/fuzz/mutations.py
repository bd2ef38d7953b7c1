"""Seeded mutators of JSON values, text and bytes: what broken exports, editors and transfers make of good files.

Each takes a ``random.Random`` and returns a changed copy. A fuzzer of another format brings good files and a function that
reads one, and takes ``fuzz`` of ``tests.fuzz.cases`` for the rest.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from typing import Any

#: What takes a field's place: every type of JSON, and the values that trip readers.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 61.0, 1e308, float("inf"), float("nan"), 10**40, 10**4200, -(10**18), "", " ", "0", "true",
    "\ud800", "\udcff", "\x00", "\x01\x02", "\u0301", "e\u0301", "👩\u200d🔬", "\ufeff", "\u202e", "\u2028", "a" * 300, [], {},
    [[]], [None], {"": None}, {"text": 1}, [1, 2, 3],
)  # fmt: skip

ODD_TEXTS = (
    "\x00", "\r", "\r\n", "\n\n", "\t", "\ufeff", "\u2028", '"', "\\", "{", "}", "[", "]", ",", ":", "{}", "[]", "null", "NaN",
    "-Infinity", "1e999", "9" * 5000, "[" * 3000, '{"a":' * 3000, "\\ud800", "\u0301", "\U0010ffff", "#", "'", "\t\t", '""',
)  # fmt: skip


def mutate_value(draw: random.Random, value: Any) -> Any:
    """One change somewhere in a JSON value: a field renamed, removed, doubled, of another type, nested or moved."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return copy.deepcopy(draw.choice(ODD_VALUES))
    parent, key = draw.choice(places)
    action = draw.randrange(8)
    if action == 0 and isinstance(parent, dict):
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[
            draw.choice(("id", "text", "Text", "answers", "data", "header", "", "qas", "context", str(key) + " "))
        ] = parent.pop(key)
    elif action == 2 and isinstance(parent, list):
        parent.insert(draw.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
    elif action == 3:
        parent[key] = [parent[key]]
    elif action == 4:
        other, place = draw.choice(places)
        try:
            parent[key] = copy.deepcopy(other[place])
        except LookupError:  # it was removed
            parent[key] = None
    elif action == 5 and isinstance(parent[key], str):
        parent[key] = mutate_text(draw, parent[key])
    elif action == 6 and isinstance(parent[key], int):
        parent[key] += draw.choice((-1, 1, 10**9, -(10**9)))
    else:
        parent[key] = copy.deepcopy(draw.choice(ODD_VALUES))
    return value


def _places(value: Any) -> Any:
    """(parent, key) of everything inside."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def mutate_text(draw: random.Random, text: str) -> str:
    """Something odd put in, a stretch removed, doubled or moved, or the text cut off."""
    begin, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    action = draw.randrange(5)
    if action == 0:
        return text[:begin] + draw.choice(ODD_TEXTS) + text[begin:]
    if action == 1:
        return text[:begin] + text[end:]
    if action == 2:
        return text[:end] + text[begin:end] + text[end:]
    if action == 3:
        return text[begin:end] + text[:begin] + text[end:]
    return text[:end]


def mutate_bytes(draw: random.Random, content: bytes) -> bytes:
    """A bit turned, bytes that are not UTF-8, another encoding, the file joined to itself, cut off, or compressed."""
    place = draw.randrange(len(content) + 1)
    action = draw.randrange(8)
    if action == 0 and place < len(content):
        return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    if action == 1:
        return content[:place] + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 5))) + content[place:]
    if action == 2:
        return content[:place]
    if action == 3:
        return content + draw.choice((b"", b"\n", b"\xef\xbb\xbf", b" ")) + content
    if action == 4:
        return b"\xef\xbb\xbf" + content
    if action == 5:
        packed = gzip.compress(content, mtime=0)
        return draw.choice((packed, packed[: len(packed) // 2], packed + packed, packed + b"tail"))
    if action == 6:
        return content.decode("utf-8", "replace").encode(
            draw.choice(("utf-16", "utf-16-le", "utf-32", "cp1252")), "replace"
        )
    return content.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\n\n", b"")))


def dump(draw: random.Random, value: Any) -> str:
    """A JSON value as one program or another writes it."""
    return json.dumps(value, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, None, 1)))
