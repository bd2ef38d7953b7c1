"""Many tokenized texts in one flat array."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class TokenTexts:
    """N tokenized texts end to end: text n is tokens[bounds[n]:bounds[n + 1]]."""

    tokens: np.ndarray  # flat int32
    bounds: np.ndarray  # (N + 1,) int64

    @classmethod
    def of(cls, texts: list[np.ndarray]) -> TokenTexts:
        flat = np.concatenate([np.zeros(0, np.int32), *texts])
        bounds = np.concatenate([[0], np.cumsum(np.array([len(text) for text in texts], dtype=np.int64))])
        return cls(flat, bounds.astype(np.int64))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, text: int) -> np.ndarray:
        return self.tokens[self.bounds[text] : self.bounds[text + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64."""
        return np.diff(self.bounds)
