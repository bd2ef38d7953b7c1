"""What a label says, by the kind of problem, and its form as a number to learn.

single       one of the labels; softmax, cross-entropy
multi        any of the labels, several in a field with commas between them, or a JSON list; a sigmoid each
regression   a number; squared error
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from finetune.records import MalformedRecord

Problem = Literal["single", "multi", "regression"]
SEPARATOR = ","  # between the labels of a field
MOST = float(np.finfo(np.float32).max)  # of a label that is a number

#: Our word → that of transformers' config.json.
PROBLEM_TYPES: dict[str, str] = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


def labels_of(label: str, problem: Problem) -> tuple[str, ...]:
    """The labels that a field names. None at all is an empty field, for several labels only.

    Raises MalformedRecord for an empty one, and for what is no number where there should be one.
    """
    if problem == "regression":
        try:
            if abs(float(label)) <= MOST:
                return (label,)
        except ValueError:
            pass
        raise MalformedRecord("label is no number", repr(label))
    if problem == "single":
        if not label.strip():
            raise MalformedRecord("empty class", "the label is blank")
        return (label,)
    parts = tuple(part.strip() for part in label.split(SEPARATOR)) if label.strip() else ()
    if not all(parts):
        raise MalformedRecord("empty class", f"a label of {label!r} is blank")
    return parts


def check_label(label: str | None, problem: Problem, known: tuple[str, ...]) -> None:
    """Raises MalformedRecord as ``labels_of`` does, and for a label that is not among ``known`` (empty: any will do)."""
    if label is None:
        return
    for one in labels_of(label, problem):
        if problem != "regression" and known and one not in known:
            raise MalformedRecord("unknown label", f"{one!r}; the model knows {', '.join(known)}")


def target_array(labels: list[str | None], problem: Problem, known: tuple[str, ...]) -> np.ndarray:
    """(E,) int64 numbers of labels, −1 where unknown; (E, labels) float32 of 0 and 1; or (E,) float32 values, NaN unknown."""
    if problem == "regression":
        return np.array([math.nan if label is None else float(label) for label in labels], dtype=np.float32)
    numbers = {label: number for number, label in enumerate(known)}
    if problem == "single":
        return np.array([-1 if label is None else numbers[label] for label in labels], dtype=np.int64)
    target_EL = np.zeros((len(labels), len(known)), dtype=np.float32)
    for row, label in enumerate(labels):
        for one in labels_of(label, problem) if label is not None else ():
            target_EL[row, numbers[one]] = 1.0
    return target_EL
