"""Put trained models into the package: bf16 folders with model cards, everything in the cards measured on the way.

    python -m benchmarks.release.ship --encoder RUN --scratch RUN --dev dev-v1.1.json.gz --also xquad.en.json.gz qed.json.gz \
      --corpus wikipedia.txt.xz
    python -m benchmarks.release.ship --reader RUN --held-out held-out.json.gz --dev dev-v1.1.json.gz --also dev-v2.0.json.gz

One, two or all three may be given; the others stay as they are. Each folder is converted, loaded again, scored as it will be used, and only then put in its place (`spanbert/weights/`), whole or
not at all. The cards' commands come from the runs' config.json, the cost from their metrics.jsonl. With a corpus, scores are
given apart for questions whose paragraphs the encoder has read (`benchmarks.release.contamination`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.finetuning import cold_start
from benchmarks.release import contamination
from benchmarks.release.model_card import encoder_card, reader_card, scratch_card
from benchmarks.release.provenance import commands, config_of, cost, costs_told, place, run_of
from benchmarks.release.scores import (
    answer_all,
    answers_to_examples,
    encoder_scores,
    fills_of_examples,
    labelled,
    load_whole,
    mistakes,
    store_threshold,
)
from finetune.evaluate import write_evaluation
from finetune.tasks.qa.commands import FinetuneQAConfig
from finetune.tasks.qa.metrics import describe
from finetune.tasks.qa.task import QATask
from pretrain.config import PretrainConfig
from pretrain.masking.masker import MaskConfig
from spanbert.checkpoint.export_hub import ExportConfig, run_export
from spanbert.config import read_json
from spanbert.device import choose_device, choose_precision
from spanbert.device import describe as describe_device
from spanbert.errors import UserError
from spanbert.files import atomic_folder, write_atomic
from spanbert.model.encoder import count_parameters
from spanbert.model.models import SpanBertForPretraining, SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import WEIGHTS

MOST_BYTES = 80_000_000


@dataclass(frozen=True)
class ShipConfig:
    """Write the bundled models and their cards from run folders."""

    dev: Path
    """Labelled questions to score the question-answering models on."""
    encoder: Path | None = None
    """Run of `spanbert pretrain`."""
    scratch: Path | None = None
    """Run of `spanbert finetune qa` that began with that encoder."""
    reader: Path | None = None
    """Run of `spanbert finetune qa` that began with an encoder from elsewhere."""
    held_out: Path | None = None
    """Labelled questions that the reader was not trained on, to choose on when it declines to answer."""
    also: tuple[Path, ...] = ()
    """More labelled files."""
    corpus: tuple[str, ...] = ()
    """The pretraining text: to tell questions on paragraphs that the encoder has read from others."""
    text: Path = Path("sample/text.txt")
    """What the card's example questions are about."""
    note: str = ""
    """A sentence for the cards about how the models were made, where commands do not say it all."""
    sequences: int = 512
    """Held-out blocks to score the encoder on."""
    samples: int = 12
    """Wrong answers shown."""
    limit: int | None = None
    """Score on the first N questions of each file only (a rehearsal)."""
    other_limit: int | None = None
    """Ask only the first N questions of the files of --also and --held-out; the card says how many."""
    output: Path = WEIGHTS
    """Folder that gets encoder/, scratch/ and reader/."""
    results: Path | None = None
    """Also write the facts behind the cards here, and the answers to the dev file."""


