"""Few examples: a classifier with a new head beside the pretraining heads trained through a prompt, 4 to 64 examples a class.

    python -m benchmarks.finetuning.few_examples --data FOLDER --output FEW_EXAMPLES

FOLDER holds sst2-train.tsv, sst2-dev.tsv, trec-train.txt and trec-test.txt. Both ways see the same examples (drawn by the
seed from the training file), take as many steps, and are scored on the same seeded part of the test file. Beside them: the prompt
without any training, and the larger class. Learning rates are chosen apart, by other seeds, on a part of the training file that
no run trains on; the test file is not looked at for that.

The same command again skips what is done, resumes what was interrupted, and reports what there is. It may run several
times side by side, with other --data-sets, --ways or --seeds first.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.finetuning.few_examples_report import plot, table
from benchmarks.resumable import begin, exit_status, finish, kept
from finetune.evaluate import evaluate
from finetune.predict import Machine, load_trained
from finetune.tasks.classification.commands import FinetuneClassifyConfig, run_finetune
from finetune.tasks.classification.prompt_model import SpanBertForPrompts
from finetune.tasks.classification.prompt_task import PromptSettings, PromptTask
from finetune.tasks.classification.records import Columns, LabelledText, read_texts
from finetune.tasks.classification.task import ClassifyTask
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.config import read_json, save_json, to_dict
from spanbert.device import choose_device, choose_precision, describe, tune_allocator
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.training.init_model import model_path

Way = Literal["new head", "mlm", "sbo", "both"]
WAYS: tuple[Way, ...] = ("new head", "mlm", "sbo", "both")
HEADS: tuple[Way, ...] = ("mlm", "sbo", "both")


@dataclass(frozen=True)
class DataSet:
    """One data set, and how it is asked about. Prompt and words were written down once, and none other tried."""

    title: str
    train: str
    test: str
    columns: Columns
    prompt: str
    words: dict[str, str]


DATA_SETS = {
    "sst2": DataSet(
        "SST-2, 2 classes",
        "sst2-train.tsv",
        "sst2-dev.tsv",
        Columns("sentence", "label"),
        "{text} It was [SPAN:1].",
        {"0": "bad", "1": "good"},
    ),
    "trec": DataSet(
        "TREC, 6 classes",
        "trec-train.txt",
        "trec-test.txt",
        Columns(),
        "{text} This asks for a [SPAN:1].",
        {"0": "description", "1": "thing", "2": "expression", "3": "person", "4": "place", "5": "number"},
    ),
}


@dataclass(frozen=True)
class FewExamplesConfig:
    """Options."""

    data: Path
    """Folder of the data sets' files."""
    output: Path
    """Folder of the comparison."""
    init: str = "bundled"
    """Encoder with trained MLM and SBO heads."""
    data_sets: tuple[str, ...] = tuple(DATA_SETS)
    """Which data sets, in which order."""
    ways: tuple[Way, ...] = ("new head", "mlm", "sbo", "both")
    """What is trained: a new head on [CLS], or through a prompt the MLM head, the SBO head, or both."""
    each: tuple[int, ...] = (4, 16, 64)
    """Examples a class."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the draw of the examples, of the head and of the order."""
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Learning rates to choose from."""
    rate_seeds: tuple[int, ...] = (100,)
    """Seeds by which the rate is chosen."""
    rate_each: int = 16
    """Examples a class for that."""
    steps: int = 60
    """Of every run, at least …"""
    epochs: int = 3
    """… and at least so many passes over its examples."""
    batch_size: int = 8
    """Windows of a step."""
    window: int = 128
    """Longest window in tokens, the prompt included."""
    pool: int = 4000
    """Training texts that examples are drawn from, a seeded part of the file where that has more."""
    scored: int = 400
    """Test texts that are scored, and training texts by which rates are chosen: seeded parts of their files."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def write_parts(config: FewExamplesConfig, name: str) -> None:
    """OUTPUT/data/NAME/{pool,rates,test}.jsonl. A text stands in one of pool and rates only."""
    source, folder = DATA_SETS[name], config.output / "data" / name
    if (folder / "test.jsonl").exists():
        return
    train = read_texts(config.data / source.train, "train", source.columns).texts
    test = read_texts(config.data / source.test, "evaluate", source.columns).texts
    train = list({one.text.strip(): one for one in train}.values())  # SST-2 repeats some phrases
    order = np.random.default_rng(0).permutation(len(train))
    rates, pool = order[: config.scored], order[config.scored : config.scored + config.pool]
    chosen = np.random.default_rng(0).permutation(len(test))[: config.scored]
    _write(folder / "rates.jsonl", [train[place] for place in rates])
    _write(folder / "pool.jsonl", [train[place] for place in pool])
    _write(folder / "test.jsonl", [test[place] for place in chosen])


