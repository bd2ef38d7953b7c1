"""The terms that a text is found by: words, or pairs of characters where a script has no spaces.

The text is folded first: compatibility forms (NFKD), case, and the marks over Latin, Greek, Cyrillic, Hebrew and Arabic
letters, so that "Café", "CAFE" and "cafe" are one term. A term is then a run of letters and digits; underscores,
apostrophes and hyphens divide ("Tesla's" is found by "tesla"). Scripts that put no spaces between words (Han, Kana, Thai,
Lao, Burmese, Khmer), and Korean, whose words carry endings, give every pair of neighbouring characters. There is no
stemming and no list of stop words: frequent words weigh next to nothing in BM25, in every language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

ASCII_WORD = re.compile(r"[a-z0-9]+")
#: Marks that are dropped: accents, Hebrew points, Arabic vowels. Those of Indic scripts are part of the word.
MARKS = re.compile("[\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u064b-\u065f\u0670]+")
UNSPACED = "\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u1049\u1780-\u17d3\u3005\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7a3\U00020000-\U000323af"
INDIC = "\u0900-\u0963\u0966-\u0dff"
WORD = re.compile(f"[{UNSPACED}]+|(?:(?![{UNSPACED}])[^\\W_]|[{INDIC}])+")


def fold(text: str) -> str:
    """Without case, accents and compatibility forms; composed again, so that a Korean syllable is one character."""
    return unicodedata.normalize("NFC", MARKS.sub("", unicodedata.normalize("NFKD", text.casefold()))).casefold()


def terms(text: str) -> list[str]:
    """All terms of ``text``, in order, repeated ones repeated."""
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    found: list[str] = []
    for run in WORD.findall(fold(text)):
        found.extend(_of_run(run))
    return found


def _of_run(run: str) -> list[str]:
    if len(run) > 1 and _is_unspaced(run[0]):
        return [run[place : place + 2] for place in range(len(run) - 1)]
    return [run]


def _is_unspaced(character: str) -> bool:
    return _UNSPACED_CHARACTER.match(character) is not None


_UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")


def words(text: str) -> Iterator[tuple[str, list[str]]]:
    """(word as it is written, its terms); a run of an unspaced script comes pair by pair."""
    for match in WORD.finditer(unicodedata.normalize("NFC", text)):
        for word in _of_run(match.group()):
            if found := terms(word):
                yield word, found
