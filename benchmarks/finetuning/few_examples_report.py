"""What ``benchmarks.finetuning.few_examples`` found, as a table and as a picture.

``found``: data set → "majority", "untrained" (head → scores), "rates" (way → rate), "trained" (way → examples a class → seed →
scores), as ``few_examples.results_of`` has them.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation.report import mean_and_deviation, paired_difference
from spanbert.files import write_atomic


def table(found: Mapping[str, Any], about: str, each: Sequence[int]) -> str:
    """Markdown: of each data set the larger class, the prompts without training, and what was trained."""
    lines = [about, "", f"| data | trained | rate | {' | '.join(f'{k} a class' for k in each)} | seeds |"]
    lines.append("|---|---|---|" + "---|" * (len(each) + 1))
    for name, data in found.items():
        fixed = {"the larger class": data["majority"]}
        fixed |= {f"nothing: prompt, {head}": scores["accuracy"] for head, scores in data["untrained"].items()}
        lines += [
            f"| {name} | {what} | – | {' | '.join([f'{value:.2f}'] * len(each))} | – |" for what, value in fixed.items()
        ]
        for way, runs in data["trained"].items():
            values = [[one["accuracy"] for one in runs.get(str(k), {}).values()] for k in each]
            cells = " | ".join(mean_and_deviation(value) for value in values)
            seeds = sorted({len(value) for value in values})
            what = way if way == "new head" else f"prompt, {way}"
            lines.append(f"| {name} | {what} | {data['rates'][way]:g} | {cells} | {'–'.join(map(str, seeds))} |")
    return "\n".join([*lines, *paired(found, each)])


def paired(found: Mapping[str, Any], each: Sequence[int]) -> list[str]:
    """A line for each prompt: how much better it is than the new head with the same examples, and the 95 % interval."""
    lines = []
    for name, data in found.items():
        for way, runs in data["trained"].items():
            for k in map(str, each):
                prompt, head = runs.get(k, {}), data["trained"].get("new head", {}).get(k, {})
                seeds = sorted(prompt.keys() & head.keys())
                if way == "new head" or not seeds:
                    continue
                one = paired_difference([prompt[seed]["accuracy"] - head[seed]["accuracy"] for seed in seeds])
                lines.append(f"* {name}, {k} a class: prompt, {way} − new head: {one.written()}")
    return ["", *lines] if lines else []


def plot(found: Mapping[str, Any], ways: Sequence[str], titles: Mapping[str, str], output: Path) -> bool:
    """Accuracy against examples a class, a panel for each data set → False without matplotlib.

    ways: all there are, which settles their colours; titles: of the panels, by data set.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5 * len(found), 4), layout="constrained")
    for axes, (name, data) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for way, runs in data["trained"].items():
            values = [[one["accuracy"] for one in seeds.values()] for seeds in runs.values()]
            spread = [statistics.stdev(value) if len(value) > 1 else 0.0 for value in values]
            shift = 1 + 0.03 * (ways.index(way) - 1.5)  # so that bars do not cover one another
            axes.errorbar(
                [int(k) * shift for k in runs],
                [statistics.fmean(value) for value in values],
                yerr=spread,
                fmt="o-",
                capsize=3,
                color=f"C{ways.index(way)}",
                label=way if way == "new head" else f"prompt, {way}",
            )
        for head, scores in data["untrained"].items():
            axes.axhline(scores["accuracy"], color=f"C{ways.index(head)}", linestyle=":", label=f"untrained, {head}")
        axes.axhline(data["majority"], color="gray", linestyle="--", label="larger class")
        axes.set(xscale="log", xlabel="examples a class", ylabel="accuracy (%)", title=titles[name])
        ticks = sorted({int(k) for runs in data["trained"].values() for k in runs})
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomic(output, picture.getvalue())
    return True
