"""Words of a text, and where they stand in it."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence

#: Written without spaces between words: every character is a word, as in BERT's own splitter.
IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ebe0"


@functools.cache
def _pattern() -> re.Pattern[str]:
    r"""What counts as one word, the first that fits. Python's \w lacks marks (vowel signs, accents), which belong to words."""
    marks = "".join(chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)).startswith("M"))
    letter = rf"(?:(?![{IDEOGRAPHS}])[\w{re.escape(marks)}])"
    return re.compile(
        rf"""
        (?:https?://|www\.)\S*[^\s.,;:!?'")\]}}>]             # an address, without the punctuation after it
        | [\w.+-]+@[\w-]+(?:\.[\w-]+)+                      # … of mail
        | (?:[^\W\d_]\.){{2,}}                                # U.S.
        | \d+(?:[.,:/]\d+)*(?!{letter})                      # 1,000.5  12:30
        | ['’](?:s|m|d|re|ve|ll)(?!{letter})                 # it 's
        | [@#]?{letter}+                                     # word, @name, #topic
        | \S                                                 # anything else by itself
        """,
        re.VERBOSE | re.IGNORECASE,
    )


def split_words(text: str) -> list[tuple[int, int]]:
    """The words of a text as [start, end) characters; every character that is no white space is in exactly one.

    Words are separated by white space and punctuation. Languages that separate them by neither (Thai) need a file of words.
    """
    return [match.span() for match in _pattern().finditer(text)]


def place_words(words: Sequence[str], text: str | None) -> tuple[str, list[tuple[int, int]]]:
    """A text with these words, and where each stands in it.

    text: the original, taken where the words stand in it in this order with nothing but white space between them;
    else they are joined by spaces.
    """
    if text is not None:
        spans, place = [], 0
        for word in words:
            while place < len(text) and text[place].isspace():
                place += 1
            if not text.startswith(word, place):
                break
            spans.append((place, place + len(word)))
            place += len(word)
        if len(spans) == len(words) and not text[place:].strip():
            return text, spans
    joined, spans, place = " ".join(words), [], 0
    for word in words:
        spans.append((place, place + len(word)))
        place += len(word) + 1
    return joined, spans
