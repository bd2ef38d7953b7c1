"""From the runs of an ablation to what they say: a table, paired differences, verdicts by a fixed rule, a picture.

The rule: the arms of a comparison share their seeds, so what counts is the difference within each seed. A claim holds
when the 95 % interval of the mean difference in F1 (Student's t over seeds) lies above 0, does not hold when it lies
below 0, and otherwise the budget cannot tell. An arm's own standard deviation over seeds decides nothing.

Nothing is told either by arms that are not shown to be better than no pretraining: three seeds then agree by chance,
most easily on scores near 0. One such arm beside one that is better can be told apart from it.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert.files import write_atomic

Scores = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Arm → seed → that run's numbers."""

HOLDS, FAILS, OPEN = "holds", "does not hold", "the budget cannot tell"


@dataclass(frozen=True)
class Claim:
    """``pairs``: (the arm said to be better, the other one). With several, the claim is about their mean."""

    text: str
    pairs: tuple[tuple[str, str], ...]


CLAIMS = (
    Claim("Pretraining is better than none", (("subword", "none"), ("whole_word", "none"), ("geometric", "none"))),
    Claim(
        "Geometric spans are better than subword tokens",
        (("geometric", "subword"), ("geometric+sbo", "subword+sbo")),
    ),
    Claim(
        "Geometric spans are better than whole words",
        (("geometric", "whole_word"), ("geometric+sbo", "whole_word+sbo")),
    ),
    Claim(
        "MLM + SBO is better than MLM only",
        (("subword+sbo", "subword"), ("whole_word+sbo", "whole_word"), ("geometric+sbo", "geometric")),
    ),
    Claim("A single sequence is better than sentence pairs with NSP", (("geometric", "geometric+nsp"),)),
)


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences over seeds, its standard error, and its 95 % interval; infinite with one seed."""

    seeds: int
    mean: float
    error: float
    reach: float
    """Half of the interval: a mean smaller than this does not show."""

    @property
    def verdict(self) -> str:
        if abs(self.mean) <= self.reach:
            return OPEN
        return HOLDS if self.mean > 0 else FAILS

    def __str__(self) -> str:
        return self.written()

    def written(self, digits: int = 2) -> str:
        if self.seeds < 2:
            return f"{self.mean:+.{digits}f} (one seed)"
        low, high = self.mean - self.reach, self.mean + self.reach
        return f"{self.mean:+.{digits}f} ± {self.error:.{digits}f}, interval {low:+.{digits}f} … {high:+.{digits}f}"


def paired_difference(differences: Sequence[float]) -> Difference:
    """Of one difference a seed, at least one."""
    from scipy.stats import t

    seeds, mean = len(differences), statistics.fmean(differences)
    if seeds < 2:
        return Difference(seeds, mean, math.inf, math.inf)
    error = statistics.stdev(differences) / math.sqrt(seeds)
    return Difference(seeds, mean, error, float(t.ppf(0.975, seeds - 1)) * error)


def compare(scores: Scores, pairs: Sequence[tuple[str, str]], metric: str) -> Difference | None:
    """Better minus other, the mean over ``pairs`` within each seed that has them all. None when no seed does."""
    arms = [arm for pair in pairs for arm in pair]
    seeds = sorted(set.intersection(*(set(scores.get(arm, {})) for arm in arms)))
    if not seeds:
        return None
    return paired_difference(
        [
            statistics.fmean(scores[better][seed][metric] - scores[other][seed][metric] for better, other in pairs)
            for seed in seeds
        ]
    )


def learned(scores: Scores, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether one of these arms is shown to be better than no pretraining, or that was not run."""
    if any("none" in pair for pair in pairs):
        return True  # that is the question itself
    found = [compare(scores, [(arm, "none")], "f1") for pair in pairs for arm in pair]
    return any(one is None or one.verdict == HOLDS for one in found)


