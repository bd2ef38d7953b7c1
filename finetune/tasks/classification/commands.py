"""`spanbert finetune classify`, `spanbert evaluate classify` and `spanbert predict classify`: their options."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from finetune import evaluate, predict, train
from finetune.config import EvaluateConfig, FinetuneConfig, PredictConfig
from finetune.predict import TrainedModel
from finetune.tasks.classification.prompt_task import (
    PromptSettings,
    PromptTask,
    check_start,
    has_prompt,
    parse_label_words,
)
from finetune.tasks.classification.records import Columns
from finetune.tasks.classification.targets import Problem
from finetune.tasks.classification.task import ClassifySettings, ClassifyTask
from spanbert.checkpoint.store import find_model
from spanbert.config import check_range
from spanbert.errors import UserError
from spanbert.spans.log_probs import Head


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
    prompt: str = ""
    """Train the pretraining heads instead of a new one, for few examples: a sentence with {text} in it and one [SPAN:n], in which a word for each label, of at most n tokens, is to be the likeliest."""
    words: tuple[str, ...] = ()
    """With --prompt: LABEL=WORD for each label, such as negative=terrible positive=great; a WORD alone is the label too."""
    head: Literal["auto", "mlm", "sbo", "both"] | None = None
    """With --prompt: which head scores the words and is trained; left out or auto, every head that --init has trained."""
    max_train_examples: int | None = None
    """Train on the first N texts of a shuffle fixed by --shuffle-seed."""

    @property
    def max_examples(self) -> int | None:
        return self.max_train_examples

    def check(self) -> None:
        super().check()
        check_range(self, 1, math.inf, "max_train_examples")
        for option in ("words", "head"):
            if getattr(self, option) and not self.prompt:
                raise UserError(f'--{option} goes with --prompt, such as "{{text}} It was [SPAN:1].".')
        if not self.prompt:
            return
        if not self.words:
            raise UserError("--prompt needs --words: LABEL=WORD for each label.")
        if self.text_pair or self.problem != "single":
            raise UserError("--prompt is for single texts with one label each: leave --text-pair and --problem out.")
        if self.init == "random":
            raise UserError("--prompt trains the pretraining heads: give a pretrained --init, not random.")

    def task(self) -> ClassifyTask:
        """The task as these options state it; its labels are those of the training file."""
        columns = Columns(self.text, self.label, self.text_pair)
        if not self.prompt:
            return ClassifyTask(ClassifySettings(self.window, columns, problem=self.problem))
        head: Head = "mlm" if self.head is None or self.head == "auto" else self.head
        words = parse_label_words(self.words)
        return PromptTask(PromptSettings(self.window, columns, prompt=self.prompt, words=words, head=head))


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
    config.check()
    task = config.task()
    if isinstance(task, PromptTask):
        config = replace(config, head=check_start(task, config.head or "auto", config.init, config.lowercase))
        task = config.task()
    train.run_finetune(task, config)


def run_evaluate(config: EvaluateClassifyConfig) -> None:
    """Print metrics and, with an output folder, write them with the predictions."""
    if config.file is None:
        raise UserError(f"give a labelled file too: spanbert evaluate classify {config.model} FILE")
    trained = _load(config)
    evaluate.run_evaluate(
        _with_columns(trained, config.text, config.label, config.text_pair), config.file, config.output, config.limit
    )


def run_predict(config: PredictClassifyConfig) -> None:
    """Print or write a label for every text of a file."""
    trained = _load(config)
    predict.run_predict(
        _with_columns(trained, config.text, None, config.text_pair), config.file, config.output, config.limit
    )


def _load(config: EvaluateClassifyConfig | PredictClassifyConfig) -> TrainedModel[ClassifyTask]:
    """The model with the task that it was trained for, with a prompt or without."""
    task = PromptTask if has_prompt(find_model(Path(config.model))) else ClassifyTask
    return predict.load_configured(task, config.model, config)


def _with_columns(
    trained: TrainedModel[ClassifyTask], text: str | None, label: str | None, text_pair: str | None
) -> TrainedModel[ClassifyTask]:
    stored = trained.task.settings.columns
    columns = Columns(text or stored.text, label or stored.label, text_pair or stored.text_pair)
    return replace(trained, task=replace(trained.task, settings=replace(trained.task.settings, columns=columns)))
