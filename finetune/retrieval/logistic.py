"""Logistic regression by Newton's method (iteratively reweighted least squares), on standardised features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RIDGE = 1.0  # of the standardised features' weights; the bias is free


@dataclass(frozen=True)
class Logistic:
    """probability = 1 / (1 + exp(−bias − Σ weights · (x − mean) / scale))"""

    bias: float
    weights: tuple[float, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    def probability(self, x_NF: np.ndarray) -> np.ndarray:
        """(N,) of the rows of (N, F); or () of one row (F,)."""
        z = (x_NF - np.array(self.mean)) / np.array(self.scale)
        return 1 / (1 + np.exp(-np.clip(self.bias + z @ np.array(self.weights), -30, 30)))


def fit_logistic(x_NF: np.ndarray, y_N: np.ndarray, ridge: float = RIDGE) -> Logistic:
    """The likeliest weights under a penalty of ridge / 2 · |weights|². y: 0 or 1; where all are alike, near that."""
    mean, scale = x_NF.mean(0), x_NF.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    z = np.column_stack([np.ones(len(x_NF)), (x_NF - mean) / scale])
    penalty = np.diag([1e-4, *[ridge] * x_NF.shape[1]])  # the bias's only keeps it finite where all answers are alike
    weights = np.zeros(z.shape[1])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-z @ weights))
        gradient = z.T @ (y_N - chance) - penalty @ weights
        hessian = (z * (chance * (1 - chance))[:, None]).T @ z + penalty
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 5.0 / max(1e-12, np.abs(step).max()))  # no leaps where the classes are separable
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            break
    return Logistic(float(weights[0]), *(tuple(map(float, values)) for values in (weights[1:], mean, scale)))
