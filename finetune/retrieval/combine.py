"""One score of what the reader and the search say of an answer, so that answers of different passages compare.

score = weights · features: a linear combination as BERTserini's (Yang et al. 2019). The weights are those of a conditional
logistic regression (McFadden 1974) on held-out questions: a question is a choice among its candidates, exp(score) over its
sum the chance of each, and the right ones should be chosen. So a softmax of scores is a probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np


@dataclass(frozen=True)
class Features:
    """What is known of a span in its passage."""

    logit: float  # start logit + end logit
    null_margin: float  # logit − the passage's null score
    retrieval: float  # BM25 of the passage

    def vector(self) -> np.ndarray:
        """(3,) float64."""
        return np.array(astuple(self), dtype=np.float64)


@dataclass(frozen=True)
class Combination:
    """A weight for each feature."""

    logit: float
    null_margin: float
    retrieval: float

    def vector(self) -> np.ndarray:
        """(3,) float64."""
        return np.array(astuple(self), dtype=np.float64)

    def score(self, features: Features) -> float:
        return float(self.vector() @ features.vector())


#: For a model without a calibration: fitted on 384 questions of SQuAD's dev articles for the first bundled reader, rounded.
DEFAULT_COMBINATION = Combination(logit=0.4, null_margin=0.0, retrieval=1.0)
RIDGE = 0.01  # pull towards the default, per question: what few questions cannot tell stays as it was


def fit_combination(questions: Sequence[tuple[np.ndarray, np.ndarray]]) -> Combination:
    """The weights under which right candidates are likeliest to be chosen, by Newton's method.

    questions: for each the candidates' features (C, 3), and whether each is right (C,), 0 or 1; the choice of any right
    one counts alike. Questions without a right candidate say nothing and are left out; without any, the default stays.
    """
    prior = DEFAULT_COMBINATION.vector()
    useful = [(x, y / y.sum()) for x, y in questions if y.sum() > 0]
    pull = RIDGE * max(1, len(useful))

    def loss(weights: np.ndarray) -> float:
        chosen = sum(np.logaddexp.reduce(x_CF @ weights) - y_C @ x_CF @ weights for x_CF, y_C in useful)
        return float(chosen + pull / 2 * (weights - prior) @ (weights - prior))

    weights = prior
    for _ in range(100):
        gradient, hessian = pull * (weights - prior), pull * np.eye(len(prior))
        for x_CF, y_C in useful:
            scores = x_CF @ weights
            chance = np.exp(scores - scores.max())
            chance /= chance.sum()
            mean = chance @ x_CF
            gradient += mean - y_C @ x_CF
            hessian += (x_CF * chance[:, None]).T @ x_CF - np.outer(mean, mean)
        step = -np.linalg.solve(hessian, gradient)
        # Where a wrong candidate is nearly certain there is hardly any curvature, and the step far too long.
        before, slope = loss(weights), gradient @ step
        while np.abs(step).max() >= 1e-9 and loss(weights + step) > before + 1e-4 * slope:
            step, slope = step / 2, slope / 2
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    return Combination(*map(float, weights))
