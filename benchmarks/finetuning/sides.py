"""The two sides of benchmarks.finetuning.task_parity: each takes whole training steps over the same windows.

Ours is the engine's own step (``finetune.train``). transformers' is the loop of its examples: the collator that pads a
batch to its longest window, the model's own loss, clipping, fused AdamW (its Trainer's default).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.finetuning.engine import EngineSteps, windows_of
from benchmarks.finetuning.peers import NO_DROPOUT, their_adamw
from finetune.config import FinetuneConfig
from finetune.task import Features, Task
from spanbert.checkpoint.model_folder import load_model
from spanbert.device import autocast
from spanbert.model.batch import PairBatch
from spanbert.model.models import (
    SpanBertForRelation,
    SpanBertForSequenceClassification,
    SpanBertForTokenClassification,
)


class RelationHead(nn.Module):
    """One layer on two states side by side; our files call it relation.dense."""

    def __init__(self, hidden: int, labels: int):
        super().__init__()
        self.dense = nn.Linear(hidden, labels)


class BertForRelation(transformers.BertPreTrainedModel):
    """transformers has no model for pairs of entities: its encoder, with the head that people write on top of it."""

    def __init__(self, config: transformers.BertConfig):
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.relation = RelationHead(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, labels: Tensor, **batch: Tensor) -> SequenceClassifierOutput:
        """labels: (B, 3): the relation, and the places of the two states."""
        hidden_BSH = self.dropout(self.bert(**batch).last_hidden_state)
        at_B2 = labels[:, 1:]
        pairs_B2H = hidden_BSH.gather(1, at_B2[:, :, None].expand(-1, -1, hidden_BSH.shape[-1]))
        logits_BL = self.relation.dense(pairs_B2H.flatten(1))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits_BL.float(), labels[:, 0]), logits=logits_BL)


class Peer(NamedTuple):
    """What stands in transformers for one of our models."""

    model: type[transformers.PreTrainedModel]
    collator: Callable[[transformers.PreTrainedTokenizerBase], Any]


PEERS: dict[type, Peer] = {
    SpanBertForTokenClassification: Peer(
        transformers.BertForTokenClassification, transformers.DataCollatorForTokenClassification
    ),
    SpanBertForSequenceClassification: Peer(
        transformers.BertForSequenceClassification, transformers.DataCollatorWithPadding
    ),
    SpanBertForRelation: Peer(BertForRelation, transformers.DataCollatorWithPadding),
}


@dataclass(frozen=True)
class Work:
    """What both sides train on, and how."""

    folder: Path
    """Weights and tokenizer, head included, that both load."""
    task: Task
    features: Features
    config: FinetuneConfig
    """Batch size, weight decay, clipping, seed."""
    rates: list[float]
    """Learning rate of each step."""
    precision: str = "fp32"
    attention: str = "sdpa"
    """Of transformers; sdpa is what it takes by itself."""
    dropout: float = 0.0
    """On hidden states and attention of both sides."""

    @property
    def rates_of_dropout(self) -> dict[str, float]:
        return dict.fromkeys(NO_DROPOUT, self.dropout)


def our_side(work: Work) -> EngineSteps:
    """The engine's steps, as `spanbert finetune` takes them."""
    model, _ = load_model(work.folder, work.task.model, config_overrides=work.rates_of_dropout, **work.task.head())
    return EngineSteps(work.task, model, work.features, work.config, work.rates, work.precision)


class TheirSide:
    """transformers' model, collator and optimizer."""

    def __init__(self, work: Work):
        self.work = work
        peer = PEERS[work.task.model]
        options: dict[str, Any] = {"attn_implementation": work.attention, **work.rates_of_dropout}
        self.model = peer.model.from_pretrained(work.folder, **options).train()
        words = transformers.BertTokenizerFast  # type: ignore[attr-defined]  # made when it is asked for
        self.collate = peer.collator(words.from_pretrained(work.folder))
        self.optimizer = their_adamw(self.model, work.rates[0], work.config.weight_decay, fused=True)
        self.rows = [self._row(window) for window in range(len(work.features.lengths))]

    def _row(self, window: int) -> dict[str, Any]:
        """A window as a line of a data set is: lists of numbers, or a number."""
        chosen = np.array([window])
        packed, labels = self.work.features.packed(chosen), self.work.features.labels(chosen)
        if isinstance(packed, PairBatch):  # a relation with the places of its two states
            labels, packed = np.concatenate([labels[:, None], packed.at_B2], axis=1), packed.packed
        row: dict[str, Any] = {"input_ids": packed.input_ids_T.tolist(), "attention_mask": [1] * packed.tokens}
        if packed.token_type_ids_T is not None:
            row["token_type_ids"] = packed.token_type_ids_T.tolist()
        if self.work.task.model is SpanBertForTokenClassification:
            return row | {"labels": labels.tolist()}
        return row | {"labels": labels[0].tolist()}

    @property
    def steps(self) -> int:
        return len(self.work.rates)

    def step(self, number: int) -> Tensor:
        work = self.work
        for group in self.optimizer.param_groups:
            group["lr"] = work.rates[number]
        batch = self.collate([self.rows[window] for window in windows_of(work.features, number, work.config)])
        with autocast(torch.device("cpu"), work.precision):
            loss = self.model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), work.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def finish(self) -> None:
        """Nothing to say."""
