"""Several seeds in one call: a run for each in a folder of its own, then mean and standard deviation of their scores."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig
from finetune.task import Task
from spanbert.config import read_json_object, save_json
from spanbert.distributed import Group
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.training.metrics import plot_runs, warn
from spanbert.training.run_folder import read_metrics

#: Numbers of metrics.json that say nothing of the model.
NO_SCORES = ("seconds",)


def run_seeds(
    task: Task, config: FinetuneConfig, group: Group, run: Callable[[Task, FinetuneConfig, Group], None]
) -> None:
    """``run`` for each of ``config.seeds``, one after another, then seeds.json, seeds.md and curves.png in OUTPUT.

    With --resume, runs that are complete stay, one that was stopped resumes, and those that never began begin.
    """
    group.on_main(lambda: _refuse_other_content(config))
    runs = [seed_run(config, seed) for seed in config.seeds]
    for number, one in enumerate(runs, 1):
        group.print_main(f"seed {one.seed} ({number} of {len(runs)}): {one.output}")
        begun = group.on_main(lambda output=one.output: (output / "config.json").exists())  # type: ignore[misc]
        run(task, replace(one, resume=config.resume and begun), group)
    group.on_main(lambda: _write_summary(task, config, runs))


def seed_run(config: FinetuneConfig, seed: int) -> FinetuneConfig:
    """The run of one seed: the same options, in OUTPUT/seed-N."""
    return replace(config, seed=seed, seeds=(), output=config.output / f"seed-{seed}")


def _refuse_other_content(config: FinetuneConfig) -> None:
    """A folder is one run or holds those of several seeds. Raises UserError before anything is trained."""
    if (config.output / "config.json").exists():
        raise UserError(f"{config.output} holds a run of one seed: choose another --output for --seeds")
    if config.resume:
        return
    for seed in config.seeds:
        if (config.output / f"seed-{seed}" / "config.json").exists():
            raise UserError(
                f"{config.output}/seed-{seed} already holds a run: add --resume to continue, or choose another --output"
            )


def summary_of(scores: Mapping[int, Mapping[str, Any]], main_metric: str) -> dict[str, Any]:
    """metrics.json of each seed → mean and sample standard deviation (n − 1) of what all of them have.

    A single seed has no standard deviation (None).
    """
    first, *others = scores.values()
    names = [
        name
        for name, value in first.items()
        if isinstance(value, float) and name not in NO_SCORES and all(name in other for other in others)
    ]
    metrics = {}
    for name in names:
        values = {str(seed): metrics[name] for seed, metrics in scores.items()}
        metrics[name] = {
            "mean": statistics.fmean(values.values()),
            "std": statistics.stdev(values.values()) if len(values) > 1 else None,
            "seeds": values,
        }
    return {"main_metric": main_metric, "seeds": list(scores), "metrics": metrics}


def table_of(summary: Mapping[str, Any]) -> str:
    """The summary as a Markdown table, the main metric first."""
    metrics = summary["metrics"]
    names = sorted(metrics, key=lambda name: name != summary["main_metric"])
    rows = [["", *names]]
    rows += [
        [f"seed {seed}", *(f"{metrics[name]['seeds'][str(seed)]:.2f}" for name in names)] for seed in summary["seeds"]
    ]
    rows.append(["mean ± std", *(mean_and_deviation(metrics[name]) for name in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def mean_and_deviation(metric: Mapping[str, Any]) -> str:
    """``83.12 ± 0.45``."""
    return f"{metric['mean']:.2f}" + (f" ± {metric['std']:.2f}" if metric["std"] is not None else "")


def _write_summary(task: Task, config: FinetuneConfig, runs: Sequence[FinetuneConfig]) -> None:
    scores = {one.seed: read_json_object(one.output / "metrics.json", "scores") for one in runs}
    summary = summary_of(scores, task.main_metric)
    table = table_of(summary)
    save_json(summary, config.output / "seeds.json")
    write_atomic(config.output / "seeds.md", table)
    _draw(config.output, runs, ["loss", task.main_metric])
    print(f"{table}wrote seeds.json and seeds.md in {config.output}; the models are in its folders seed-N/model")


def _draw(output: Path, runs: Sequence[FinetuneConfig], names: Sequence[str]) -> None:
    records: dict[str, list[dict[str, Any]]] = {
        f"seed {one.seed}": read_metrics(one.output / "metrics.jsonl") for one in runs
    }
    try:
        plot_runs(records, names, output / "curves.png", output.name)
    except Exception as error:
        warn(str(output / "curves.png"), error)
