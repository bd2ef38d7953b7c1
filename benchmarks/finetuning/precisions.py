"""What a precision costs and changes at inference: processor time of the windows of some questions, and their logits.

    python -m benchmarks.finetuning.precisions dev-v1.1.json.gz [--model FOLDER] [--questions 80] [--rounds 5]

One thread. The precisions take turns, and the median of their rounds is given; it is the process's own time, without what
the system does for it, so that a machine that also does other work, or lacks memory, disturbs it least.
"""

from __future__ import annotations

import os
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from finetune.predict import TrainedModel, load_trained, window_logits
from finetune.tasks.qa.task import QATask
from spanbert.errors import UserError
from spanbert.weights import qa_model_path


@dataclass(frozen=True)
class PrecisionsConfig:
    """Processor time and logits of the same windows in several precisions, on a CPU."""

    file: tyro.conf.Positional[Path]
    """Questions, as `spanbert predict qa` reads them."""
    model: Path | None = None
    """Model folder; left out, the bundled reader."""
    questions: int = 80
    """Of the file, from its beginning."""
    rounds: int = 5
    """How often each precision reads them; a round before them is not counted."""
    batch_tokens: int = 4096
    """Tokens of a batch."""
    precisions: tuple[str, ...] = ("fp32", "bf16", "int8")
    """Compared; logits are compared with those of the first."""


@dataclass(frozen=True)
class Measured:
    """One precision."""

    precision: str
    seconds: float
    """Processor time of a round, the median."""
    difference: float
    """Mean absolute difference of a logit from the first precision's."""


def measure(config: PrecisionsConfig) -> tuple[int, list[Measured]]:
    """→ tokens of a round, and a row for each precision. Raises UserError for one that cannot be."""
    if config.rounds < 1 or not config.precisions:
        raise UserError("give at least 1 of --rounds and a precision")
    trained = {
        name: load_trained(QATask, config.model or qa_model_path(), device="cpu", precision=name)
        for name in config.precisions
    }
    first = trained[config.precisions[0]]
    features = first.task.encode(
        first.task.read(config.file, "predict").first(config.questions), first.tokenizer, "predict"
    )
    logits: dict[str, np.ndarray] = {}
    seconds: dict[str, list[float]] = {name: [] for name in trained}
    for number in range(config.rounds + 1):
        for name, one in trained.items():
            begin = os.times().user
            logits[name] = read(one, features, config.batch_tokens)
            if number:
                seconds[name].append(os.times().user - begin)
    exact = logits[config.precisions[0]]
    return int(features.lengths.sum()), [
        Measured(name, statistics.median(seconds[name]), float(np.abs(logits[name] - exact).mean())) for name in trained
    ]


def read(trained: TrainedModel[QATask], features, tokens: int) -> np.ndarray:
    """The logits of all windows end to end."""
    machine = replace(trained.machine, tokens=tokens)
    windows = np.arange(len(features.lengths))
    parts = window_logits(trained.task, trained.model, features, windows, machine)
    return np.concatenate([part.ravel() for part in parts])


def main() -> int:
    try:
        config = tyro.cli(PrecisionsConfig, description=PrecisionsConfig.__doc__)
        torch.set_num_threads(1)
        tokens, rows = measure(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{tokens:,} tokens, {config.rounds} rounds, one thread, torch {torch.__version__}")
    for row in rows:
        times = rows[0].seconds / row.seconds if row.seconds else float("nan")
        print(f"{row.precision:5}  {row.seconds:7.2f} s  {times:5.2f} ×  mean |Δ logit| {row.difference:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
