"""README.md of a fine-tuned model: what it was trained on and how, what it scored, and with which versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spanbert
from finetune.config import FinetuneConfig
from finetune.task import Task
from spanbert.config import to_dict
from spanbert.files import sha256

#: Options that are no part of the recipe: places, what is told elsewhere, and how often something is written.
NO_RECIPE = (
    "train",
    "dev",
    "rehearse",
    "rehearse_dev",
    "output",
    "resume",
    "seeds",
    "log_every",
    "save_every",
    "wandb",
    "device",
)


def model_card(
    task: Task,
    config: FinetuneConfig,
    *,
    examples: int,
    steps: int,
    parameters: str,
    metrics: Mapping[str, Any] | None,
    notes: Sequence[str] = (),
) -> str:
    """The card as Markdown.

    Args:
        examples: trained on; steps: of the optimizer, up to the state that the model is.
        parameters: how many, and how many of them were trained, in words.
        metrics: scores on --dev in percent; None without it.
        notes: lines on what else was done, each a sentence.
    """
    title = config.output.resolve().name
    lines = [
        "---",
        f"library_name: {'peft' if config.lora else 'transformers'}",
        f"tags: [spanbert, {task.name}]",
        "---",
        "",
        f"# {title}",
        "",
        f"A model for `spanbert evaluate {task.name}` and `spanbert predict {task.name}`, fine-tuned from `{config.init}`.",
        "",
        "## Data",
        "",
        "| used for | file | sha256 |",
        "|---|---|---|",
        *(f"| {use} | {path.name} | `{sha256(path)}` |" for use, path in data_files(config).items()),
        "",
        f"Trained on {examples:,} {task.noun}.",
        "",
        "## Recipe",
        "",
        f"{steps:,} optimizer steps, seed {config.seed}; {parameters}. AdamW, linear warm-up and decay. The options:",
        "",
        "| option | value |",
        "|---|---|",
        *(f"| {name.replace('_', '-')} | {value} |" for name, value in recipe(config).items()),
        *(("", *(f"* {note}" for note in notes)) if notes else ()),
        "",
        "## Scores",
        "",
        *_scores(task, config, metrics),
        "",
        "## Versions",
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines) + "\n"


def data_files(config: FinetuneConfig) -> dict[str, Path]:
    """What each file was used for."""
    files = {
        "training": config.train,
        "rehearsal of old data": config.rehearse,
        "scores": config.dev,
        "scores on old data": config.rehearse_dev,
    }
    return {use: path for use, path in files.items() if path is not None}


def recipe(config: FinetuneConfig) -> dict[str, Any]:
    """The options that decide about the model and are set."""
    unused = (*NO_RECIPE, *(("rehearse_share",) if config.rehearse is None else ()))
    values = {name: value for name, value in to_dict(config).items() if name not in unused}
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value not in ("", [])
    }


def versions() -> dict[str, str]:
    """Of what computed the model."""
    return {
        "spanbert": spanbert.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _scores(task: Task, config: FinetuneConfig, metrics: Mapping[str, Any] | None) -> list[str]:
    if metrics is None or config.dev is None:
        return ["None: no --dev file was given."]
    numbers = {name: value for name, value in metrics.items() if type(value) in (int, float) and name != "seconds"}
    names = sorted(numbers, key=lambda name: name != task.main_metric)
    chosen = ", the best of the evaluations on this very file" if config.keeps_best else ""
    return [
        f"On `{config.dev.name}`, by `{task.main_metric}`{chosen}; one seed.",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {_number(numbers[name])} |" for name in names),
    ]


def _number(value: float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"
