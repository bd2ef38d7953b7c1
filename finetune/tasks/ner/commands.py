"""`spanbert finetune ner`, `spanbert evaluate ner` and `spanbert predict ner`: their options."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from finetune import evaluate, predict, train
from finetune.config import EvaluateConfig, FinetuneConfig, PredictConfig
from finetune.predict import TrainedModel
from finetune.tasks.ner.task import NerSettings, NerTask
from spanbert.config import check_range
from spanbert.errors import UserError


@dataclass(frozen=True)
class FinetuneNerConfig(FinetuneConfig):
    """Fine-tune on named entities: CoNLL columns (IOB1, IOB2, BIOES), or JSON lines with tokens and tags or with text and character spans; plain or .gz."""

    tag_column: str | None = None
    """CoNLL column of the tag: its number from 1, or its name where the file names its columns. Otherwise the last one that holds tags."""
    window: int = NerSettings.window
    """Longest window in tokens; a longer sentence is cut into windows that overlap."""
    overlap: int = NerSettings.overlap
    """Tokens that two windows of a sentence share."""
    max_train_examples: int | None = None
    """Train on the first N sentences of a shuffle fixed by --shuffle-seed."""

    @property
    def max_examples(self) -> int | None:
        return self.max_train_examples

    def check(self) -> None:
        super().check()
        check_range(self, 1, math.inf, "max_train_examples")

    def task(self) -> NerTask:
        """The task as these options state it; its types of entity are those of the training file."""
        return NerTask(NerSettings(self.window, self.overlap, self.tag_column))


@dataclass(frozen=True)
class EvaluateNerConfig(EvaluateConfig):
    """Precision, recall and F1 of whole entities (as conlleval counts them) on a labelled file."""

    tag_column: str | None = None
    """CoNLL column of the tag, where it is not the one of the training file."""


@dataclass(frozen=True)
class PredictNerConfig(PredictConfig):
    """Entities in texts: JSON lines of line number, text, and each entity's characters, type, text and probability."""

    file: Positional[Path]
    """Lines with a text each, JSON lines with "text" or "tokens", or CoNLL columns; - for standard input. Tags are not looked at."""


def run_finetune(config: FinetuneNerConfig) -> None:
    """Train, evaluate, and leave OUTPUT/model, which `evaluate ner` and `predict ner` take."""
    train.run_finetune(config.task(), config)


def run_evaluate(config: EvaluateNerConfig) -> None:
    """Print metrics and, with an output folder, write them with the predictions."""
    if config.file is None:
        raise UserError(f"give a labelled file too: spanbert evaluate ner {config.model} FILE")
    trained: TrainedModel[NerTask] = predict.load_configured(NerTask, config.model, config)
    if config.tag_column is not None:
        trained = replace(trained, task=NerTask(replace(trained.task.settings, tag_column=config.tag_column)))
    evaluate.run_evaluate(trained, config.file, config.output, config.limit)


def run_predict(config: PredictNerConfig) -> None:
    """Print or write the entities of every text of a file."""
    predict.run_predict(
        predict.load_configured(NerTask, config.model, config), config.file, config.output, config.limit
    )
