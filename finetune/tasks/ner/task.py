"""Named entities as a task: a tag for the first token of each word, entities decoded over legal sequences of tags."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from finetune.records import MalformedRecord, Purpose
from finetune.tasks.ner.decode import FoundEntity, TagDecoder
from finetune.tasks.ner.features import IGNORED, SPECIALS, SentenceSet, encode_sentences
from finetune.tasks.ner.metrics import describe, entity_metrics
from finetune.tasks.ner.records import SentenceFile, read_sentences
from finetune.tasks.ner.schemes import OUTSIDE, Tag, tags_of
from spanbert.config import from_dict, to_dict
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch
from spanbert.model.models import SpanBertForTokenClassification, SpanBertModel
from spanbert.tokenizer.wordpiece import Tokenizer


@dataclass(frozen=True)
class NerSettings:
    """What a model of named entities remembers beside its weights, under "ner" in its config.json."""

    window: int = 256
    """Longest window in tokens; a longer sentence is several."""
    overlap: int = 64
    """Tokens that two windows of a sentence share."""
    context: int = 0
    """Tokens of its document that are seen at either side of a sentence."""
    tag_column: str | None = None
    """Of the CoNLL files it was trained on; None: found by itself."""
    tag_names: tuple[str, ...] = ()
    """What the numbers 0, 1, … mean where JSON lines have numbers for tags."""
    labels: tuple[str, ...] = ()
    """Tags, in the order of the logits."""


@dataclass(frozen=True)
class NerTask:
    """See ``finetune.task.Task``."""

    name: ClassVar[str] = "ner"
    noun: ClassVar[str] = "sentences"
    model: ClassVar[type[SpanBertModel]] = SpanBertForTokenClassification
    main_metric: ClassVar[str] = "f1"

    settings: NerSettings = field(default_factory=NerSettings)

    @classmethod
    def of_model(cls, config: Mapping[str, Any], max_positions: int, source: str) -> Self:
        """From our own settings, or from the labels of a token classifier that was trained elsewhere."""
        if cls.name in config:
            return cls(from_dict(NerSettings, config[cls.name], f'{source}: "{cls.name}"'))
        stored = config.get("id2label")
        if not isinstance(stored, dict) or not all(key.isdecimal() for key in stored):
            raise UserError(f'{source}: lacks "id2label", the names of the tags')
        labels = tuple(str(stored[key]) for key in sorted(stored, key=int))
        try:
            [Tag.of(label) for label in labels]
        except MalformedRecord as error:
            raise UserError(f'{source}: "id2label": {error}') from None
        return cls(NerSettings(window=min(NerSettings.window, max_positions), labels=labels))

    def check(self, max_positions: int) -> None:
        settings = self.settings
        if not SPECIALS < settings.window <= max_positions:
            raise UserError(
                f"window {settings.window}: give {SPECIALS + 1} to {max_positions} tokens, the model's positions, with "
                "--window."
            )
        if not 0 <= settings.overlap < settings.window - SPECIALS:
            raise UserError(
                f"overlap {settings.overlap}: give 0 to {settings.window - SPECIALS - 1} tokens, with --overlap."
            )
        if settings.context < 0:
            raise UserError(f"context {settings.context}: give 0 or more tokens, with --context.")

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

    def read(self, path: Path, purpose: Purpose) -> SentenceFile:
        known = frozenset(Tag.of(label).type for label in self.settings.labels) - {""}
        return read_sentences(path, purpose, self.settings.tag_column, known, self.settings.tag_names)

    def learned_from(self, records: SentenceFile) -> Self:
        """The types that occur. Raises UserError when there is no entity."""
        types = records.types()
        if not types:
            raise UserError(
                f"{records.report.path}: no sentence has an entity; there is nothing to learn{records.report.losses}."
            )
        labels = (OUTSIDE, *(f"{letter}-{kind}" for kind in types for letter in "BI"))
        return replace(self, settings=replace(self.settings, labels=labels))

    def encode(self, records: SentenceFile, tokenizer: Tokenizer, purpose: Purpose) -> SentenceSet:
        settings = self.settings
        return encode_sentences(
            records, tokenizer, settings.window, settings.overlap, settings.labels, settings.context
        )

    def loss(self, output: Tensor, labels: Tensor, batch: PackedBatch[Tensor]) -> Tensor:
        """Cross-entropy of the words' first tokens, in nats."""
        return F.cross_entropy(output.float(), labels, reduction="sum", ignore_index=IGNORED)

    def training_notes(self, *, evaluated: bool) -> list[str]:
        return []

    def logits(self, output: Tensor) -> Tensor:
        """(T, labels)."""
        return output

    def by_window(self, logits: np.ndarray, cu_seqlens: np.ndarray) -> list[np.ndarray]:
        return [logits[begin:end] for begin, end in pairwise(cu_seqlens)]

    @cached_property
    def _decoder(self) -> TagDecoder:
        return TagDecoder(self.settings.labels)

    def decode(self, features: SentenceSet, example: int, logits: Sequence[np.ndarray]) -> list[FoundEntity]:
        first = int(features.bounds[example])
        parts = [part[features.starts(first + n)] for n, part in enumerate(logits)]
        return self._decoder.decode(np.concatenate([np.zeros((0, len(self.settings.labels))), *parts]))

    def record(self, features: SentenceSet, example: int, prediction: list[FoundEntity]) -> dict[str, Any]:
        """Offsets count characters of the text; the probability is that exactly these words are one entity of this type."""
        sentence = features.sentences[example]
        entities = []
        for entity, probability in prediction:
            start, end, kind = sentence.span(entity)
            text = sentence.text[start:end]
            entities.append({"start": start, "end": end, "type": kind, "text": text, "probability": probability})
        name = {"id": sentence.id} if sentence.id else {}
        return {"line": sentence.line, **name, "text": sentence.text, "entities": entities}

    def tuned(self, features: SentenceSet, predictions: Sequence[list[FoundEntity]]) -> Self:
        return self

    def score(self, features: SentenceSet, predictions: Sequence[list[FoundEntity]]) -> dict[str, float]:
        found = [
            [sentence.span(one.entity) for one in entities]
            for sentence, entities in zip(features.sentences, predictions, strict=True)
        ]
        metrics = entity_metrics([sentence.spans for sentence in features.sentences], found)
        return metrics | {"sentences_in_parts": int((np.diff(features.bounds) > 1).sum())}

    def scoring(self, features: Any) -> Mapping[str, str]:
        return {}

    def describe(self, metrics: Mapping[str, float]) -> str:
        return describe(metrics)

    def files(self, features: SentenceSet, predictions: Sequence[list[FoundEntity]]) -> dict[str, str]:
        """predictions.jsonl, with the gold entities; predictions.conll: word, gold tag, predicted tag, for conlleval."""
        lines, columns = [], []
        for example, (sentence, found) in enumerate(zip(features.sentences, predictions, strict=True)):
            gold = [{"start": s.start, "end": s.end, "type": s.type} for s in sentence.spans]
            record = self.record(features, example, found) | {"gold": gold}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            wanted = tags_of(sentence.entities or (), len(sentence.words))
            given = tags_of((one.entity for one in found), len(sentence.words))
            for (start, end), *tags in zip(sentence.words, wanted, given, strict=True):
                columns.append("\t".join([sentence.text[start:end], *tags]) + "\n")
            columns.append("\n")
        return {"predictions.jsonl": "".join(lines), "predictions.conll": "".join(columns)}

    def next_command(self, folder: Path) -> str:
        return f"spanbert predict {self.name} {folder} FILE"
