"""`spanbert finetune classify`, `spanbert evaluate classify` and `spanbert predict classify`: their options."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from finetune import evaluate, predict, train
from finetune.config import EvaluateConfig, FinetuneConfig, PredictConfig
from finetune.predict import TrainedModel
from finetune.tasks.classification.records import Columns
from finetune.tasks.classification.targets import Problem
from finetune.tasks.classification.task import ClassifySettings, ClassifyTask
from spanbert.config import check_range
from spanbert.errors import UserError


@dataclass(frozen=True)
class FinetuneClassifyConfig(FinetuneConfig):
    """Fine-tune on labelled texts: TSV or CSV with named columns, JSON lines, or lines of `label text`; plain or .gz."""

    text: str = "text"
    """Column of a table, or key of JSON lines, that holds the text."""
    label: str = "label"
    """Column or key that holds the label."""
    text_pair: str = ""
    """Column or key that holds the second text, where pairs are classified."""
    problem: Problem = "single"
    """single: one label a text. multi: any number of them (with commas between them, or a JSON list), a sigmoid each. regression: a number."""
    window: int = ClassifySettings.window
    """Longest window in tokens; a longer text is several windows, and their logits are averaged."""
    max_train_examples: int | None = None
    """Train on the first N texts of a shuffle fixed by --shuffle-seed."""

    @property
    def max_examples(self) -> int | None:
        return self.max_train_examples

    def check(self) -> None:
        super().check()
        check_range(self, 1, math.inf, "max_train_examples")

    def task(self) -> ClassifyTask:
        """The task as these options state it; its labels are those of the training file."""
        return ClassifyTask(
            ClassifySettings(self.window, Columns(self.text, self.label, self.text_pair), problem=self.problem)
        )


@dataclass(frozen=True)
class EvaluateClassifyConfig(EvaluateConfig):
    """Accuracy, macro F1 and Matthews' correlation (or F1 of sets of labels, or Pearson's and Spearman's correlation) of a text classifier on a labelled file."""

    text: str | None = None
    """Column or key that holds the text, where it is not the one of the training file."""
    label: str | None = None
    """The same for the label."""
    text_pair: str | None = None
    """The same for the second text of pairs."""


@dataclass(frozen=True)
class PredictClassifyConfig(PredictConfig):
    """Labels for texts: JSON lines of line number, text, label and probabilities."""

    file: Positional[Path]
    """TSV, CSV, JSON lines, or plain lines with a text each (the two of a pair with a tab between them); - for standard input. Labels are not looked at."""
    text: str | None = None
    """Column or key that holds the text, where it is not the one of the training file."""
    text_pair: str | None = None
    """The same for the second text of pairs."""


def run_finetune(config: FinetuneClassifyConfig) -> None:
    """Train, evaluate, and leave OUTPUT/model, which `evaluate classify` and `predict classify` take."""
    train.run_finetune(config.task(), config)


def run_evaluate(config: EvaluateClassifyConfig) -> None:
    """Print metrics and, with an output folder, write them with the predictions."""
    if config.file is None:
        raise UserError(f"give a labelled file too: spanbert evaluate classify {config.model} FILE")
    trained = predict.load_configured(ClassifyTask, config.model, config)
    evaluate.run_evaluate(
        _with_columns(trained, config.text, config.label, config.text_pair), config.file, config.output, config.limit
    )


def run_predict(config: PredictClassifyConfig) -> None:
    """Print or write a label for every text of a file."""
    trained = predict.load_configured(ClassifyTask, config.model, config)
    predict.run_predict(
        _with_columns(trained, config.text, None, config.text_pair), config.file, config.output, config.limit
    )


def _with_columns(
    trained: TrainedModel[ClassifyTask], text: str | None, label: str | None, text_pair: str | None
) -> TrainedModel[ClassifyTask]:
    stored = trained.task.settings.columns
    columns = Columns(text or stored.text, label or stored.label, text_pair or stored.text_pair)
    return replace(trained, task=ClassifyTask(replace(trained.task.settings, columns=columns)))
