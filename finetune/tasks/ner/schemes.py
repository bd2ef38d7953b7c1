"""Tag schemes: how tags on words spell entities, and which tag may follow which.

    IOB1    I- on every word of an entity; B- only where one follows another of the same type
    IOB2    B- on the first word of an entity, I- on the others
    BIOES   B- first, I- inside, E- last, S- an entity of one word (BILOU: L- for E-, U- for S-)

``entities_of`` reads all of them by the rules of conlleval (Tjong Kim Sang & Buchholz 2000): an entity also begins at an
I- after O or after another type, and ends wherever the next one begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from finetune.records import MalformedRecord

OUTSIDE = "O"
SAME_AS = {"L": "E", "U": "S"}  # BILOU's letters → BIOES's
LETTERS = frozenset("BIESLU")


class Entity(NamedTuple):
    """Words ``first`` … ``stop`` − 1 are one entity."""

    first: int
    stop: int
    type: str


class Tag(NamedTuple):
    """A tag taken apart: letter O, B, I, E or S, and the type ("" for O)."""

    letter: str
    type: str

    @classmethod
    def of(cls, text: str) -> Tag:
        """Raises MalformedRecord for a tag of no scheme, and for one without a type."""
        if text == OUTSIDE:
            return cls(OUTSIDE, "")
        letter, dash, kind = text.partition("-")
        if letter not in LETTERS or not dash:
            raise MalformedRecord(
                "unknown tag scheme",
                f"{text!r}; expected O, or B-, I-, E-, S-, L- or U- and a type (IOB1, IOB2, BIOES)",
            )
        if not kind.strip():
            raise MalformedRecord("empty class", f"the tag {text!r} names no type")
        return cls(SAME_AS.get(letter, letter), kind)


def is_tag(text: str) -> bool:
    """Whether it could be a tag of one of the schemes."""
    return text == OUTSIDE or (text[:1] in LETTERS and text[1:2] == "-")


def begins(before: Tag | None, tag: Tag) -> bool:
    """Whether an entity begins at ``tag``, the tag before it being ``before`` (None: a sentence begins)."""
    if tag.letter == OUTSIDE:
        return False
    return tag.letter in "BS" or before is None or before.letter in "OES" or before.type != tag.type


def entities_of(tags: Sequence[Tag]) -> list[Entity]:
    """The entities that a sentence's tags spell, in order."""
    found: list[Entity] = []
    first: int | None = None
    for place, tag in enumerate(tags):
        before = tags[place - 1] if place else None
        starts = begins(before, tag)
        if first is not None and (starts or tag.letter == OUTSIDE):
            found.append(Entity(first, place, tags[first].type))
            first = None
        if starts:
            first = place
    if first is not None:
        found.append(Entity(first, len(tags), tags[first].type))
    return found


def tags_of(entities: Iterable[Entity], words: int) -> list[str]:
    """IOB2 tags of a sentence of so many words; the entities must not overlap."""
    tags = [OUTSIDE] * words
    for first, stop, kind in entities:
        tags[first:stop] = [f"B-{kind}"] + [f"I-{kind}"] * (stop - first - 1)
    return tags


def scheme_of(sentences: Iterable[Sequence[Tag]]) -> str:
    """ "BIOES", "IOB2" or "IOB1": which one a file is written in. One without any entity is IOB2."""
    letters: set[str] = set()
    marked = False  # a B- where IOB1 has none
    for tags in sentences:
        letters.update(tag.letter for tag in tags)
        marked = marked or any(
            tag.letter == "B" and (not place or tags[place - 1].type != tag.type) for place, tag in enumerate(tags)
        )
    if letters & {"E", "S"}:
        return "BIOES"
    return "IOB2" if marked or "I" not in letters else "IOB1"


def check_sentence(tags: Sequence[Tag], before: Tag | None, scheme: str) -> None:
    """Raises MalformedRecord where an entity would go on across the end of a sentence.

    before: the last tag of the sentence before this one. IOB1 cannot tell, for there every entity begins with I-.
    """
    if not tags:
        return
    first, last = tags[0], tags[-1]
    goes_on = before is not None and before.type == first.type and first.letter in "IE"
    if goes_on and scheme != "IOB1":
        raise MalformedRecord(
            "an entity across a sentence's end",
            f"this one begins with {first.letter}-{first.type}, the last one's type",
        )
    if scheme == "BIOES" and last.letter in "BI":
        raise MalformedRecord("an entity across a sentence's end", f"it ends with {last.letter}-{last.type}")


def may_begin(tag: Tag, scheme: str) -> bool:
    """Whether a sentence may begin with it."""
    return scheme == "IOB1" or tag.letter in "OBS"


def may_end(tag: Tag, scheme: str) -> bool:
    return scheme != "BIOES" or tag.letter in "OES"


def may_follow(before: Tag, tag: Tag, scheme: str) -> bool:
    """Whether ``tag`` is legal after ``before``: in IOB2 and BIOES an I- (E-) only goes on with an entity of its type."""
    if scheme == "IOB1":
        return True
    is_open = before.letter in "BI"
    if tag.letter in "IE":
        return is_open and before.type == tag.type
    return scheme != "BIOES" or not is_open
