"""What training starts from: the examples as windows, and the model, whose head may depend on the labels found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune.config import FinetuneConfig
from finetune.predict import Machine
from finetune.records import RecordReport
from finetune.rehearsal import Pull, Rehearsal
from finetune.sampling import about_few, few_of_each_class
from finetune.task import Features, Task
from spanbert.checkpoint.model_folder import restore_model
from spanbert.device import choose_precision
from spanbert.distributed import Group
from spanbert.errors import UserError
from spanbert.files import sha256
from spanbert.model.lora import LoRAConfig
from spanbert.model.models import SpanBertModel
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.init_model import adapt, init_model, model_path
from spanbert.training.resume import data_identity
from spanbert.training.trainable import freeze, train_biases_only


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs beside its folder."""

    task: Task
    model: SpanBertModel
    tokenizer: Tokenizer
    features: Features
    skipped: list[str]
    """A line for each malformed record of the files that it learns from."""
    identity: str
    """Hash of tokenizer and ``files_that_decide``: a run resumes with the same only."""
    dev: Features | None
    machine: Machine
    """For evaluation."""
    rehearsal: Rehearsal | None
    old_dev: Features | None
    """What is not to be forgotten, to score before and after."""
    pull: Pull | None


def prepare(task: Task, config: FinetuneConfig, group: Group, checkpoint: Path | None) -> Prepared:
    """Read and encode the data, build the model (that of `checkpoint` where a run resumes), and say what was found.

    A malformed dev file is known before the training, not after it. Raises UserError for whatever cannot be used.
    """
    own = Tokenizer.load(config.tokenizer, lowercase=config.lowercase) if config.tokenizer is not None else None
    if config.init != "random":
        model_path(config.init)  # before a large file is read for nothing
    old_records = None
    if config.rehearse is not None:
        old_records = task.read(config.rehearse, "train").first(config.limit)
        task = task.learned_from(old_records)
    records = task.read(config.train, "train").first(config.limit)
    if old_records is None:
        task = task.learned_from(records)
    # an adapter's checkpoint is not the whole model, and a pull goes to where the run began
    needs_start = bool(config.lora or config.pull)
    model, tokenizer, found = init_model(
        task.model,
        init=config.init,
        size=config.size,
        tokenizer=own,
        seed=config.seed,
        dropout=config.dropout,
        attention_dropout=config.dropout,
        backend=config.backend,
        device=torch.device(group.device),
        head=task.head(),
        checkpoint=None if needs_start else checkpoint,
        lowercase=config.lowercase,
        new_tokens=task.new_tokens(),
    )
    if checkpoint is None:
        group.print_main(f"starting from {found or f'random weights: {config.size}'}")
    choose_trained(model, config)
    pull = Pull(model, found, config.pull) if config.pull and found is not None else None
    if needs_start and checkpoint is not None:
        restore_model(model, checkpoint)
    task.check(model.config.max_position_embeddings)

    features = task.encode(records, tokenizer, "train")
    group.print_main("\n".join(_about(config.train, records.summary(), records.report, features)))
    if not features.examples:
        raise UserError(f"{config.train}: no usable {task.noun} are left.")
    features = _chosen(features, config, task, group)
    rehearsal, skipped = None, list(records.report.lines)
    if old_records is not None and config.rehearse is not None:
        old = task.encode(old_records, tokenizer, "train")
        group.print_main("\n".join(_about(config.rehearse, old_records.summary(), old_records.report, old)))
        skipped += old_records.report.lines
        rehearsal = Rehearsal(old, config.rehearse_share, config.seed)
    return Prepared(
        task=task,
        model=model,
        tokenizer=tokenizer,
        features=features,
        skipped=skipped,
        identity=data_identity(tokenizer.fingerprint, *files_that_decide(config).values()),
        dev=_evaluated_on(config.dev, task, tokenizer, config.limit, group),
        machine=Machine(group.device, choose_precision(group.device, config.precision)),
        rehearsal=rehearsal,
        old_dev=_evaluated_on(config.rehearse_dev, task, tokenizer, config.limit, group),
        pull=pull,
    )


def _evaluated_on(
    path: Path | None, task: Task, tokenizer: Tokenizer, limit: int | None, group: Group
) -> Features | None:
    """A file to score the model on."""
    if path is None:
        return None
    features = task.encode(task.read(path, "evaluate").first(limit), tokenizer, "evaluate")
    group.print_main(f"{path}: {features.examples:,} {task.noun} in {len(features.lengths):,} windows")
    for note in features.notes:
        group.print_main(f"  {note}")
    return features


def choose_trained(model: SpanBertModel, config: FinetuneConfig) -> None:
    """What of the model is trained, by --freeze, --bias-only and --lora; else all of it. Raises UserError."""
    if config.freeze:
        freeze(model, config.freeze)
    if config.bias_only:
        train_biases_only(model)
    if config.lora:
        adapt(model, config.init, LoRAConfig.parse(config.lora), config.seed)


def files_that_decide(config: FinetuneConfig) -> dict[str, str]:
    """Option → sha256 of the files that decide about the run's model: those it learns from and, where the best state is
    kept or the run may stop early, the one that judges."""
    options = ["train"] + ["dev"] * config.keeps_best + ["rehearse"] * (config.rehearse is not None)
    return {option: sha256(getattr(config, option)) for option in options}


def _about(path: Path, summary: str, report: RecordReport, features: Features) -> list[str]:
    lines = [f"{path}: {summary}"]
    lines += [f"  skipped: {line}" for line in report.lines[:5]]
    return lines + [f"  {note}" for note in features.notes]


def _chosen(features: Features, config: FinetuneConfig, task: Task, group: Group) -> Features:
    """Only as many examples as asked for, in the order of a shuffle; all of them in the file's order otherwise."""
    each = config.examples_per_class
    if each is not None:
        features = features.select(few_of_each_class(features, each, config.seed, task.name))
        group.print_main(f"  {about_few(features, each)}, drawn by seed {config.seed}")
        return features
    wanted, noun = config.max_examples, task.noun
    if wanted is None or wanted >= features.examples:
        return features
    order = np.random.default_rng(config.shuffle_seed).permutation(features.examples)
    group.print_main(
        f"  training on the first {wanted:,} of {features.examples:,} {noun} in the order of "
        f"numpy.random.default_rng({config.shuffle_seed}).permutation"
    )
    return features.select(order[:wanted])
