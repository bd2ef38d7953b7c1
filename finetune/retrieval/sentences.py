"""Where sentences begin and end, in scripts with and without spaces."""

from __future__ import annotations

import re
from collections.abc import Iterator

SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)|[。！？][」』”’）]*|\n")
SENTENCE_REACH = 300  # characters shown at most on either side of an answer


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of every sentence or line, without the white space around it; blank ones are left out."""
    begin = 0
    for match in SENTENCE_END.finditer(text):
        yield from _stripped(text, begin, match.end())
        begin = match.end()
    yield from _stripped(text, begin, len(text))


def _stripped(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Bounds of the sentence or line that holds text[start:end], at most SENTENCE_REACH beyond either side."""
    low = max(0, start - SENTENCE_REACH)
    high = min(len(text), end + SENTENCE_REACH)
    for match in SENTENCE_END.finditer(text, low, start):
        low = match.end()
    last = SENTENCE_END.search(text, max(end - 1, start), high)
    if last and last.end() >= end:
        high = last.end()
    while low < start and text[low].isspace():
        low += 1
    while high > end and text[high - 1].isspace():
        high -= 1
    return low, high
