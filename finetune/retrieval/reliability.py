"""How well confidences agree with what was right: calibration error, AUROC, risk and coverage, and their picture."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spanbert.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Held-out answers whose confidence lies in low … high."""

    low: float
    high: float
    confidence: float  # mean
    right: float  # share that was right
    questions: int


def bins_of(confidence_N: np.ndarray, right_N: np.ndarray, count: int = BINS) -> list[Bin]:
    """At most ``count`` bins of as equal numbers of answers as can be, least sure first; equal confidences stay together."""
    order = np.argsort(confidence_N, kind="stable")
    sure, right = confidence_N[order], right_N[order]
    cuts = np.unique([np.searchsorted(sure, sure[len(sure) * n // count]) for n in range(1, count)])
    edges = [0, *(int(cut) for cut in cuts if cut > 0), len(sure)]
    return [
        Bin(float(sure[a]), float(sure[b - 1]), float(sure[a:b].mean()), float(right[a:b].mean()), b - a)
        for a, b in itertools.pairwise(edges)
    ]


def calibration_error(confidence_N: np.ndarray, right_N: np.ndarray, count: int = BINS) -> float:
    """Expected calibration error: mean |share right − mean confidence| over bins of equal numbers of answers."""
    bins = bins_of(confidence_N, right_N, count)
    return sum(one.questions * abs(one.right - one.confidence) for one in bins) / len(confidence_N)


def error_by_chance(confidence_N: np.ndarray, draws: int = 200, seed: int = 0) -> float:
    """The calibration error to expect of confidences that are exact, where each answer is right with its own chance."""
    generator = np.random.default_rng(seed)
    right_DN = generator.random((draws, len(confidence_N))) < confidence_N
    return float(np.mean([calibration_error(confidence_N, right_N.astype(float)) for right_N in right_DN]))


def auroc(confidence_N: np.ndarray, right_N: np.ndarray) -> float | None:
    """Chance that a right answer is surer than a wrong one, ties counting half; None where all are alike."""
    wrong, right = confidence_N[right_N < 0.5], confidence_N[right_N > 0.5]
    if not len(wrong) or not len(right):
        return None
    wrong = np.sort(wrong)
    below, not_above = np.searchsorted(wrong, right, "left"), np.searchsorted(wrong, right, "right")
    return float((below + not_above).mean() / 2 / len(wrong))


def risk_coverage(confidence_N: np.ndarray, right_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answering only the surest: (coverage, risk), the share answered and the share of those that is wrong (N,)."""
    wrong = 1 - right_N[np.argsort(-confidence_N, kind="stable")]
    answered = np.arange(1, len(wrong) + 1)
    return answered / len(wrong), np.cumsum(wrong) / answered


def new_figure() -> Figure:
    """An empty picture, wide enough for two diagrams. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'spanbert[plots]'") from None
    return Figure(figsize=(10, 4.5), layout="constrained")


def draw_reliability(file: Path, confidence_N: np.ndarray, right_N: np.ndarray, title: str) -> None:
    """Reliability diagram and risk-coverage curve as one picture. Raises UserError without matplotlib."""
    figure = new_figure()
    left, right = figure.subplots(1, 2)
    bins = bins_of(confidence_N, right_N)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    error = [1.96 * (one.right * (1 - one.right) / one.questions) ** 0.5 for one in bins]
    left.errorbar([one.confidence for one in bins], [one.right for one in bins], error, fmt="o-", capsize=3)
    left.set(xlabel="mean confidence", ylabel="share right (95 % interval)", xlim=(0, 1), ylim=(0, 1))
    left.set_title(f"calibration error {calibration_error(confidence_N, right_N):.3f}")
    coverage, risk = risk_coverage(confidence_N, right_N)
    right.plot(coverage, risk)
    right.set(xlabel="share of the questions answered", ylabel="share wrong of those", xlim=(0, 1), ylim=(0, 1))
    right.set_title("risk and coverage")
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
