"""What training starts from: the examples as windows, and the model, whose head may depend on the labels found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune.config import FinetuneConfig
from finetune.predict import Machine
from finetune.records import RecordReport
from finetune.task import Features, Task
from spanbert.device import choose_precision
from spanbert.distributed import Group
from spanbert.errors import UserError
from spanbert.files import sha256
from spanbert.model.models import SpanBertModel
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.init_model import init_model, model_path
from spanbert.training.resume import data_identity


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs beside its folder."""

    task: Task
    model: SpanBertModel
    tokenizer: Tokenizer
    features: Features
    report: RecordReport
    """What was left out of the training file."""
    identity: str
    """Hash of tokenizer and training file: a run resumes with the same only."""
    dev: Features | None
    machine: Machine
    """For evaluation."""


def prepare(task: Task, config: FinetuneConfig, group: Group, checkpoint: Path | None) -> Prepared:
    """Read and encode the data, build the model (that of `checkpoint` where a run resumes), and say what was found.

    A malformed dev file is known before the training, not after it. Raises UserError for whatever cannot be used.
    """
    own = Tokenizer.load(config.tokenizer, lowercase=config.lowercase) if config.tokenizer is not None else None
    if config.init != "random":
        model_path(config.init)  # before a large file is read for nothing
    records = task.read(config.train, "train")
    task = task.learned_from(records)
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
        checkpoint=checkpoint,
        lowercase=config.lowercase,
        new_tokens=task.new_tokens(),
    )
    if checkpoint is None:
        group.print_main(f"starting from {found or f'random weights: {config.size}'}")
    task.check(model.config.max_position_embeddings)

    features = task.encode(records, tokenizer, "train")
    group.print_main("\n".join(_about(config.train, records.summary(), records.report, features)))
    if not features.examples:
        raise UserError(f"{config.train}: no usable {task.noun} are left.")
    features = _first_of_shuffle(features, config, task.noun, group)
    dev = None
    if config.dev is not None:
        dev = task.encode(task.read(config.dev, "evaluate"), tokenizer, "evaluate")
        group.print_main(f"{config.dev}: {dev.examples:,} {task.noun} in {len(dev.lengths):,} windows")
        for note in dev.notes:
            group.print_main(f"  {note}")
    identity = data_identity(tokenizer.fingerprint, sha256(config.train))
    machine = Machine(group.device, choose_precision(group.device, config.precision))
    return Prepared(task, model, tokenizer, features, records.report, identity, dev, machine)


def _about(path: Path, summary: str, report: RecordReport, features: Features) -> list[str]:
    lines = [f"{path}: {summary}"]
    lines += [f"  skipped: {line}" for line in report.lines[:5]]
    return lines + [f"  {note}" for note in features.notes]


def _first_of_shuffle(features: Features, config: FinetuneConfig, noun: str, group: Group) -> Features:
    """Only as many examples as asked for, in the order of a fixed shuffle; all of them in the file's order otherwise."""
    wanted = config.max_examples
    if wanted is None or wanted >= features.examples:
        return features
    order = np.random.default_rng(config.shuffle_seed).permutation(features.examples)
    group.print_main(
        f"  training on the first {wanted:,} of {features.examples:,} {noun} in the order of "
        f"numpy.random.default_rng({config.shuffle_seed}).permutation"
    )
    return features.select(order[:wanted])