def mean_and_deviation(values: Sequence[float | None], digits: int = 2) -> str:
    """``12.34 ± 0.56``; the deviation is that of a sample, and left out when there is one value."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def report(scores: Scores, about: str) -> str:
    """Markdown. ``about``: one paragraph on what was run."""
    lines = [about, "", "| arm | seeds | tokens | MLM loss | SBO loss | EM | F1 |", "|---|---|---|---|---|---|---|"]
    for arm, runs in scores.items():
        columns = [[run.get(name) for run in runs.values()] for name in ("mlm_loss", "sbo_loss", "exact", "f1")]
        cells = " | ".join(mean_and_deviation(values, 3 if n < 2 else 2) for n, values in enumerate(columns))
        tokens = statistics.fmean(run["tokens"] for run in runs.values())
        lines.append(f"| {arm} | {len(runs)} | {tokens:,.0f} | {cells} |")
    lines += [
        "",
        "Mean ± standard deviation over seeds. Losses in nats, held out, each under the arm's own masks: they compare",
        "arms of the same masks only. EM and F1 in percent.",
        "",
        "| better? | than | seeds | EM, mean ± standard error | F1, mean ± standard error and 95 % interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    verdicts: dict[str, list[str]] = {HOLDS: [], FAILS: [], OPEN: []}
    missing = []
    for claim in CLAIMS:
        for better, other in claim.pairs:
            f1 = compare(scores, [(better, other)], "f1")
            if f1 is not None:
                exact = compare(scores, [(better, other)], "exact")
                em = f"{exact.mean:+.2f} ± {exact.error:.2f}" if exact.seeds > 1 else f"{exact.mean:+.2f}"
                verdict = f1.verdict if learned(scores, [(better, other)]) else OPEN
                lines.append(f"| {better} | {other} | {f1.seeds} | {em} | {f1} | {verdict} |")
        whole = compare(scores, claim.pairs, "f1")
        if whole is None:
            missing.append(claim.text)
            continue
        decided = learned(scores, claim.pairs)
        over = f", mean of {len(claim.pairs)} comparisons" if len(claim.pairs) > 1 else ""
        limit = f"; less than ±{whole.reach:.2f} would not have shown" if math.isfinite(whole.reach) else ""
        hint = limit if whole.verdict == OPEN else "" if decided else "; none of these arms was shown to have learned"
        verdicts[whole.verdict if decided else OPEN].append(f"{claim.text}: F1 {whole}{over}{hint}.")
    lines += [
        "",
        "The rule: a claim holds when the 95 % interval of the paired difference in F1 (Student's t over seeds) is above 0,",
        "does not hold when it is below 0; otherwise the budget cannot tell. Nor can it between arms of which none was",
        "shown by the same rule to be better than no pretraining. One interval in twenty errs, so a table of them may well",
        "hold one that does.",
    ]
    for verdict, sentences in verdicts.items():
        lines += [
            "",
            f"**{verdict[0].upper()}{verdict[1:]}:**",
            *(f"* {sentence}" for sentence in sentences or ["nothing."]),
        ]
    if missing:
        lines += ["", f"Not run yet: {'; '.join(missing)}."]
    return "\n".join(lines)


def plot(scores: Scores, output: Path) -> bool:
    """F1 of every run, arms from top to bottom, mean ± standard deviation beside → False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 1 + 0.45 * len(scores)))
    axis = figure.subplots()
    for row, runs in enumerate(scores.values()):
        values = [run["f1"] for run in runs.values()]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        axis.errorbar(statistics.fmean(values), row, xerr=spread, fmt="o", color="C0", capsize=4)
        axis.plot(values, [row + 0.2] * len(values), ".", color="gray")
    axis.set(xlabel="SQuAD F1: runs (grey), mean ± standard deviation", yticks=range(len(scores)))
    axis.set_yticklabels(list(scores))
    axis.invert_yaxis()
    axis.grid(alpha=0.3, axis="x")
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomic(output, picture.getvalue())
    return True
