"""Texts with holes: ``The [SPAN:3] of France`` → visible tokens, and holes of a length to be chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass

from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import Tokenizer

HOLE = r"\[MASK\]|\[SPAN(?::(\d{1,9})(?:-(\d{1,9}))?)?\]"
#: Holes with nothing but space between them are one: the SBO head needs a visible token on either side.
HOLES = re.compile(rf"(?:{HOLE})(?:\s*(?:{HOLE}))*")
#: A token has rarely more than 10 characters; a text of more than this for each position is refused unread.
MOST_CHARACTERS = 200
#: Looks meant as a hole but is none.
ALMOST = re.compile(r"\[\s*(?:span|mask)[\s:\d–-]*\]", re.IGNORECASE)


@dataclass(frozen=True)
class Blank:
    """A hole of ``shortest`` to ``longest`` tokens."""

    shortest: int
    longest: int


@dataclass(frozen=True)
class Masked:
    """The text of one sequence with [MASK] in its holes, and where its spans are once [CLS] stands before it."""

    ids: list[int]  # without special tokens around them
    spans: list[tuple[int, int]]  # [start, end) in the sequence, [CLS] counted


@dataclass(frozen=True)
class Template:
    """The text around the holes, as characters and as tokens: one more of each than there are holes."""

    texts: list[str]
    ids: list[list[int]]
    blanks: list[Blank]

    @property
    def visible_tokens(self) -> int:
        return sum(map(len, self.ids))

    def with_masks(self, lengths: tuple[int, ...], tokenizer: Tokenizer) -> Masked:
        """The sequence with ``lengths[i]`` mask tokens in hole i."""
        ids = [*self.ids[0]]
        spans = []
        for length, after in zip(lengths, self.ids[1:], strict=True):
            spans.append((1 + len(ids), 1 + len(ids) + length))
            ids += [tokenizer.mask_id] * length + after
        return Masked(ids, spans)

    def render(self, fills: list[str]) -> str:
        """The text with ``fills[i]`` in hole i."""
        return self.texts[0] + "".join(fill + after for fill, after in zip(fills, self.texts[1:], strict=True))


def parse_template(text: str, tokenizer: Tokenizer, positions: int | None = None) -> Template:
    """Read a text with holes. Raises UserError when it has none, or one that is misspelt or empty.

    positions: how many tokens the model takes; a hole that is longer, or a text that certainly is, is then refused
    before it is encoded.
    """
    if positions is not None and len(text) > positions * MOST_CHARACTERS:
        raise UserError(
            f"the text has {len(text):,} characters, far more than the {positions} tokens that the model takes: "
            "shorten it around the span"
        )
    texts, blanks, end = [], [], 0
    for match in HOLES.finditer(text):
        texts.append(text[end : match.start()])
        blanks.append(_joined([_blank(hole) for hole in re.finditer(HOLE, match[0])]))
        end = match.end()
    texts.append(text[end:])
    for visible in texts:
        almost = ALMOST.search(visible)
        if almost:
            raise UserError(f"{almost[0]!r} is not a span: write [SPAN:3], [SPAN:1-4] or [MASK]")
    if not blanks:
        raise UserError("the text has no span to fill: write [SPAN:3] for three tokens, [SPAN:1-4] or [MASK]")
    widest = max(blank.longest for blank in blanks)
    if positions is not None and widest > positions - 2:
        raise UserError(
            f"a span of {widest} tokens does not fit: the model takes {positions} tokens, [CLS] and [SEP] among them"
        )
    ids = [encoded.ids.tolist() for encoded in tokenizer.encode_batch(texts)]
    if any(not visible for visible in ids[1:-1]):
        raise UserError("two spans have nothing between them that the model could see: make them one span")
    return Template(texts, ids, blanks)


def _blank(hole: re.Match[str]) -> Blank:
    if hole[0] == "[MASK]":
        return Blank(1, 1)
    if hole[1] is None:
        raise UserError("'[SPAN]' has no length: write [SPAN:3] for three tokens or [SPAN:1-4] for one to four")
    shortest = int(hole[1])
    longest = int(hole[2]) if hole[2] else shortest
    if not 1 <= shortest <= longest:
        raise UserError(f"{hole[0]}: a span has at least one token, and the first length must not be above the second")
    return Blank(shortest, longest)


def _joined(blanks: list[Blank]) -> Blank:
    return Blank(sum(b.shortest for b in blanks), sum(b.longest for b in blanks))
