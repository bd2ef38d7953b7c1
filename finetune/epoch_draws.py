"""Training examples of which every epoch sees another part: what the loop asks of them.

Most features are the same in every epoch. Some draw: a question that is trained on beside other passages has others in
each epoch. What is drawn is a function of (seed, epoch) alone, so that a resumed run draws the same.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol, Self, runtime_checkable

from finetune.task import Features


@runtime_checkable
class DrawnEachEpoch(Protocol):
    """Features, of ``finetune.task``, that draw."""

    unit: str
    """What takes the place of a window, in the plural: what a batch counts and what is never cut into two micro-batches."""

    def in_epoch(self, seed: int, epoch: int) -> Self:
        """As they are in this epoch: as many units, of the same examples."""
        ...


@functools.lru_cache(maxsize=2)  # new data and rehearsed data, which alternate
def _drawn(features: Any, seed: int, epoch: int) -> Any:
    return features.in_epoch(seed, epoch)


def in_epoch(features: Features, seed: int, epoch: int) -> Features:
    """The features as an epoch sees them; themselves where nothing is drawn."""
    drawn: Features = _drawn(features, seed, epoch) if isinstance(features, DrawnEachEpoch) else features
    return drawn


def unit_of(features: Features) -> str:
    """What a batch counts, in the plural."""
    return features.unit if isinstance(features, DrawnEachEpoch) else "windows"
