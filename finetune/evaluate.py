"""Scoring a model on a labelled file: the same for every task."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from finetune.predict import Machine, TrainedModel, predict
from finetune.task import Features, Task
from spanbert.errors import UserError
from spanbert.files import check_writable, write_atomic
from spanbert.model.models import SpanBertModel


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on some examples."""

    task: Task
    """With the settings that were used."""
    features: Features
    predictions: list[Any]
    """One for each example, in the file's order."""
    metrics: dict[str, float]
    """In percent, and counts."""


def evaluate(
    task: Task, model: SpanBertModel, features: Features, machine: Machine, *, tune: bool = False
) -> Evaluation:
    """Predict every example and score the predictions; the model is left in the mode it was in.

    tune: use the settings that are best on these very examples, instead of the task's (``Evaluation.task`` has them).
    """
    was_training = model.training
    model.eval()
    begin = time.perf_counter()
    with tqdm(total=len(features.lengths), unit=" windows", desc="evaluating", mininterval=0.5) as bar:
        predictions = list(predict(task, model, features, machine, advance=bar.update))
    seconds = time.perf_counter() - begin
    model.train(was_training)
    if tune:
        task = task.tuned(features, predictions)
    counts = {"windows": len(features.lengths), "seconds": round(seconds, 2)}
    return Evaluation(task, features, predictions, task.score(features, predictions) | counts)


def write_evaluation(folder: Path, evaluation: Evaluation) -> list[str]:
    """metrics.json and the task's own files → their names."""
    contents = dict(evaluation.task.files(evaluation.features, evaluation.predictions))
    metrics = {**evaluation.task.scoring(evaluation.features), **evaluation.metrics}
    contents["metrics.json"] = json.dumps(metrics, ensure_ascii=False, indent=1) + "\n"
    for name, content in contents.items():
        write_atomic(folder / name, content)
    return list(contents)


def check_output(folder: Path) -> None:
    """UserError when scores cannot be written there, or would take the place of a run's or a model's own."""
    check_writable(folder, "files inside")
    if (folder / "config.json").exists():
        raise UserError(
            f"--output {folder} holds a run or a model, whose own files would be replaced: name a new folder"
        )


def run_evaluate(trained: TrainedModel[Any], file: Path, output: Path | None, limit: int | None) -> Evaluation:
    """Print the metrics of a model on `file`; write them with the predictions where a folder is given."""
    task = trained.task
    if output is not None:
        check_output(output)
    records = task.read(file, "evaluate").first(limit)
    features = task.encode(records, trained.tokenizer, "evaluate")
    print(f"{file}: {features.examples:,} {task.noun}, {len(features.lengths):,} windows")
    for note in features.notes:
        print(f"  {note}")
    evaluation = evaluate(task, trained.model, features, trained.machine)
    for name, value in task.scoring(features).items():
        print(f"{name}: {value}")
    print(task.describe(evaluation.metrics))
    if output is not None:
        print(f"wrote {listed(write_evaluation(output, evaluation))} in {output}")
    print(f"next: {task.next_command(trained.folder)}")
    return evaluation


def listed(names: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
