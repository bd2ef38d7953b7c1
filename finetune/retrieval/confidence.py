"""How sure an answer is: the chance that it is right, learnt on held-out questions asked in the same way.

"Right" is exact match with a gold answer, as SQuAD's metric normalises; beside it stands the chance of a token F1 of at
least ½. A calibration belongs to a model and to a way of asking, over one text or over many documents, and lies in the
model's folder as calibration.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.retrieval.combine import Combination
from finetune.retrieval.logistic import Logistic
from finetune.retrieval.reliability import Bin
from spanbert.config import from_dict, read_json, to_dict
from spanbert.errors import UserError
from spanbert.files import write_atomic

FILE = "calibration.json"
FORMAT = 1
Search = Literal["text", "documents"]  # passages of one text, or of many documents


@dataclass(frozen=True)
class Evidence:
    """What the chance that an answer is right depends on. All is 0 for "no answer" but the last two."""

    log_odds: float = 0.0  # of its share: softmax of the scores over all candidate answers of the question
    margin: float = 0.0  # its score − the best other answer's
    first: float = 0.0  # 1 for the best answer of the question
    logit: float = 0.0  # of the reader, in the best place
    null_odds: float = 0.0  # of that passage: null score − best span's score
    retrieval: float = 0.0  # BM25 of that passage
    places: float = 0.0  # log of the number of places
    declined: float = 0.0  # 1 for "no answer"
    declined_odds: float = 0.0  # the null odds by which it was chosen

    def vector(self) -> np.ndarray:
        """(9,) float64."""
        return np.array(astuple(self), dtype=np.float64)


@dataclass(frozen=True)
class HeldOut:
    """What a calibration was fitted on."""

    file: str
    sha256: str
    questions: int
    searched: str
    date: str


@dataclass(frozen=True)
class Calibration:
    """Weights of the scores, and what turns the evidence into a chance."""

    combination: Combination
    exact: Logistic
    f1: Logistic
    bins: tuple[Bin, ...]  # best answers of held-out questions by cross-validated confidence
    passages: int  # read for each question
    held_out: HeldOut
    metrics: dict[str, float]  # cross-validated

    def __post_init__(self) -> None:
        for model in (self.exact, self.f1):
            if not all(len(values) == len(fields(Evidence)) for values in (model.weights, model.mean, model.scale)):
                raise UserError(f"expected {len(fields(Evidence))} weights, means and scales")
            if min(model.scale) <= 0:
                raise UserError("expected scales above 0")
        if not self.bins:
            raise UserError("expected bins")

    def confidence(self, evidence: Evidence) -> float:
        """Chance of an exact match."""
        return float(self.exact.probability(evidence.vector()))

    def in_words(self, confidence: float) -> str:
        """``of held-out questions this sure, 74 % were answered right``"""
        nearest = min(self.bins, key=lambda one: max(one.low - confidence, confidence - one.high, 0.0))
        return f"of held-out questions this sure, {100 * nearest.right:.0f} % were answered right"


def shares_and_margins(scores: Sequence[float]) -> list[tuple[float, float]]:
    """(log odds of the share, margin) of each of a question's distinct answers; see ``Evidence``."""
    total = np.logaddexp.reduce(scores)
    found = []
    for number, score in enumerate(scores):
        others = [other for place, other in enumerate(scores) if place != number]
        share = min(max(math.exp(score - total), 1e-6), 1 - 1e-6)
        found.append((math.log(share / (1 - share)), score - max(others) if others else 0.0))
    return found


def load_calibration(folder: Path | None, search: Search) -> Calibration | None:
    """The calibration of a model for a way of asking; None where it has none. Raises UserError for a damaged file."""
    if folder is None or not (folder / FILE).is_file():
        return None
    content = read_json(folder / FILE)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{folder / FILE}: not a calibration of format {FORMAT}; make it anew: spanbert calibrate {folder} FILE"
        )
    if search not in content:
        return None
    values, source = content[search], f'{folder / FILE}: "{search}"'
    if isinstance(values, dict) and isinstance(values.get("bins"), list):
        values = values | {"bins": [from_dict(Bin, one, source) for one in values["bins"]]}
    return from_dict(Calibration, values, source)


def save_calibrations(folder: Path, calibrations: dict[Search, Calibration]) -> None:
    """Write calibration.json; what it holds of other ways of asking stays. Raises UserError where it cannot be written."""
    content: dict[str, Any] = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    content = content if isinstance(content, dict) and content.get("format") == FORMAT else {"format": FORMAT}
    content |= {search: to_dict(one) for search, one in calibrations.items()}
    try:
        write_atomic(folder / FILE, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder / FILE}: cannot be written ({error.strerror}).") from None
