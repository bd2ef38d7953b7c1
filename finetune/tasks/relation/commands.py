"""`spanbert finetune relation`, `spanbert evaluate relation` and `spanbert predict relation`: their options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from finetune import evaluate, predict, train
from finetune.config import EvaluateConfig, FinetuneConfig, PredictConfig
from finetune.tasks.relation.features import Encoding
from finetune.tasks.relation.task import RelationSettings, RelationTask
from spanbert.config import check_range
from spanbert.errors import UserError


@dataclass(frozen=True)
class FinetuneRelationConfig(FinetuneConfig):
    """Fine-tune on relations between two entities: SemEval-2010 Task 8 text, TACRED JSON, or JSON lines with two character spans; plain or .gz."""

    encoding: Encoding = "markers"
    """How the entities are shown: mask (replaced by their type), markers (around them), typed (markers with the type). The tokens for it are added to the vocabulary."""
    window: int = RelationSettings.window
    """Longest sequence in tokens; of a longer text the part around the entities is seen."""
    max_train_examples: int | None = None
    """Train on the first N pairs of a shuffle fixed by --shuffle-seed."""

    @property
    def max_examples(self) -> int | None:
        return self.max_train_examples

    def check(self) -> None:
        super().check()
        check_range(self, 1, math.inf, "max_train_examples")

    def task(self) -> RelationTask:
        """The task as these options state it; its relations and types are those of the training file."""
        return RelationTask(RelationSettings(self.window, self.encoding))


@dataclass(frozen=True)
class EvaluateRelationConfig(EvaluateConfig):
    """The official scores of a model of relations on a labelled file: SemEval's macro F1, TACRED's micro F1."""


@dataclass(frozen=True)
class PredictRelationConfig(PredictConfig):
    """Relations for pairs of entities: JSON lines of id, text, both entities, relation and probabilities."""

    file: Positional[Path]
    """Any of the formats, or lines of text with <e1>…</e1> and <e2>…</e2>; - for standard input. Relations are not looked at."""


def run_finetune(config: FinetuneRelationConfig) -> None:
    """Train, evaluate, and leave OUTPUT/model, which `evaluate relation` and `predict relation` take."""
    train.run_finetune(config.task(), config)


def run_evaluate(config: EvaluateRelationConfig) -> None:
    """Print metrics and, with an output folder, write them with the predictions."""
    if config.file is None:
        raise UserError(f"give a labelled file too: spanbert evaluate relation {config.model} FILE")
    trained = predict.load_configured(RelationTask, config.model, config)
    evaluate.run_evaluate(trained, config.file, config.output, config.limit)


def run_predict(config: PredictRelationConfig) -> None:
    """Print or write the relation of every pair of a file."""
    trained = predict.load_configured(RelationTask, config.model, config)
    predict.run_predict(trained, config.file, config.output, config.limit)
