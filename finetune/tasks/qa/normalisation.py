"""How scripts for other languages than SQuAD's compare answers: CMRC 2018, DRCD, and MLQA (used for XQuAD, too).

cmrc      lower-cased, the script's punctuation removed; a Chinese character is a token, and so is each word of what
          stands between them. F1 counts the longest run of tokens that both answers share. The script cuts words with
          NLTK; here a word keeps the points, commas and apostrophes inside it, and any other sign is a token.
drcd      lower-cased, punctuation and white space removed; every character is a token
mlqa-…    lower-cased, all Unicode punctuation and the language's articles removed; tokens are words, in Chinese
          characters and the words between them
"""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

ARTICLES = {
    "en": "a an the",
    "de": "ein eine einen eines einer einem der die das den dem des",
    "es": "un una unos unas el la los las",
    "zh": "",
}

_CMRC_PUNCTUATION = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
_CHINESE = "\u4e00-\u9fa5"
_CMRC_TOKENS = re.compile(rf"[{_CHINESE}]|[^\W_{_CHINESE}]+(?:[.,'][^\W_{_CHINESE}]+)*|\S")
_MLQA_CHINESE_TOKENS = re.compile(rf"[{_CHINESE}]|[^\s{_CHINESE}]+")


def shared_words(predicted: Sequence[str], expected: Sequence[str]) -> int:
    """Tokens that both have, wherever they stand, counted with multiplicity."""
    return sum((Counter(predicted) & Counter(expected)).values())


def longest_run(predicted: Sequence[str], expected: Sequence[str]) -> int:
    """Length of the longest contiguous sequence of tokens that stands in both."""
    longest = 0
    row = [0] * (len(expected) + 1)  # row[j]: the common run that ends before predicted[i] and expected[j]
    for token in predicted:
        row = [0, *(row[j] + 1 if token == other else 0 for j, other in enumerate(expected))]
        longest = max(longest, *row)
    return longest


@dataclass(frozen=True)
class AnswerForm:
    """What of an answer is compared."""

    normal: Callable[[str], str]
    """For exact match."""
    tokens: Callable[[str], list[str]]
    """For F1."""
    shared: Callable[[Sequence[str], Sequence[str]], int] = shared_words
    """How many tokens of two answers agree."""


@cache
def _unicode_punctuation() -> dict[int, None]:
    signs = {code: None for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P")}
    return signs | dict.fromkeys(map(ord, string.punctuation))


def _without_cmrc_punctuation(text: str) -> str:
    return text.lower().strip().translate(dict.fromkeys(map(ord, _CMRC_PUNCTUATION)))


def _cmrc_tokens(text: str) -> list[str]:
    """The script removes signs while it reads, so the words at both sides of one become one word, as here."""
    return _CMRC_TOKENS.findall(_without_cmrc_punctuation(text))


def _drcd_characters(text: str) -> str:
    return "".join(text.lower().translate(_unicode_punctuation()).split())


def _mlqa_tokens(text: str, language: str) -> list[str]:
    bare = text.lower().translate(_unicode_punctuation())
    if language == "zh":
        return _MLQA_CHINESE_TOKENS.findall(bare)
    articles = ARTICLES[language].replace(" ", "|")
    return re.sub(rf"\b({articles})\b", " ", bare).split()


def _mlqa(language: str) -> AnswerForm:
    return AnswerForm(lambda text: " ".join(_mlqa_tokens(text, language)), lambda text: _mlqa_tokens(text, language))


FORMS = {
    "cmrc": AnswerForm(_without_cmrc_punctuation, _cmrc_tokens, longest_run),
    "drcd": AnswerForm(_drcd_characters, lambda text: list(_drcd_characters(text))),
    **{f"mlqa-{language}": _mlqa(language) for language in ARTICLES},
}