def ship(config: ShipConfig) -> None:
    """Raises UserError when a run is not what it should be, a head is untrained, or the whole is too large."""
    kinds = {
        "encoder": Kind(config.encoder, PretrainConfig, "pretraining", encoder_card, encoder_facts),
        "scratch": Kind(config.scratch, FinetuneQAConfig, "qa", scratch_card, qa_facts),
        "reader": Kind(config.reader, FinetuneQAConfig, "qa", reader_card, qa_facts),
    }
    given = {name: kind for name, kind in kinds.items() if kind.run is not None}
    if not given:
        raise UserError("name at least one run: --encoder, --scratch or --reader")
    for name, kind in given.items():
        if not isinstance(config_of(kind.folder), kind.config):
            stage = "pretrain" if kind.config is PretrainConfig else "finetune qa"
            raise UserError(f"--{name} wants a run of `spanbert {stage}`")
    facts = {name: put(config.output / name, kind, config) for name, kind in given.items()}
    there = (config.output / name for name in kinds if (config.output / name).is_dir())
    size = sum(file.stat().st_size for folder in there for file in folder.iterdir())  # not what a killed call left
    if config.results is not None:
        write_atomic(config.results / "facts.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    print(f"{config.output}: {size / 1e6:.1f} MB of at most {MOST_BYTES / 1e6:.0f}")
    if size > MOST_BYTES:
        raise UserError(
            f"{config.output} has {size / 1e6:.1f} MB, more than a package should carry: ship smaller models"
        )


@dataclass(frozen=True)
class Kind:
    """One of the folders: from which run it comes, and what is measured and said of it."""

    run: Path | None
    config: type
    task: str
    card: Callable[[dict[str, Any]], str]
    gather: Callable[[Path, Path, ShipConfig], dict[str, Any]]

    @property
    def folder(self) -> Path:
        assert self.run is not None
        return run_of(self.run) or self.run


def put(folder: Path, kind: Kind, config: ShipConfig) -> dict[str, Any]:
    """Convert, measure, describe, and only then replace what was there → the facts of the card."""
    run = kind.folder
    with atomic_folder(folder) as aside:
        with contextlib.redirect_stdout(io.StringIO()):  # it names a folder that is about to be renamed
            run_export(ExportConfig(run, aside, dtype="bf16", task=kind.task))
        facts = origin_facts(run, aside, config) | kind.gather(aside, run, config)
        (aside / "README.md").write_text(kind.card(facts), encoding="utf-8")
    print(f"wrote {folder}")
    return facts


def origin_facts(run: Path, folder: Path, config: ShipConfig) -> dict[str, Any]:
    """What both cards say: where the model comes from, what it cost, where it was measured."""
    runs, encoder_run = history(run), run
    for candidate in runs:
        if isinstance(config_of(candidate), PretrainConfig):
            encoder_run = candidate
    settings = config_of(encoder_run)
    prepared = place(settings.data, encoder_run, settings.output) if isinstance(settings, PretrainConfig) else None
    inputs = read_json(prepared / "prepare.json")["inputs"] if prepared else []
    start = start_of(runs[0])
    costs = [*(costs_told(start) if start else ()), *((one.name, cost(one)) for one in runs)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "commands": commands(run),
        "costs": [{"run": name, **dataclasses.asdict(one)} for name, one in costs],
        "inputs": ", ".join(Path(entry[0]).name if isinstance(entry, list) else str(entry) for entry in inputs),
        "note": config.note,
        "seed": config_of(run).seed,
        "fingerprint": Tokenizer.load(folder).fingerprint,
        "precision": choose_precision(choose_device()),
        "machine": f"{describe_device(choose_device())}, {platform.machine()}",
        "commit": commit or "unknown",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def start_of(run: Path) -> Path | None:
    """The folder that this run started from."""
    config = config_of(run)
    origin = config.init_from if isinstance(config, PretrainConfig) else Path(config.init)
    return None if origin is None else place(origin, run, config.output)


def earlier_run(run: Path) -> Path | None:
    """The run that this one started from."""
    start = start_of(run)
    return None if start is None else run_of(start)


def history(run: Path) -> list[Path]:
    """The runs that made a model, first to last."""
    runs = [run]
    while (earlier := earlier_run(runs[0])) is not None:
        runs.insert(0, earlier)
    return runs


def shape_of(folder: Path, model: torch.nn.Module) -> str:
    raw = read_json(folder / "config.json")
    return (
        f"{raw['num_hidden_layers']} layers of width {raw['hidden_size']}, {raw['num_attention_heads']} heads, "
        f"{'an uncased' if Tokenizer.load(folder).lowercase else 'a cased'} vocabulary of {raw['vocab_size']:,} tokens, {count_parameters(model):,} parameters, stored as bf16"
    )


def encoder_facts(folder: Path, run: Path, config: ShipConfig) -> dict[str, Any]:
    model = load_whole(folder, SpanBertForPretraining, ("mlm", "sbo"))
    settings = config_of(run)
    assert isinstance(settings, PretrainConfig)
    data = place(settings.data, run, settings.output)
    all_scores = {}
    masks = {
        f"{mask.scheme}, {mask.mask_share:.0%}": mask for mask in (MaskConfig(), settings.mask)
    }  # same name: its own
    for name, mask in masks.items():
        scores = encoder_scores(folder, data, mask, config.sequences, settings.seed)
        print(
            f"held-out blocks of {data.name}, {name}: MLM {scores['mlm_loss']:.3f}, SBO {scores['sbo_loss']:.3f} nats"
        )
        all_scores[name] = scores
    return {
        "shape": shape_of(folder, model),
        "data": data.name,
        "sequences": config.sequences,
        "scores": all_scores,
        "fills": fills_of_examples(folder),
    }


def qa_facts(folder: Path, run: Path, config: ShipConfig) -> dict[str, Any]:
    model = load_whole(folder, SpanBertForQuestionAnswering, ("qa_outputs",))
    settings = config_of(run)
    assert isinstance(settings, FinetuneQAConfig)
    train = place(settings.train, run, settings.output)
    if config.held_out is not None:
        store_threshold(folder, config.held_out, config.limit or config.other_limit)
    evaluations = {}
    for file in (config.dev, *config.also):
        limit = config.limit or (config.other_limit if file != config.dev else None)
        evaluations[file.name] = answer_all(folder, file, limit)
        print(f"{file.name}: {describe(evaluations[file.name].metrics)}")
    on_dev = evaluations[config.dev.name]
    assert isinstance(on_dev.task, QATask)
    predictions = on_dev.task.answers(on_dev.predictions)
    if config.results is not None:
        write_evaluation(config.results, on_dev)
    facts = {
        "shape": shape_of(folder, model),
        "null_allowed": bool(read_json(folder / "config.json").get("qa", {}).get("null_allowed")),
        "train": " and ".join(
            one.train.name for one in map(config_of, history(run)) if isinstance(one, FinetuneQAConfig)
        ),
        "dev": config.dev.name,
        "held_out": config.held_out.name if config.held_out else None,
        "scores": {name: evaluation.metrics for name, evaluation in evaluations.items()},
        "contamination": seen_before(config, train, predictions),
        "examples": answers_to_examples(folder, config.text.read_text(encoding="utf-8")),
        "cold_start": dataclasses.asdict(cold_start.measure(folder.resolve())),
    }
    stored = run / "metrics.json"
    if stored.is_file() and settings.dev is not None and settings.dev.name == config.dev.name:
        facts["fp32"] = read_json(stored)
    by_word, wrong = mistakes(labelled(config.dev), predictions, config.samples)
    return facts | {"by_word": by_word, "wrong": [dataclasses.asdict(one) for one in wrong]}


def seen_before(config: ShipConfig, train: Path, predictions: dict[str, str]) -> dict[str, Any] | None:
    """None when there is nothing to compare with."""
    training = (train,) if train.is_file() else ()
    if not config.corpus and not training:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        answers = Path(temporary) / "predictions.json"
        answers.write_text(json.dumps(predictions), encoding="utf-8")
        return contamination.run(
            contamination.ContaminationConfig(config.dev, corpus=config.corpus, train=training, predictions=answers)
        )


def main() -> int:
    try:
        ship(tyro.cli(ShipConfig, description=ShipConfig.__doc__))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