def _write(path: Path, texts: Sequence[LabelledText]) -> None:
    lines = [json.dumps({"text": one.text, "label": one.label}, ensure_ascii=False) for one in texts]
    write_atomic(path, "".join(f"{line}\n" for line in lines))


def finetune_config(
    config: FewExamplesConfig, name: str, way: Way, each: int, seed: int, lr: float, folder: Path
) -> FinetuneClassifyConfig:
    data, prompted = DATA_SETS[name], way != "new head"
    passes = math.ceil(config.steps * config.batch_size / (each * len(data.words)))
    return FinetuneClassifyConfig(
        train=config.output / "data" / name / "pool.jsonl",
        output=folder / "run",
        init=config.init,
        examples_per_class=each,
        prompt=data.prompt if prompted else "",
        words=tuple(f"{label}={word}" for label, word in data.words.items()) if prompted else (),
        head=way if prompted else None,  # type: ignore[arg-type]  # it is a head then
        window=config.window,
        epochs=max(config.epochs, passes),
        batch_size=config.batch_size,
        lr=lr,
        seed=seed,
        device=config.device,
    )


def train_and_score(config: FewExamplesConfig, options: FinetuneClassifyConfig, part: Path) -> dict[str, float]:
    """Accuracy and macro F1 of a run on a file."""
    model = finish(run_finetune, options)
    task = PromptTask if options.prompt else ClassifyTask
    trained = load_trained(task, model, device=config.device)
    features = trained.task.encode(trained.task.read(part, "evaluate"), trained.tokenizer, "evaluate")
    metrics = evaluate(trained.task, trained.model, features, trained.machine).metrics
    return {name: metrics[name] for name in ("accuracy", "macro_f1")}


def untrained(config: FewExamplesConfig, name: str, head: Way) -> dict[str, float]:
    """The same of the prompt without any training."""
    data = DATA_SETS[name]
    settings = PromptSettings(config.window, labels=tuple(data.words), prompt=data.prompt, words=data.words, head=head)  # type: ignore[arg-type]
    task, device = PromptTask(settings), choose_device(config.device)
    model, tokenizer, _ = load_model_and_tokenizer(model_path(config.init), SpanBertForPrompts)
    features = task.encode(task.read(config.output / "data" / name / "test.jsonl", "evaluate"), tokenizer, "evaluate")
    machine = Machine(device, choose_precision(device, "auto"))
    metrics = evaluate(task, model.place(device).eval(), features, machine).metrics
    return {name: metrics[name] for name in ("accuracy", "macro_f1")}


def rate_folders(config: FewExamplesConfig, name: str, way: Way) -> Iterator[tuple[float, int, Path]]:
    for lr in config.rates:
        for seed in config.rate_seeds:
            yield lr, seed, config.output / "rates" / name / way.replace(" ", "-") / f"{lr:g}-seed-{seed}"


def chosen_rate(config: FewExamplesConfig, name: str, way: Way) -> float | None:
    """The rate with the best mean accuracy; None before all of them have been tried. The smallest of equal ones."""
    scores: dict[float, list[float]] = {}
    for lr, _, folder in rate_folders(config, name, way):
        if not (folder / "result.json").exists():
            return None
        scores.setdefault(lr, []).append(read_json(folder / "result.json")["accuracy"])
    return max(sorted(scores), key=lambda lr: statistics.fmean(scores[lr]))


