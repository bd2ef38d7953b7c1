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
import transformers
from torch import Tensor, nn

from benchmarks.finetuning.engine import EngineSteps, windows_of
from benchmarks.finetuning.peers import NO_DROPOUT, their_adamw
from finetune.config import FinetuneConfig
from finetune.task import Features, Task
from spanbert.checkpoint.model_folder import load_model
from spanbert.device import autocast
from spanbert.model.models import SpanBertForSequenceClassification, SpanBertForTokenClassification


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


def our_side(work: Work) -> EngineSteps:
    """The engine's steps, as `spanbert finetune` takes them."""
    model, _ = load_model(work.folder, work.task.model, config_overrides=NO_DROPOUT, **work.task.head())
    return EngineSteps(work.task, model, work.features, work.config, work.rates, work.precision)


class TheirSide:
    """transformers' model, collator and optimizer."""

    def __init__(self, work: Work):
        self.work = work
        peer = PEERS[work.task.model]
        options: dict[str, Any] = {"attn_implementation": work.attention, **NO_DROPOUT}
        self.model = peer.model.from_pretrained(work.folder, **options).train()
        words = transformers.BertTokenizerFast  # type: ignore[attr-defined]  # made when it is asked for
        self.collate = peer.collator(words.from_pretrained(work.folder))
        self.optimizer = their_adamw(self.model, work.rates[0], work.config.weight_decay, fused=True)
        self.rows = [self._row(window) for window in range(len(work.features.lengths))]

    def _row(self, window: int) -> dict[str, Any]:
        """A window as a line of a data set is: lists of numbers, or a number."""
        chosen = np.array([window])
        packed, labels = self.work.features.packed(chosen), self.work.features.labels(chosen)
        row: dict[str, Any] = {"input_ids": packed.input_ids_T.tolist(), "attention_mask": [1] * packed.tokens}
        if packed.token_type_ids_T is not None:
            row["token_type_ids"] = packed.token_type_ids_T.tolist()
        by_token = self.work.task.model is SpanBertForTokenClassification
        return row | {"labels": labels.tolist() if by_token else labels[0].item()}

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
