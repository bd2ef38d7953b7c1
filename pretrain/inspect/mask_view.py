"""What is shown of a mask, in the terminal as on a page: a block's tokens and targets, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StandIn = Literal["mask", "random", "kept"]


@dataclass(frozen=True)
class Token:
    """One token of the text and what the model gets to see of it."""

    gap: str
    """White space, or whatever the tokenizer dropped, before it in the text."""
    text: str
    """Its characters in the text; for [CLS] and [SEP] their names."""
    token: str
    stand_in: StandIn | None
    """What stands in its place; None when it is not a target."""
    seen: str
    """The token that stands in its place."""
    is_boundary: bool


@dataclass(frozen=True)
class Target:
    """One row of the span-boundary objective: `token` is predicted from left, right and position (§3.2)."""

    span: int
    left: str
    right: str
    position: int
    token: str
    stand_in: StandIn
    seen: str
    has_sbo: bool


@dataclass(frozen=True)
class Draw:
    """One mask of one block."""

    title: str
    tokens: list[Token]
    targets: list[Target]
    span_of: list[int | None]
    """For each token, the number of the span it is in, from 1."""

    @property
    def summary(self) -> str:
        content = len(self.tokens) - 2
        spans = max((target.span for target in self.targets), default=0)
        share = 100 * len(self.targets) / max(1, content)
        return f"{len(self.targets)} of {content} tokens masked ({share:.1f} %) in {spans} span{'s' * (spans != 1)}"
