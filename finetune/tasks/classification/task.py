"""Classification of texts, or pairs of texts, as a task: the pooled `[CLS]` of each window, logits averaged over a text's windows."""

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
from finetune.tasks.classification.confusion_plot import confusion_csv, confusion_png
from finetune.tasks.classification.features import SPECIALS, TextSet, encode_texts
from finetune.tasks.classification.metrics import (
    classification_metrics,
    confusion,
    multi_label_metrics,
    regression_metrics,
)
from finetune.tasks.classification.records import Columns, LabelledText, TextFile, read_texts
from finetune.tasks.classification.targets import PROBLEM_TYPES, Problem
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
    problem: str = "single"
    """"single", "multi" (any number of the labels) or "regression" (a number)."""


@dataclass(frozen=True)
class Predicted:
    """The probability of each label, in their order, and which of them are given (one, but for "multi")."""

    labels: tuple[int, ...]
    probabilities: tuple[float, ...]
    value: float = 0.0
    """Of a regression; there are no labels then."""

    @property
    def label(self) -> int:
        return self.labels[0]


@dataclass(frozen=True)
class ClassifyTask:
    """See ``finetune.task.Task``."""

    name: ClassVar[str] = "classify"
    noun: ClassVar[str] = "texts"
    model: ClassVar[type[SpanBertModel]] = SpanBertForSequenceClassification

    settings: ClassifySettings = field(default_factory=ClassifySettings)

    @property
    def main_metric(self) -> str:
        return {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}[self.settings.problem]

    @property
    def _problem(self) -> Problem:
        return self.settings.problem  # type: ignore[return-value]  # a string in JSON

    @classmethod
    def of_model(cls, config: Mapping[str, Any], max_positions: int, source: str) -> Self:
        if cls.name in config:
            return cls(from_dict(ClassifySettings, config[cls.name], f'{source}: "{cls.name}"'))
        stored = config.get("id2label")
        if not isinstance(stored, dict) or not all(key.isdecimal() for key in stored):
            raise UserError(f'{source}: lacks "id2label", the names of the labels')
        labels = tuple(str(stored[key]) for key in sorted(stored, key=int))
        problem = next(
            (ours for ours, theirs in PROBLEM_TYPES.items() if theirs == config.get("problem_type")), "single"
        )
        window = min(ClassifySettings.window, max_positions)
        return cls(ClassifySettings(window, labels=() if problem == "regression" else labels, problem=problem))

    def check(self, max_positions: int) -> None:
        least = SPECIALS + (3 if self.settings.columns.text_pair else 1)  # a token of each text
        if not least <= self.settings.window <= max_positions:
            raise UserError(
                f"window {self.settings.window}: give {least} to {max_positions} tokens, the model's positions, "
                "with --window."
            )

    def head(self) -> dict[str, Any]:
        return {"num_labels": len(self.settings.labels) or 1}

    def new_tokens(self) -> tuple[str, ...]:
        return ()

    def model_config(self) -> dict[str, Any]:
        labels = self.settings.labels or (self.settings.columns.label,)
        return {
            self.name: to_dict(self.settings),
            "problem_type": PROBLEM_TYPES[self.settings.problem],
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
        }

    def read(self, path: Path, purpose: Purpose) -> TextFile:
        return read_texts(path, purpose, self.settings.columns, self.settings.labels, self._problem)

    def learned_from(self, records: TextFile) -> Self:
        """The labels that occur. Raises UserError when there is nothing to tell apart."""
        labels = tuple(records.labels())
        if len(labels) < (1 if self._problem == "multi" else 2):
            what = f"are labelled {labels[0]!r}" if labels else "are without a label"
            raise UserError(
                f"{records.report.path}: all texts {what}; there is nothing to learn{records.report.losses}."
            )
        if self._problem == "regression":
            return self
        return replace(self, settings=replace(self.settings, labels=labels))

    def encode(self, records: TextFile, tokenizer: Tokenizer, purpose: Purpose) -> TextSet:
        return encode_texts(records, tokenizer, self.settings.window, self.settings.labels, self._problem)

    def loss(self, output: Tensor, labels: Tensor, batch: PackedBatch[Tensor]) -> Tensor:
        """Cross-entropy of the windows, or of every label by itself, in nats; squared error of a regression."""
        if self._problem == "regression":
            return F.mse_loss(output.float().squeeze(-1), labels, reduction="sum")
        if self._problem == "multi":
            return F.binary_cross_entropy_with_logits(output.float(), labels, reduction="sum")
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
        if self._problem == "regression":
            return Predicted((), (), float(mean_L[0]))
        if self._problem == "multi":
            p_L = np.exp(-np.logaddexp(0.0, -mean_L))
            return Predicted(tuple(np.flatnonzero(p_L >= 0.5).tolist()), tuple(p_L.tolist()))
        weights_L = np.exp(mean_L - mean_L.max())
        return Predicted((int(mean_L.argmax()),), tuple((weights_L / weights_L.sum()).tolist()))

    def record(self, features: TextSet, example: int, prediction: Predicted) -> dict[str, Any]:
        return self.text_record(features.records[example], prediction)

    def text_record(self, record: LabelledText, prediction: Predicted) -> dict[str, Any]:
        """A line of predictions."""
        labels = self.settings.labels
        pair = {self.settings.columns.text_pair: record.other} if record.other is not None else {}
        found: dict[str, Any] = {"line": record.line, "text": record.text, **pair}
        if self._problem == "regression":
            return found | {"value": prediction.value}
        probabilities = {"probabilities": dict(zip(labels, prediction.probabilities, strict=True))}
        if self._problem == "multi":
            return found | {"labels": [labels[number] for number in prediction.labels]} | probabilities
        number = prediction.label
        return found | {"label": labels[number], "probability": prediction.probabilities[number]} | probabilities

    def tuned(self, features: TextSet, predictions: Sequence[Predicted]) -> Self:
        return self

    def score(self, features: TextSet, predictions: Sequence[Predicted]) -> dict[str, float]:
        parts = {"texts_in_parts": int((np.diff(features.bounds) > 1).sum())}
        if self._problem == "regression":
            return regression_metrics(features.label_E, np.array([one.value for one in predictions])) | parts
        if self._problem == "multi":
            predicted_EL = np.zeros(features.label_E.shape, dtype=bool)
            for row, one in enumerate(predictions):
                predicted_EL[row, list(one.labels)] = True
            return multi_label_metrics(features.label_E > 0.5, predicted_EL) | parts
        predicted_E = np.array([one.label for one in predictions], dtype=np.int64)
        return classification_metrics(features.label_E, predicted_E, len(self.settings.labels)) | parts

    def scoring(self, features: Any) -> Mapping[str, str]:
        return {}

    def describe(self, metrics: Mapping[str, float]) -> str:
        shown = {
            "single": "accuracy {accuracy:.2f}   macro F1 {macro_f1:.2f}   Matthews {matthews:.2f}",
            "multi": "micro F1 {micro_f1:.2f}   macro F1 {macro_f1:.2f}   exact sets {accuracy:.2f}",
            "regression": "Pearson {pearson:.2f}   Spearman {spearman:.2f}   mean squared error {mse:.4f}",
        }[self.settings.problem]
        line = f"{shown.format(**metrics)}   ({metrics['total']:,} texts)"
        parts = metrics.get("texts_in_parts")
        return f"{line}\n  {parts:,} texts longer than a window, logits averaged" if parts else line

    def files(self, features: TextSet, predictions: Sequence[Predicted]) -> dict[str, str | bytes]:
        """predictions.jsonl: a line for each text, gold label included; of single labels, who is taken for whom:
        confusion.csv, and confusion.png where matplotlib is installed."""
        lines = [
            json.dumps(self.record(features, n, one) | {"gold": features.records[n].label}, ensure_ascii=False)
            for n, one in enumerate(predictions)
        ]
        files: dict[str, str | bytes] = {"predictions.jsonl": "".join(f"{line}\n" for line in lines)}
        if self._problem == "single":
            labels = self.settings.labels
            predicted_E = np.array([one.label for one in predictions], dtype=np.int64)
            table_LL = confusion(features.label_E, predicted_E, len(labels))
            files["confusion.csv"] = confusion_csv(table_LL, labels)
            if (picture := confusion_png(table_LL, labels)) is not None:
                files["confusion.png"] = picture
        return files

    def next_command(self, folder: Path) -> str:
        return f"spanbert predict {self.name} {folder} FILE"
