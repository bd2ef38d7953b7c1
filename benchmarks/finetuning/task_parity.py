"""Entities, relations (by markers) and classification, step for step beside transformers: the same losses, and how fast a training step is?

    spanbert import … /tmp/minilm
    python -m benchmarks.finetuning.task_parity --model /tmp/minilm --task classify --file trec-train.txt [--json FILE]
    python -m benchmarks.finetuning.task_parity --model /tmp/minilm --task ner --file en_ewt-ud-train.iob2 --precision bf16

Both sides start from one folder (a missing head is initialised once), without dropout, and take the same windows in the
same order with the same learning rates: ours packed, transformers' padded to the longest window of each batch. Each side
lives in a process of its own, with one thread and the allocator that it has by itself; blocks of steps alternate. What
is timed is processor time of whole steps, from windows to new weights, and the ratio is taken within each pair of blocks;
the first pair warms up. Passes when no step's losses in fp32 differ by more than `tolerance`. In bf16 the two round at
different places, so there the difference is reported and not judged.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
import tyro

from benchmarks.finetuning.engine import engine_config, windows_of
from benchmarks.finetuning.peers import Pair, learning_rates, worst
from benchmarks.finetuning.sides import TheirSide, Work, our_side
from benchmarks.finetuning.turns import Block, TrainingProcess, take_turns
from finetune.task import Task
from finetune.tasks.classification.records import Columns
from finetune.tasks.classification.task import ClassifySettings, ClassifyTask
from finetune.tasks.ner.task import NerTask
from finetune.tasks.relation.task import RelationTask
from spanbert.checkpoint.model_folder import save_model
from spanbert.checkpoint.store import find_model
from spanbert.device import describe
from spanbert.files import write_atomic
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.init_model import init_model


@dataclass(frozen=True)
class TaskParityConfig:
    model: Path
    """Folder both start from, as `spanbert import` writes it."""
    task: Literal["ner", "relation", "classify"]
    file: Path
    """Training examples."""
    text: str = "text"
    """Column of a table that holds the text (classify)."""
    label: str = "label"
    """Column that holds its label."""
    limit: int | None = None
    """Only the first N examples of the file."""
    steps: int = 100
    block: int = 5
    """Steps that a side takes before it is the other's turn."""
    batch_size: int = 32
    lr: float = 5e-5
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass, on both sides."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Of transformers; sdpa is what it takes by itself."""
    keep_memory: bool = False
    """Give transformers our allocator settings too, which it does not have by itself."""
    seed: int = 0
    tolerance: float = 1e-3
    json: Path | None = None
    """Also write the result here."""


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured."""

    pairs: list[Pair]
    ours: list[Block]
    theirs: list[Block]

    @property
    def ratios(self) -> list[float]:
        """transformers' time ÷ ours of each pair of blocks, without the first one."""
        return [theirs.seconds / ours.seconds for ours, theirs in zip(self.ours[1:], self.theirs[1:], strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def compare(work: Work, block: int, keep_memory: bool = False) -> Comparison:
    """Both sides over all steps of ``work``, in turns."""
    processes = [TrainingProcess(our_side, work), TrainingProcess(TheirSide, work, keeps_memory=keep_memory)]
    ours, theirs = take_turns(processes, block)
    for process in processes:
        process.finish()
    losses = [[loss for one in blocks for loss in one.losses] for blocks in (ours, theirs)]
    return Comparison([Pair(*pair) for pair in zip(*losses, strict=True)], ours, theirs)


def start(folder: Path, model: Path, task: Task, seed: int) -> Tokenizer:
    """Save the weights that both begin with, the head and rows for new tokens included → their tokenizer."""
    begun = init_model(
        task.model,
        init=model,
        size="mini",
        tokenizer=None,
        seed=seed,
        dropout=0.0,
        attention_dropout=0.0,
        backend="auto",
        device=torch.device("cpu"),
        head=task.head(),
        new_tokens=task.new_tokens(),
    )
    save_model(folder, begun.model, begun.tokenizer, task.model_config())
    return begun.tokenizer


def tokens_of(work: Work) -> tuple[int, int]:
    """Tokens of all steps: real ones, and as many as they are when each batch is padded to its longest window."""
    lengths = [work.features.lengths[windows_of(work.features, step, work.config)] for step in range(len(work.rates))]
    return sum(int(step.sum()) for step in lengths), sum(len(step) * int(step.max()) for step in lengths)


def windows_per_second(blocks: Sequence[Block], batch_size: int) -> float:
    """By the median step; the first block is not counted."""
    return batch_size / statistics.median(block.seconds / len(block.losses) for block in blocks[1:])


def summary(work: Work, found: Comparison, tolerance: float) -> dict[str, Any]:
    """The result as one record."""
    real, padded = tokens_of(work)
    difference = worst(found.pairs)
    return {
        "largest_difference": difference,
        "passed": work.precision != "fp32" or difference <= tolerance,
        "first_loss": found.pairs[0].ours,
        "last_loss": found.pairs[-1].ours,
        "windows_per_second": {
            "ours": windows_per_second(found.ours, work.config.batch_size),
            "transformers": windows_per_second(found.theirs, work.config.batch_size),
        },
        "ratio": found.ratio,
        "ratio_quartiles": np.percentile(found.ratios, [25, 75]).tolist(),
        "tokens": {"real": real, "padded": padded},
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "machine": describe(torch.device("cpu"), 1),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "losses": [asdict(pair) for pair in found.pairs],
        "seconds": {
            "ours": [one.seconds for one in found.ours],
            "transformers": [one.seconds for one in found.theirs],
        },
    }


def report(result: dict[str, Any], precision: str, tolerance: float) -> str:
    """The result for people."""
    real, padded = result["tokens"]["real"], result["tokens"]["padded"]
    speed, (low, high) = result["windows_per_second"], result["ratio_quartiles"]
    verdict = f"{'within' if result['passed'] else 'ABOVE'} {tolerance:g}" if precision == "fp32" else "not judged"
    return (
        f"{len(result['losses'])} steps, {precision}: loss {result['first_loss']:.4f} → {result['last_loss']:.4f}; largest "
        f"difference {result['largest_difference']:.2e} ({verdict})\n"
        f"windows/s: ours {speed['ours']:.1f}, transformers {speed['transformers']:.1f}; "
        f"ratio {result['ratio']:.2f} (quartiles {low:.2f} – {high:.2f})\n"
        f"tokens: {real:,} real, {padded:,} padded, {padded / real:.2f} times as many\n"
        f"transformers {result['versions']['transformers']}, {result['machine']}, {result['date']}"
    )


def main(config: TaskParityConfig) -> int:
    task: Any = {"ner": NerTask, "relation": RelationTask, "classify": ClassifyTask}[config.task]()
    if config.task == "classify":
        task = ClassifyTask(ClassifySettings(columns=Columns(config.text, config.label)))
    records = task.read(config.file, "train").first(config.limit)
    task = task.learned_from(records)
    with tempfile.TemporaryDirectory() as shared:
        folder = Path(shared) / "model"
        tokenizer = start(folder, find_model(config.model), task, config.seed)
        features = task.encode(records, tokenizer, "train")
        rates = learning_rates(config.lr, config.steps)
        options = engine_config(folder, config.batch_size, config.seed)
        work = Work(folder, task, features, options, rates, config.precision, config.attention)
        result = summary(work, compare(work, config.block, config.keep_memory), config.tolerance)
    print(report(result, config.precision, config.tolerance))
    if config.json is not None:
        told = {key: str(value) for key, value in asdict(config).items()}
        write_atomic(config.json, json.dumps({"config": told} | result, indent=1) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(TaskParityConfig, description=(__doc__ or "").partition("\n")[0])))
