"""Accuracy, macro-averaged F1 and Matthews' correlation, for any number of labels."""

from __future__ import annotations

import math

import numpy as np


def confusion(gold_E: np.ndarray, predicted_E: np.ndarray, labels: int) -> np.ndarray:
    """(labels, labels) int64: how often gold label i was predicted as j."""
    return np.bincount(gold_E * labels + predicted_E, minlength=labels * labels).reshape(labels, labels)


def classification_metrics(gold_E: np.ndarray, predicted_E: np.ndarray, labels: int) -> dict[str, float]:
    """In percent (Matthews' correlation, −1 … 1, times 100 too).

    F1 is averaged over the labels that occur among gold or predicted ones; Matthews' correlation for several labels is
    Gorodkin's R_K, and 0 when all golds, or all predictions, are one label.
    """
    table = confusion(gold_E, predicted_E, labels).astype(np.float64)
    right, total = np.diag(table), table.sum()
    golds, predicted = table.sum(1), table.sum(0)
    occurs = golds + predicted > 0
    f1 = 2 * right[occurs] / (golds + predicted)[occurs]
    spread = (total**2 - predicted @ predicted) * (total**2 - golds @ golds)
    matthews = (right.sum() * total - predicted @ golds) / math.sqrt(spread) if spread > 0 else 0.0
    return {
        "accuracy": 100.0 * float(right.sum() / total),
        "macro_f1": 100.0 * float(f1.mean()),
        "matthews": 100.0 * float(matthews),
        "total": int(total),
    }


def multi_label_metrics(gold_EL: np.ndarray, predicted_EL: np.ndarray) -> dict[str, float]:
    """Of sets of labels, (E, labels) bool both, in percent: texts whose set is exactly right, and F1 of the labels.

    macro F1 is averaged over the labels that occur among gold or predicted ones.
    """
    right, golds, predicted = ((gold_EL & predicted_EL).sum(0), gold_EL.sum(0), predicted_EL.sum(0))
    occurs = golds + predicted > 0
    f1 = 2 * right[occurs] / (golds + predicted)[occurs]
    return {
        "accuracy": 100.0 * float((gold_EL == predicted_EL).all(1).mean()),
        "micro_f1": 200.0 * float(right.sum()) / max(int((golds + predicted).sum()), 1),
        "macro_f1": 100.0 * float(f1.mean()) if occurs.any() else 0.0,
        "total": len(gold_EL),
    }


def regression_metrics(gold_E: np.ndarray, predicted_E: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation times 100 (0 where one side is constant), and the mean squared error."""
    gold_E, predicted_E = gold_E.astype(np.float64), predicted_E.astype(np.float64)
    return {
        "pearson": 100.0 * _correlation(gold_E, predicted_E),
        "spearman": 100.0 * _correlation(_ranks(gold_E), _ranks(predicted_E)),
        "mse": float(((gold_E - predicted_E) ** 2).mean()),
        "total": len(gold_E),
    }


def _correlation(x_E: np.ndarray, y_E: np.ndarray) -> float:
    x_E, y_E = x_E - x_E.mean(), y_E - y_E.mean()
    spread = math.sqrt(float(x_E @ x_E) * float(y_E @ y_E))
    return float(x_E @ y_E) / spread if spread > 0 else 0.0


def _ranks(values_E: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place_E, count = np.unique(values_E, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place_E]
