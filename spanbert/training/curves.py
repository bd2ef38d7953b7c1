"""Loss curves as pictures, drawn from metrics.jsonl, when matplotlib is installed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spanbert.files import write_atomic

Records = Sequence[Mapping[str, Any]]

STYLES: dict[str, dict[str, Any]] = {
    "train": {"alpha": 0.45, "linewidth": 1},
    "validation": {"marker": "o", "markersize": 3},
}


def plot_curves(
    metrics: Records, names: Sequence[str], output: Path, title: str, baselines: Mapping[str, float] | None = None
) -> bool:
    """Training and validation curves of ``names`` over steps as a PNG → False when matplotlib is not installed."""
    return plot_runs({"": metrics}, names, output, title, baselines)


def plot_runs(
    runs: Mapping[str, Records],
    names: Sequence[str],
    output: Path,
    title: str,
    baselines: Mapping[str, float] | None = None,
) -> bool:
    """Curves of several runs, by label, over one another: a panel for each of ``names``, a colour for each run.

    Training is the thin line, validation the one with points. → False when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5.5 * len(names), 4))
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, (label, metrics) in enumerate(runs.items()):
            for split, style in STYLES.items():
                points = [(r["step"], r[name]) for r in metrics if r["split"] == split and r.get(name) is not None]
                if points:
                    colour = f"C{number}" if len(runs) > 1 else ("C0" if split == "train" else "C1")
                    axis.plot(*zip(*points, strict=True), label=f"{label} {split}".strip(), color=colour, **style)
        if baselines and name in baselines:
            axis.axhline(baselines[name], color="gray", linestyle="--", linewidth=1, label="unigram baseline")
        axis.set(xlabel="optimizer step", ylabel=name.replace("_", " "))
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(frameon=False, fontsize="small")
    figure.suptitle(title)
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomic(output, picture.getvalue())
    return True
