"""What is shown of a mask, in the terminal as on a page: a block's tokens and targets, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from spanbert.model.batch import MaskedBatch
from spanbert.tokenizer.wordpiece import Tokenizer

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


def describe(
    title: str,
    text: str,
    places: np.ndarray,
    flat_ids: np.ndarray,
    batch: MaskedBatch[np.ndarray],
    tokenizer: Tokenizer,
) -> Draw:
    """A masked block in words."""

    def kind(position: int) -> StandIn:
        if batch.packed.input_ids_T[position] == tokenizer.mask_id:
            return "mask"
        return "kept" if batch.packed.input_ids_T[position] == flat_ids[position] else "random"

    targets: list[Target] = []
    span_of: list[int | None] = [None] * len(flat_ids)
    with_sbo = set(batch.targets.sbo_K.tolist())
    for number, position in enumerate(batch.targets.positions_M.tolist()):
        span = int(batch.targets.span_M[number])
        span_of[position] = span + 1
        targets.append(
            Target(
                span=span + 1,
                left=tokenizer.token(int(flat_ids[batch.targets.left_S[span]])),
                right=tokenizer.token(int(flat_ids[batch.targets.right_S[span]])),
                position=int(batch.targets.offset_M[number]) + 1,
                token=tokenizer.token(int(flat_ids[position])),
                stand_in=kind(position),
                seen=tokenizer.token(int(batch.packed.input_ids_T[position])),
                has_sbo=number in with_sbo,
            )
        )
    boundaries = {*batch.targets.left_S.tolist(), *batch.targets.right_S.tolist()}
    tokens, end = [], 0
    for position, token_id in enumerate(flat_ids.tolist()):
        token = tokenizer.token(token_id)
        gap, shown = " " * (position > 0), token  # what stands around [CLS] and [SEP]
        if 0 < position < len(flat_ids) - 1:
            start, stop = (int(x) for x in places[position - 1])
            gap = text[end:start] if position > 1 else gap
            shown, end = text[start:stop], stop
        stand_in = kind(position) if span_of[position] else None
        seen = tokenizer.token(int(batch.packed.input_ids_T[position]))
        tokens.append(Token(gap, shown, token, stand_in, seen, position in boundaries))
    return Draw(title, tokens, targets, span_of)
