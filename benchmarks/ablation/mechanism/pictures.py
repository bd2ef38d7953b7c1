"""The pictures of the report: the probe by length of the span, and the cross table."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ablation.mechanism.claims import boundary, decide, masked_loss, probe_loss
from benchmarks.ablation.mechanism.cross_table import SCHEMES
from benchmarks.ablation.mechanism.spans import LONGEST
from benchmarks.ablation.report import Scores
from spanbert.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(scores: Scores, baseline: Mapping[str, Any], output: Path) -> list[str]:
    """Write mechanism-probe.png and mechanism-cross.png → their names; none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    probe = Figure(figsize=(11, 4.5))
    left, right = probe.subplots(1, 2)
    draw_probe(left, scores, baseline)
    draw_gain(right, scores)
    cross = Figure(figsize=(7.5, 1.2 + 0.55 * len(scores)))
    draw_cross_table(cross, scores)
    for name, figure in (("mechanism-probe.png", probe), ("mechanism-cross.png", cross)):
        figure.tight_layout()
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110)
        write_atomic(output / name, picture.getvalue())
    return ["mechanism-probe.png", "mechanism-cross.png"]


def draw_probe(axis: Axes, scores: Scores, baseline: Mapping[str, Any]) -> None:
    """Loss from the boundary states by words of the span: a line of means an arm, a dot a seed."""
    lengths = range(1, LONGEST + 1)
    for number, (arm, runs) in enumerate(scores.items()):
        losses = {
            n: [loss for run in runs.values() if (loss := probe_loss(run, "boundary", n)) is not None] for n in lengths
        }
        there = [n for n in lengths if losses[n]]
        axis.plot(there, [statistics.fmean(losses[n]) for n in there], color=f"C{number}", label=arm)
        dots = [(n, loss) for n in there for loss in losses[n]]
        axis.plot([n for n, _ in dots], [loss for _, loss in dots], ".", color=f"C{number}", markersize=5)
    unigram = baseline["probe"]["by_words"]["loss"]
    axis.plot(
        [n for n in lengths if unigram[n - 1] is not None], [loss for loss in unigram if loss is not None],
        "--", color="gray", label="unigram",
    )  # fmt: skip
    axis.set(xlabel="words of the hidden span", ylabel="loss of the probe, nats a token", xticks=lengths)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def draw_gain(axis: Axes, scores: Scores) -> None:
    """What SBO gains by words of the span, at the boundary and beyond: a dot a seed, the mean and its 95 % interval."""
    for colour, (reach, shift) in enumerate((("boundary", -0.12), ("beyond", 0.12))):
        for words in range(1, LONGEST + 1):
            comparison = boundary(reach, words)
            difference = decide(scores, [comparison])
            if difference is None:
                continue
            shared = set.intersection(*(set(scores[arm]) for arm in comparison.arms))
            gains = [comparison.gain({arm: scores[arm][seed] for arm in comparison.arms}) for seed in sorted(shared)]
            known = [gain for gain in gains if gain is not None]
            at = words + shift
            label = {"boundary": "boundary states", "beyond": "two tokens further out"}[reach] if words == 1 else None
            if difference.seeds > 1:
                axis.errorbar(at, difference.mean, yerr=difference.reach, color=f"C{colour}", capsize=3, fmt="none")
            axis.plot([at] * len(known), known, ".", color=f"C{colour}", label=label)
    axis.axhline(0, color="gray", linewidth=0.8)
    axis.set(
        xlabel="words of the hidden span",
        ylabel="geometric − geometric+sbo, nats a token",
        xticks=range(1, LONGEST + 1),
    )
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def draw_cross_table(figure: Figure, scores: Scores) -> None:
    """Mean MLM loss of every arm under every scheme; the colour is how far it is from its column's best."""
    axis = figure.subplots()
    losses = [
        [statistics.fmean(masked_loss(run, scheme) or 0.0 for run in runs.values()) for scheme in SCHEMES]
        for runs in scores.values()
    ]
    best = [min(column) for column in zip(*losses)]
    above = [[loss - low for loss, low in zip(row, best)] for row in losses]
    image = axis.imshow(above, cmap="YlOrRd", aspect="auto", vmin=0)
    middle = max(max(row) for row in above) / 2
    for y, (arm, row) in enumerate(zip(scores, losses)):
        for x, loss in enumerate(row):
            own = SCHEMES[x] == arm.removesuffix("+sbo")
            axis.text(
                x, y, f"{loss:.3f}", ha="center", va="center", fontweight="bold" if own else "normal",
                color="white" if above[y][x] > middle else "black",
            )  # fmt: skip
    axis.set(xticks=range(len(SCHEMES)), yticks=range(len(scores)), xlabel="hidden by (bold: as in training)")
    axis.set_xticklabels(SCHEMES)
    axis.set_yticklabels(list(scores))
    figure.colorbar(image, ax=axis, label="nats above the column's best")
