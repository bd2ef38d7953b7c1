"""Classification of single texts as a task: the pooled `[CLS]` of each window, logits averaged over a text's windows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from finetune.records import Purpose
from finetune.tasks.classification.features import SPECIALS, TextSet, encode_texts
from finetune.tasks.classification.metrics import classification_metrics
from finetune.tasks.classification.records import Columns, TextFile, read_texts
from spanbert.config import from_dict, to_dict
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch
from spanbert.model.models import SpanBertForSequenceClassification, SpanBertModel
from spanbert.tokenizer.wordpiece import Tokenizer


@dataclass(frozen=True)
class ClassifySettings:
    """What a classifier remembers beside its weights, under "classify" in its config.json."""

    window: int = 256
    """Longest window in tokens; a longer text is several."""
    columns: Columns = field(default_factory=Columns)
    """Of the files it was trained on."""
    labels: tuple[str, ...] = ()
    """In the order of the logits."""


@dataclass(frozen=True)
class Predicted:
    """The probability of each label, in their order."""

    label: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class ClassifyTask:
    """See ``finetune.task.Task``."""

    name: ClassVar[str] = "classify"
    noun: ClassVar[str] = "texts"
    model: ClassVar[type[SpanBertModel]] = SpanBertForSequenceClassification

    settings: ClassifySettings = field(default_factory=ClassifySettings)

    @classmethod
    def of_model(cls, config: Mapping[str, Any], max_positions: int, source: str) -> Self:
        if cls.name in config:
            return cls(from_dict(ClassifySettings, config[cls.name], f'{source}: "{cls.name}"'))
        stored = config.get("id2label")
        if not isinstance(stored, dict) or not all(key.isdecimal() for key in stored):
            raise UserError(f'{source}: lacks "id2label", the names of the labels')
        labels = tuple(str(stored[key]) for key in sorted(stored, key=int))
        return cls(ClassifySettings(window=min(ClassifySettings.window, max_positions), labels=labels))

    def check(self, max_positions: int) -> None:
        if not SPECIALS < self.settings.window <= max_positions:
            raise UserError(
                f"window {self.settings.window}: give {SPECIALS + 1} to {max_positions} tokens, the model's positions, "
                "with --window."
            )

    def head(self) -> dict[str, Any]:
        return {"num_labels": len(self.settings.labels)}

    def new_tokens(self) -> tuple[str, ...]:
        return ()

    def model_config(self) -> dict[str, Any]:
        labels = self.settings.labels
        return {
            self.name: to_dict(self.settings),
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
        }

    def read(self, path: Path, purpose: Purpose) -> TextFile:
        return read_texts(path, purpose, self.settings.columns, self.settings.labels)

    def learned_from(self, records: TextFile) -> Self:
        """The labels that occur. Raises UserError when there is one only."""
        labels = tuple(records.labels())
        if len(labels) < 2:
            raise UserError(f"{records.report.path}: all texts are labelled {labels[0]!r}; there is nothing to learn.")
        return replace(self, settings=replace(self.settings, labels=labels))

    def encode(self, records: TextFile, tokenizer: Tokenizer, purpose: Purpose) -> TextSet:
        return encode_texts(records, tokenizer, self.settings.window, self.settings.labels)

    def loss(self, output: Tensor, labels: Tensor, batch: PackedBatch[Tensor]) -> Tensor:
        """Cross-entropy of the windows, in nats."""
        return F.cross_entropy(output.float(), labels, reduction="sum")

    def training_notes(self, *, evaluated: bool) -> list[str]:
        return []

    def logits(self, output: Tensor) -> Tensor:
        """(windows, labels)."""
        return output

    def by_window(self, logits: np.ndarray, cu_seqlens: np.ndarray) -> list[np.ndarray]:
        return list(logits)

    def decode(self, features: TextSet, example: int, logits: Sequence[np.ndarray]) -> Predicted:
        mean_L = np.mean(np.asarray(logits, dtype=np.float64), axis=0)
        weights_L = np.exp(mean_L - mean_L.max())
        return Predicted(int(mean_L.argmax()), tuple((weights_L / weights_L.sum()).tolist()))

    def record(self, features: TextSet, example: int, prediction: Predicted) -> dict[str, Any]:
        record, labels = features.records[example], self.settings.labels
        return {
            "line": record.line,
            "text": record.text,
            "label": labels[prediction.label],
            "probability": prediction.probabilities[prediction.label],
            "probabilities": dict(zip(labels, prediction.probabilities, strict=True)),
        }

    def tuned(self, features: TextSet, predictions: Sequence[Predicted]) -> Self:
        return self

    def score(self, features: TextSet, predictions: Sequence[Predicted]) -> dict[str, float]:
        predicted_E = np.array([one.label for one in predictions], dtype=np.int64)
        metrics = classification_metrics(features.label_E, predicted_E, len(self.settings.labels))
        return metrics | {"texts_in_parts": int((np.diff(features.bounds) > 1).sum())}

    def describe(self, metrics: Mapping[str, float]) -> str:
        line = (
            f"accuracy {metrics['accuracy']:.2f}   macro F1 {metrics['macro_f1']:.2f}   "
            f"Matthews {metrics['matthews']:.2f}   ({metrics['total']:,} texts)"
        )
        parts = metrics.get("texts_in_parts")
        return f"{line}\n  {parts:,} texts longer than a window, logits averaged" if parts else line

    def files(self, features: TextSet, predictions: Sequence[Predicted]) -> dict[str, str]:
        """predictions.jsonl: a line for each text, gold label included."""
        lines = [
            json.dumps(self.record(features, n, one) | {"gold": features.records[n].label}, ensure_ascii=False)
            for n, one in enumerate(predictions)
        ]
        return {"predictions.jsonl": "".join(f"{line}\n" for line in lines)}

    def next_command(self, folder: Path) -> str:
        return f"spanbert predict {self.name} {folder} FILE"
