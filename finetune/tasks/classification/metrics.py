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
