"""Training on a few examples: so many of each class, drawn by a seed."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from spanbert.errors import UserError

#: Second word of the seed, so that the draw is not the one of an epoch's order.
STREAM = 0xFE35


@runtime_checkable
class Classified(Protocol):
    """Features of a task whose examples have one class each."""

    @property
    def label_E(self) -> np.ndarray:
        """(E,) int64, −1 where it is not known."""
        ...


def few_of_each_class(features: Any, each: int, seed: int, task: str) -> np.ndarray:
    """The examples of a few-shot run, a function of (seed, the file): at most ``each`` of every class, mixed.

    A smaller ``each`` takes a part of what a larger one takes. Raises UserError for a task without classes.
    """
    if not isinstance(features, Classified):
        raise UserError(f"--examples-per-class: the examples of `{task}` have no classes.")
    order = np.random.default_rng([seed, STREAM]).permutation(features.examples)  # type: ignore[attr-defined]
    label_E = features.label_E[order]
    chosen = [order[label_E == label][:each] for label in np.unique(label_E)]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return order[np.sort(place[np.concatenate(chosen)])]


def about_few(features: Any, each: int) -> str:
    """What was drawn, and which classes have fewer."""
    counts = np.unique(features.label_E, return_counts=True)[1]
    short = int((counts < each).sum())
    fewer = f"; {short} classes have fewer in the file" if short else ""
    return f"training on {counts.sum():,} examples, {each:,} of each of {len(counts)} classes{fewer}"
