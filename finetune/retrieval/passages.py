"""Cutting a text into passages: what is searched, and what the reader reads at a time.

A passage is some whole sentences. It ends where the next sentence would make it longer than MAX_TERMS, or at the end of a
line that fills at least half of that; the next one begins with the last sentences of the one before, at most OVERLAP_TERMS
of them, so that what a sentence refers to is often still there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from finetune.retrieval.sentences import sentences
from finetune.retrieval.terms import terms

MAX_TERMS = 100  # about 140 tokens of an English text; 160 found fewer right answers, at more tokens read
OVERLAP_TERMS = 20
#: Where a sentence that is longer than a passage may be cut: between words, and anywhere in a long run without spaces
CHUNK = re.compile(r"\S{1,40}\s*")


@dataclass(frozen=True)
class Passage:
    """text[start:end], and the terms that it is found by."""

    start: int
    end: int
    terms: list[str]


@dataclass(frozen=True)
class _Sentence:
    start: int
    end: int
    terms: list[str]
    ends_line: bool


def document_passages(title: str, text: str) -> Iterator[Passage]:
    """The passages of a document, each also found by its title: "he" in a text about Nikola Tesla is Tesla."""
    title_terms = terms(title)
    for passage in cut_passages(text):
        yield Passage(passage.start, passage.end, [*title_terms, *passage.terms])


def cut_passages(text: str) -> Iterator[Passage]:
    """The passages of ``text``, in order. Sentences without a letter or digit are kept, passages of such alone are not."""
    held: list[_Sentence] = []
    size, fresh = 0, 0  # terms held; sentences held that no passage has yet
    for sentence in _measured(text):
        if fresh and size + len(sentence.terms) > MAX_TERMS:
            yield from _passage(held)
            held = _overlap(held, MAX_TERMS - len(sentence.terms))
            size, fresh = sum(len(one.terms) for one in held), 0
        held.append(sentence)
        size, fresh = size + len(sentence.terms), fresh + 1
        if sentence.ends_line and 2 * size >= MAX_TERMS:
            yield from _passage(held)
            held = _overlap(held, MAX_TERMS)
            size, fresh = sum(len(one.terms) for one in held), 0
    if fresh:
        yield from _passage(held)


def _passage(held: list[_Sentence]) -> Iterator[Passage]:
    found = [term for sentence in held for term in sentence.terms]
    if found:
        yield Passage(held[0].start, held[-1].end, found)


def _overlap(held: list[_Sentence], room: int) -> list[_Sentence]:
    """The last sentences that fit into the overlap and into the room there is; never all."""
    kept: list[_Sentence] = []
    size = 0
    for sentence in reversed(held[1:]):
        size += len(sentence.terms)
        if size > min(OVERLAP_TERMS, room):
            break
        kept.insert(0, sentence)
    return kept


def _measured(text: str) -> Iterator[_Sentence]:
    for start, end in sentences(text):
        found = terms(text[start:end])
        gap = text.find("\n", end, end + 80)
        ends_line = end == len(text) or (gap >= 0 and text[end:gap].isspace()) or text[end] == "\n"
        if len(found) <= MAX_TERMS:
            yield _Sentence(start, end, found, ends_line)
            continue
        begin, part = start, 0
        for chunk in CHUNK.finditer(text, start, end):
            count = len(terms(chunk.group()))
            if part and part + count > MAX_TERMS // 2:
                piece = text[begin : chunk.start()].rstrip()
                yield _Sentence(begin, begin + len(piece), terms(piece), False)
                begin, part = chunk.start(), 0
            part += count
        yield _Sentence(begin, end, terms(text[begin:end]), ends_line)
