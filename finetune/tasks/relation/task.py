"""Relations between two entities as a task: the states of two tokens, or that of `[CLS]` twice, through one layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.records import Purpose
from finetune.tasks.relation.features import LEAST, Encoding, PairSet, encode_pairs, new_tokens
from finetune.tasks.relation.metrics import DIRECTED, describe, relation_metrics
from finetune.tasks.relation.records import PairFile, Span, read_pairs
from spanbert.config import from_dict, to_dict
from spanbert.errors import UserError
from spanbert.model.batch import PairBatch
from spanbert.model.models import SpanBertForRelation, SpanBertModel
from spanbert.tokenizer.wordpiece import Tokenizer


@dataclass(frozen=True)
class RelationSettings:
    """What a model of relations remembers beside its weights, under "relation" in its config.json."""

    window: int = 256
    """Longest sequence in tokens; of a longer text the part around the entities is seen."""
    encoding: str = "markers"
    """How the entities are shown: "mask", "markers" or "typed"."""
    subject_types: tuple[str, ...] = ()
    """Types that have tokens of their own; ("",) where the files name none."""
    object_types: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """In the order of the logits."""


@dataclass(frozen=True)
class Predicted:
    """The probability of each relation, in their order."""

    label: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class RelationTask:
    """See ``finetune.task.Task``."""

    name: ClassVar[str] = "relation"
    noun: ClassVar[str] = "pairs"
    model: ClassVar[type[SpanBertModel]] = SpanBertForRelation

    settings: RelationSettings = field(default_factory=RelationSettings)

    @property
    def main_metric(self) -> str:
        """SemEval's score where the relations have directions, otherwise TACRED's."""
        return "macro_f1" if self._directed else "micro_f1"

    @property
    def _directed(self) -> bool:
        return any(DIRECTED.fullmatch(label) for label in self.settings.labels)

    @classmethod
    def of_model(cls, config: Mapping[str, Any], max_positions: int, source: str) -> Self:
        if cls.name not in config:
            raise UserError(f'{source}: lacks "{cls.name}", how entities are shown to the model')
        return cls(from_dict(RelationSettings, config[cls.name], f'{source}: "{cls.name}"'))

    def check(self, max_positions: int) -> None:
        if not LEAST <= self.settings.window <= max_positions:
            raise UserError(
                f"window {self.settings.window}: give {LEAST} to {max_positions} tokens, the model's positions, with "
                "--window."
            )

    def head(self) -> dict[str, Any]:
        return {"num_labels": len(self.settings.labels)}

    @property
    def _encoding(self) -> Encoding:
        return self.settings.encoding  # type: ignore[return-value]  # a string in JSON

    def new_tokens(self) -> tuple[str, ...]:
        """The markers or masks of the types that the training file has."""
        return new_tokens(self._encoding, [self.settings.subject_types, self.settings.object_types])

    def model_config(self) -> dict[str, Any]:
        labels = self.settings.labels
        return {
            self.name: to_dict(self.settings),
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
        }

    def read(self, path: Path, purpose: Purpose) -> PairFile:
        return read_pairs(path, purpose, self.settings.labels)

    def learned_from(self, records: PairFile) -> Self:
        """The relations and types of entity that occur. Raises UserError for one relation only, and for typed markers
        without types."""
        labels = tuple(records.relations())
        path = records.report.path
        if len(labels) < 2:
            raise UserError(
                f"{path}: all relations are {labels[0]!r}; there is nothing to learn{records.report.losses}."
            )
        subjects = tuple(sorted({pair.subject.type for pair in records.pairs}))
        objects = tuple(sorted({pair.object.type for pair in records.pairs}))
        if self.settings.encoding == "typed" and "" in subjects + objects:
            raise UserError(f"{path}: has entities without a type; --encoding typed needs types, markers does not.")
        settings = replace(self.settings, labels=labels, subject_types=subjects, object_types=objects)
        return replace(self, settings=settings)

    def encode(self, records: PairFile, tokenizer: Tokenizer, purpose: Purpose) -> PairSet:
        return encode_pairs(records, tokenizer, self._encoding, self.settings.window, self.settings.labels)

    def loss(self, output: Tensor, labels: Tensor, batch: PairBatch[Tensor]) -> Tensor:
        """Cross-entropy of the pairs, in nats."""
        return F.cross_entropy(output.float(), labels, reduction="sum")

    def training_notes(self, *, evaluated: bool) -> list[str]:
        return []

    def logits(self, output: Tensor) -> Tensor:
        """(B, labels)."""
        return output

    def by_window(self, logits: np.ndarray, cu_seqlens: np.ndarray) -> list[np.ndarray]:
        return list(logits)

    def decode(self, features: PairSet, example: int, logits: Sequence[np.ndarray]) -> Predicted:
        logits_L = torch.from_numpy(logits[0]).double()
        return Predicted(int(logits_L.argmax()), tuple(logits_L.softmax(0).tolist()))

    def record(self, features: PairSet, example: int, prediction: Predicted) -> dict[str, Any]:
        """Offsets count characters of the text."""
        pair, labels = features.pairs[example], self.settings.labels
        return {
            "id": pair.id,
            "text": pair.text,
            "subject": _entity(pair.text, pair.subject),
            "object": _entity(pair.text, pair.object),
            "relation": labels[prediction.label],
            "probability": prediction.probabilities[prediction.label],
            "probabilities": dict(zip(labels, prediction.probabilities, strict=True)),
        }

    def tuned(self, features: PairSet, predictions: Sequence[Predicted]) -> Self:
        return self

    def score(self, features: PairSet, predictions: Sequence[Predicted]) -> dict[str, float]:
        predicted_E = np.array([one.label for one in predictions], dtype=np.int64)
        return relation_metrics(features.label_E, predicted_E, self.settings.labels)

    def scoring(self, features: Any) -> Mapping[str, str]:
        return {}

    def describe(self, metrics: Mapping[str, float]) -> str:
        return describe(metrics, self._directed)

    def files(self, features: PairSet, predictions: Sequence[Predicted]) -> dict[str, str]:
        """predictions.jsonl, gold relation included; answers.txt: id, tab, relation, as SemEval's script reads it."""
        lines, answers = [], []
        for example, prediction in enumerate(predictions):
            pair = features.pairs[example]
            record = self.record(features, example, prediction) | {"gold": pair.relation}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            answers.append(f"{pair.id}\t{record['relation']}\n")
        return {"predictions.jsonl": "".join(lines), "answers.txt": "".join(answers)}

    def next_command(self, folder: Path) -> str:
        return f"spanbert predict {self.name} {folder} FILE"


def _entity(text: str, span: Span) -> dict[str, Any]:
    kind = {"type": span.type} if span.type else {}
    return {"start": span.start, "end": span.end, "text": text[span.start : span.end], **kind}
