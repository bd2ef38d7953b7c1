"""`spanbert finetune ner`, `spanbert evaluate ner` and `spanbert predict ner`: their options."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from finetune import evaluate, predict, train
from finetune.config import EvaluateConfig, FinetuneConfig, PredictConfig
from finetune.predict import TrainedModel
from finetune.records import MalformedRecord
from finetune.tasks.ner.schemes import Tag
from finetune.tasks.ner.task import NerSettings, NerTask
from spanbert.config import check_range
from spanbert.errors import UserError


@dataclass(frozen=True)
class FinetuneNerConfig(FinetuneConfig):
    """Fine-tune on named entities: CoNLL columns (IOB1, IOB2, BIOES), or JSON lines with tokens and tags or with text and character spans; plain or .gz."""

    tag_column: str | None = None
    """CoNLL column of the tag: its number from 1, or its name where the file names its columns. Otherwise the last one that holds tags."""
    tag_names: str | None = None
    """Names of the tags where JSON lines have numbers, as in Hugging Face data sets: separated by commas, 0 first, such as O,B-PER,I-PER. Stored with the model."""
    window: int = NerSettings.window
    """Longest window in tokens; a longer sentence is cut into windows that overlap."""
    overlap: int = NerSettings.overlap
    """Tokens that two windows of a sentence share."""
    context: int = NerSettings.context
    """Tokens of the same document that are seen, and not labelled, at either side of a sentence; 64 in FLERT. Stored with the model."""
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
        return NerTask(NerSettings(self.window, self.overlap, self.context, self.tag_column, names_of(self.tag_names)))


@dataclass(frozen=True)
class EvaluateNerConfig(EvaluateConfig):
    """Precision, recall and F1 of whole entities (as conlleval counts them) on a labelled file."""

    tag_column: str | None = None
    """CoNLL column of the tag, where it is not the one of the training file."""
    tag_names: str | None = None
    """Names of the tags where JSON lines have numbers, separated by commas, 0 first, where they are not those of the training file."""


@dataclass(frozen=True)
class PredictNerConfig(PredictConfig):
    """Entities in texts: JSON lines of line number, text, and each entity's characters, type, text and probability."""

    file: Positional[Path]
    """Lines with a text each, JSON lines with "text" or "tokens", or CoNLL columns; - for standard input. Tags are not looked at."""


def names_of(option: str | None) -> tuple[str, ...]:
    """The tags that --tag-names lists. Raises UserError for one of no scheme, and for one that is there twice."""
    names = tuple(name.strip() for name in option.split(",")) if option is not None else ()
    for name in names:
        try:
            Tag.of(name)
        except MalformedRecord as error:
            raise UserError(f"--tag-names {option}: {error}.") from None
        if names.count(name) > 1:
            raise UserError(f"--tag-names {option}: {name} is there twice; give each number its own tag.")
    return names


def run_finetune(config: FinetuneNerConfig) -> None:
    """Train, evaluate, and leave OUTPUT/model, which `evaluate ner` and `predict ner` take."""
    train.run_finetune(config.task(), config)


def run_evaluate(config: EvaluateNerConfig) -> None:
    """Print metrics and, with an output folder, write them with the predictions."""
    if config.file is None:
        raise UserError(f"give a labelled file too: spanbert evaluate ner {config.model} FILE")
    trained: TrainedModel[NerTask] = predict.load_configured(NerTask, config.model, config)
    settings = trained.task.settings
    if config.tag_column is not None:
        settings = replace(settings, tag_column=config.tag_column)
    if config.tag_names is not None:
        settings = replace(settings, tag_names=names_of(config.tag_names))
    trained = replace(trained, task=NerTask(settings))
    evaluate.run_evaluate(trained, config.file, config.output, config.limit)


def run_predict(config: PredictNerConfig) -> None:
    """Print or write the entities of every text of a file."""
    predict.run_predict(
        predict.load_configured(NerTask, config.model, config), config.file, config.output, config.limit
    )
