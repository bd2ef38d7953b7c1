"""Entities, relations and classification on whole data sets: from which weights, with which score, and beside transformers.

    spanbert import … minilm
    python -m benchmarks.finetuning.real_tasks --data FOLDER --models minilm bundled random --beside minilm --output REAL_TASKS

FOLDER holds ner/, relation/ and classification/ with the files named below. Each run is what `spanbert finetune` does with the
options of its task; the model is scored on the test file once, when it ends, and nothing is chosen by that. transformers' runs
(from the models of --beside) start from the same weights, the head included, and see the same windows in the same order at the
same rates, with its own dropout; the weights they end with are scored by this project's code. For speeds see ``task_parity``.

The same command again skips what is done, resumes what was interrupted (transformers' runs begin again), and reports what
there is. It may run several times side by side, with other --tasks, --models or --seeds first.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from safetensors.torch import save_file

from benchmarks.ablation.report import mean_and_deviation
from benchmarks.finetuning.peers import learning_rates
from benchmarks.finetuning.sides import TheirSide, Work
from benchmarks.resumable import begin, exit_status, finish, kept
from finetune.config import FinetuneConfig
from finetune.evaluate import evaluate
from finetune.predict import load_trained
from finetune.prepare import prepare
from finetune.tasks.classification.commands import FinetuneClassifyConfig
from finetune.tasks.ner.commands import FinetuneNerConfig
from finetune.tasks.relation.commands import FinetuneRelationConfig
from finetune.train import run_finetune
from spanbert.checkpoint.model_folder import save_model
from spanbert.config import read_json, save_json, to_dict
from spanbert.device import choose_device, describe, tune_allocator
from spanbert.distributed import alone
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.weights import encoder_path

Side = Literal["ours", "transformers"]
SIDES: tuple[Side, ...] = ("ours", "transformers")


@dataclass(frozen=True)
class RealTask:
    """One data set, and the options of `spanbert finetune` for it."""

    title: str
    command: type[FinetuneConfig]
    train: str
    test: str
    metrics: tuple[str, ...]
    """The first one is compared."""
    options: Mapping[str, Any]


TASKS = {
    "ewt": RealTask(
        "EWT entities, F1",
        FinetuneNerConfig,
        "ner/en_ewt-ud-train.iob2",
        "ner/en_ewt-ud-test.iob2",
        ("f1", "precision", "recall"),
        {"epochs": 1, "lr": 2e-4},
    ),
    "wnut17": RealTask(
        "WNUT-17 entities, F1",
        FinetuneNerConfig,
        "ner/wnut17train.conll",
        "ner/emerging.test.annotated",
        ("f1", "precision", "recall"),
        {"epochs": 2, "lr": 2e-4},
    ),
    "semeval": RealTask(
        "SemEval-2010 Task 8, markers, official macro F1",
        FinetuneRelationConfig,
        "relation/semeval2010-task8-train.txt",
        "relation/semeval2010-task8-test.txt",
        ("macro_f1", "accuracy"),
        {"epochs": 2, "lr": 2e-4, "encoding": "markers"},
    ),
    "sst2": RealTask(
        "SST-2, 15,000 phrases, accuracy",
        FinetuneClassifyConfig,
        "classification/sst2-train.tsv",
        "classification/sst2-dev.tsv",
        ("accuracy", "macro_f1"),
        {"epochs": 1, "lr": 1e-4, "text": "sentence", "label": "label", "max_train_examples": 15_000},
    ),
    "trec": RealTask(
        "TREC, accuracy",
        FinetuneClassifyConfig,
        "classification/trec-train.txt",
        "classification/trec-test.txt",
        ("accuracy", "macro_f1"),
        {"epochs": 2, "lr": 1e-4},
    ),
}
TASKS |= {
    f"semeval-{encoding}": RealTask(
        f"SemEval-2010 Task 8, {encoding}, official macro F1",
        FinetuneRelationConfig,
        TASKS["semeval"].train,
        TASKS["semeval"].test,
        TASKS["semeval"].metrics,
        {**TASKS["semeval"].options, "encoding": encoding},
    )
    for encoding in ("mask", "typed")
}


@dataclass(frozen=True)
class RealTasksConfig:
    """Options."""

    data: Path
    """Folder of the data sets."""
    output: Path
    """Folder of the comparison."""
    models: tuple[str, ...] = ("bundled", "random")
    """What is fine-tuned: model folders, "bundled" (the encoder that comes with this program), "random" (the same shape)."""
    beside: tuple[str, ...] = ()
    """From which of them transformers is trained, too."""
    tasks: tuple[str, ...] = ("ewt", "wnut17", "semeval", "sst2", "trec")
    """Which data sets, in which order."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the head, the order and dropout."""
    small_lr: float = 4e-4
    """Learning rate from "bundled" and "random", which are small."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass in training, on both sides."""