def run(config: FewExamplesConfig) -> None:
    """Do what is to be done, then report all that has been. Raises UserError for a data set that is not known."""
    if unknown := sorted(set(config.data_sets) - set(DATA_SETS)):
        raise UserError(f"--data-sets {unknown[0]}: choose from {', '.join(DATA_SETS)}.")
    tune_allocator()
    begin(config, ("data", "output", "data_sets", "ways", "each", "seeds"))
    for name in config.data_sets:
        write_parts(config, name)
        folder = config.output / "data" / name
        for head in HEADS:
            kept(
                config.output / "untrained" / name / head,
                f"{name}, {head} untrained",
                lambda _, name=name, head=head: untrained(config, name, head),  # type: ignore[misc]
            )
        for way in config.ways:
            for lr, seed, place in rate_folders(config, name, way):
                options = finetune_config(config, name, way, config.rate_each, seed, lr, place)
                _keep(config, options, folder / "rates.jsonl", place, f"{name}, {way}, rate {lr:g}, seed {seed}")
    for seed in config.seeds:
        for name in config.data_sets:
            for way in config.ways:
                lr = chosen_rate(config, name, way)
                for each in config.each if lr is not None else ():
                    place = run_folder(config, name, way, each, seed)
                    options = finetune_config(config, name, way, each, seed, lr, place)  # type: ignore[arg-type]
                    test = config.output / "data" / name / "test.jsonl"
                    _keep(config, options, test, place, f"{name}, {way}, {each} a class, seed {seed}")
        write_report(config)


def _keep(config: FewExamplesConfig, options: FinetuneClassifyConfig, part: Path, place: Path, about: str) -> None:
    kept(place, about, lambda _: train_and_score(config, options, part))


def run_folder(config: FewExamplesConfig, name: str, way: str, each: int, seed: int) -> Path:
    return config.output / "runs" / name / way.replace(" ", "-") / f"{each}-seed-{seed}"


def results_of(config: FewExamplesConfig) -> dict[str, Any]:
    """Of each data set: the share of its larger class, "untrained" (head → scores), "rates" (way → rate) and "trained"
    (way → examples a class → seed → scores), all that is finished."""
    found: dict[str, Any] = {}
    for name in DATA_SETS:
        test = config.output / "data" / name / "test.jsonl"
        if not test.exists():
            continue
        counts = np.unique([one.label for one in read_texts(test, "evaluate", Columns()).texts], return_counts=True)[1]
        trained: dict[str, dict[str, dict[str, Any]]] = {}
        for way in WAYS:
            for each in config.each:
                paths = sorted(run_folder(config, name, way, each, 0).parent.glob(f"{each}-seed-*/result.json"))
                if paths:
                    seeds = {path.parent.name.rpartition("-")[2]: read_json(path) for path in paths}
                    trained.setdefault(way, {})[str(each)] = seeds
        heads = {head: config.output / "untrained" / name / head / "result.json" for head in HEADS}
        found[name] = {
            "majority": 100.0 * float(counts.max() / counts.sum()),
            "scored": int(counts.sum()),
            "untrained": {head: read_json(path) for head, path in heads.items() if path.exists()},
            "rates": {way: chosen_rate(config, name, way) for way in trained},
            "trained": trained,
        }
    return found


def write_report(config: FewExamplesConfig) -> None:
    """OUTPUT/report.md, results.json and few_examples.png of the runs that are finished."""
    found, machine = results_of(config), describe(choose_device(config.device))
    about = (
        f"From `{config.init}`; {config.steps} steps of {config.batch_size} or {config.epochs} passes, whichever is more; rates chosen from "
        f"{', '.join(f'{rate:g}' for rate in config.rates)} with {config.rate_each} a class, seed(s) "
        f"{', '.join(map(str, config.rate_seeds))}, on {config.scored} training texts that no run trains on; accuracy in percent on "
        f"{config.scored} seeded test texts, mean ± standard deviation over seeds. {machine}, {time.strftime('%Y-%m-%d')}."
    )
    text = table(found, about, config.each)
    write_atomic(config.output / "report.md", text + "\n")
    save_json({"config": to_dict(config), "machine": machine, "data_sets": found}, config.output / "results.json")
    drawn = (
        ", few_examples.png"
        if plot(found, WAYS, {name: data.title for name, data in DATA_SETS.items()}, config.output / "few_examples.png")
        else " (no matplotlib, no picture)"
    )
    print(f"\n{text}\n\nwrote report.md, results.json{drawn} in {config.output}", flush=True)


def main() -> None:
    sys.exit(exit_status(lambda: run(tyro.cli(FewExamplesConfig, description=__doc__))))


if __name__ == "__main__":
    main()
