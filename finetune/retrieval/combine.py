"""One score of what the reader and the search say of an answer, so that answers of several passages compare.

score = weights · features, a linear combination as BERTserini's (Yang et al. 2019), of which only the order counts.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np


@dataclass(frozen=True)
class Features:
    """What is known of a span in its passage."""

    logit: float  # start logit + end logit
    share: float  # softmax over the passage's best spans
    null_margin: float  # logit − the passage's null score
    retrieval: float  # BM25 of the passage
    relative: float  # BM25 ÷ that of the question's best passage, 0 … 1

    def vector(self) -> np.ndarray:
        """float64, one value a weight of ``Combination``."""
        return np.array([self.logit, math.log(max(self.share, 1e-9)), self.null_margin, self.retrieval, self.relative])


@dataclass(frozen=True)
class Combination:
    """A weight for each feature."""

    logit: float
    log_share: float
    null_margin: float
    retrieval: float
    relative: float

    def score(self, features: Features) -> float:
        return float(np.dot(astuple(self), features.vector()))


DEFAULT_COMBINATION = Combination(logit=1.0, log_share=0.0, null_margin=0.0, retrieval=1.0, relative=0.0)