def finetune_config(config: RealTasksConfig, name: str, model: str, seed: int, folder: Path) -> FinetuneConfig:
    task = TASKS[name]
    small = {"lr": config.small_lr} if model in ("bundled", "random") else {}
    return task.command(
        train=config.data / task.train,
        output=folder / "run",
        init=model,
        tokenizer=encoder_path() if model == "random" else None,
        seed=seed,
        precision=config.precision,
        device="cpu",
        **{**task.options, **small},
    )


def train_theirs(options: FinetuneConfig, folder: Path) -> Path:
    """The same run by transformers → folder of a model of ours with the weights that it ended with."""
    prepared = prepare(options.task(), options, alone(), None)  # type: ignore[attr-defined]  # each command has it
    model = folder / "model"
    save_model(model, prepared.model, prepared.tokenizer, prepared.task.model_config())
    steps = options.epochs * -(-len(prepared.features.lengths) // options.batch_size)
    rates, precision = learning_rates(options.lr, steps), prepared.machine.precision
    work = Work(model, prepared.task, prepared.features, options, rates, precision, dropout=options.dropout)
    torch.manual_seed(options.seed)
    side = TheirSide(work)
    for number in range(side.steps):
        loss = side.step(number)
        if number % 50 == 0 or number == side.steps - 1:
            print(f"{number:,} of {side.steps:,} steps: loss {loss.item():.4f}", flush=True)
    weights = {name: tensor.detach().contiguous() for name, tensor in side.model.state_dict().items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


def train_and_score(
    config: RealTasksConfig, name: str, model: str, side: Side, seed: int, folder: Path
) -> dict[str, Any]:
    """The scores of a run."""
    options = finetune_config(config, name, model, seed, folder)
    task = options.task()  # type: ignore[attr-defined]
    if side == "ours":
        trained_model = finish(functools.partial(run_finetune, task), options)
    else:
        trained_model = train_theirs(options, folder)
    trained = load_trained(type(task), trained_model, device="cpu", precision="fp32")
    records = trained.task.read(config.data / TASKS[name].test, "evaluate")
    features = trained.task.encode(records, trained.tokenizer, "evaluate")
    metrics = evaluate(trained.task, trained.model, features, trained.machine).metrics
    return {metric: metrics[metric] for metric in TASKS[name].metrics}


def run(config: RealTasksConfig) -> None:
    """Do what is to be done, then report all that has been. Raises UserError for an unknown data set or model."""
    if unknown := sorted(set(config.tasks) - set(TASKS)):
        raise UserError(f"--tasks {unknown[0]}: choose from {', '.join(TASKS)}.")
    if unknown := sorted(set(config.beside) - set(config.models)):
        raise UserError(f"--beside {unknown[0]} is none of --models.")
    tune_allocator()
    begin(config, ("data", "output", "models", "beside", "tasks", "seeds"))
    for seed in config.seeds:
        for name in config.tasks:
            for model in config.models:
                for side in SIDES if model in config.beside else SIDES[:1]:
                    kept(
                        run_folder(config, name, model, side, seed),
                        f"{name} from {model}, {side}, seed {seed}",
                        functools.partial(train_and_score, config, name, model, side, seed),
                    )
        write_report(config)


def run_folder(config: RealTasksConfig, name: str, model: str, side: Side, seed: int) -> Path:
    return config.output / "runs" / name / Path(model).name / side / f"seed-{seed}"


def results_of(config: RealTasksConfig) -> dict[str, Any]:
    """Data set → model → side → seed → scores, all that is finished."""
    found: dict[str, Any] = {}
    for path in sorted((config.output / "runs").glob("*/*/*/seed-*/result.json")):
        name, model, side, seed = path.parts[-5:-1]
        by_seed = found.setdefault(name, {}).setdefault(model, {}).setdefault(side, {})
        by_seed[seed.partition("-")[2]] = read_json(path)
    return found


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a row for each data set and side of each model; mean ± standard deviation over seeds."""
    lines = [
        "| data, score | from | trained by | seeds | score | other scores |",
        "|---|---|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        for model, sides in found.get(name, {}).items():
            for side, runs in sides.items():
                first, *rest = (mean_and_deviation([one[metric] for one in runs.values()]) for metric in task.metrics)
                said = ", ".join(
                    f"{metric.replace('_', ' ')} {value}" for metric, value in zip(task.metrics[1:], rest, strict=True)
                )
                lines.append(f"| {task.title} | {model} | {side} | {', '.join(runs)} | **{first}** | {said} |")
    return "\n".join(lines)


def write_report(config: RealTasksConfig) -> None:
    """OUTPUT/report.md and results.json of the runs that are finished."""
    found, machine = results_of(config), describe(choose_device("cpu"))
    text = f"Precision of training: {config.precision}. {machine}, {time.strftime('%Y-%m-%d')}.\n\n{table(found)}"
    write_atomic(config.output / "report.md", text + "\n")
    save_json({"config": to_dict(config), "machine": machine, "runs": found}, config.output / "results.json")
    print(f"\n{text}\n\nwrote report.md and results.json in {config.output}", flush=True)


def main() -> None:
    sys.exit(exit_status(lambda: run(tyro.cli(RealTasksConfig, description=__doc__))))


if __name__ == "__main__":
    main()
