"""The fast way from text to ids for whole corpora: every distinct word is encoded once and kept.

WordPiece encodes each word by itself, so the ids of a text are the joined ids of its words, and text repeats its words
(Zipf). The library stays the reference: it is asked once about each character what that does to a text, and it encodes each
new word.
"""

from __future__ import annotations

import re

import numpy as np
from tokenizers import Tokenizer

MOST_WORDS = 500_000  # about 100 MB; then it is emptied, which costs a few seconds of filling it again


class WordCache(dict):
    """word -> its ids as int32 bytes, filled as words are asked for.

    tokenizer: BertNormalizer, BertPreTokenizer and WordPiece, without added tokens.
    by_character: the normaliser changes each character by itself, whatever stands around it. True for cased text;
    stripping accents decomposes and reorders, and then the library normalises every text first.
    """

    def __init__(self, tokenizer: Tokenizer, *, by_character: bool) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._by_character = by_character
        self._known: set[str] = set()
        self._alone: set[str] = set()
        self._between: set[str] = set()
        self._removed: set[str] = set()
        self._find_words = re.compile("(?!)").findall

    def encode(self, text: str) -> np.ndarray:
        """ids (n,) int32, equal to the library's own for any text."""
        if not self._by_character:
            text = self._tokenizer.normalizer.normalize_str(text)
        characters = set(text)
        if new := characters - self._known:
            self._learn({page + i for page in {ord(c) & ~0xFF for c in new} for i in range(256)})
        if removed := characters & self._removed:
            text = text.translate(dict.fromkeys(map(ord, removed)))
        if len(self) > MOST_WORDS:
            self.clear()
        return np.frombuffer(b"".join(map(self.__getitem__, self._find_words(text))), dtype=np.int32)

    def __missing__(self, word: str) -> bytes:
        ids = np.array([token.id for token in self._tokenizer.model.tokenize(word)], dtype=np.int32).tobytes()
        if len(word) <= 100:  # longer ones are rare and large
            self[word] = ids
        return ids

    def _learn(self, code_points: set[int]) -> None:
        """Ask the library whether each character stands alone, separates, vanishes or is part of a word.

        Whole pages of 256 at a time: a rare Chinese character in every other text would rebuild the pattern each time.
        """
        characters = {chr(c) for c in code_points if not 0xD800 <= c <= 0xDFFF}  # surrogates are not characters
        for character in characters:
            text = f"a{character}a"
            if self._by_character:
                text = self._tokenizer.normalizer.normalize_str(text)
            parts = [part for part, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]
            if parts == ["a", character, "a"]:
                self._alone.add(character)
            elif parts == ["a", "a"]:
                self._between.add(character)
            elif parts == ["aa"]:
                self._removed.add(character)
            elif parts != [f"a{character}a"]:
                raise AssertionError(f"the library turns {character!r} into {parts}")
        self._known |= characters
        alone, between = _as_ranges(self._alone), _as_ranges(self._between)
        word = f"[^{alone}{between}]+" if alone or between else ".+"
        self._find_words = re.compile(f"{word}|[{alone}]" if alone else word, re.DOTALL).findall


def _as_ranges(characters: set[str]) -> str:
    """The inside of a regular-expression class: runs of neighbours as ranges, or Chinese alone takes 90,000 entries."""
    runs: list[list[int]] = []
    for code_point in sorted(map(ord, characters)):
        if runs and runs[-1][1] == code_point - 1:
            runs[-1][1] = code_point
        else:
            runs.append([code_point, code_point])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)
