"""Steps of the fine-tuning engine, one at a time, for benchmarks that time them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from finetune.config import FinetuneConfig
from finetune.task import Features, Task
from finetune.train import Drawn, loss_of, micro_batches, step_windows
from spanbert.distributed import alone
from spanbert.model.models import SpanBertModel
from spanbert.training.optim import adamw, layer_rates
from spanbert.training.step import OptimizerStep


class EngineSteps:
    """What ``finetune.train.train`` does in a step, and nothing else: windows, packing, gradients, optimizer.

    Args:
        model: what it trains of it is what it has of parameters that want a gradient.
        config: batch size, rate decay, weight decay, clipping and seed.
        rates: learning rate of each step.
        precision: "fp32" or "bf16".
    """

    def __init__(
        self,
        task: Task,
        model: SpanBertModel,
        features: Features,
        config: FinetuneConfig,
        rates: list[float],
        precision: str,
    ):
        self.group = alone()
        self.model = model.place(self.group.device).train()
        self.features, self.config, self.rates = features, config, rates
        self.optimizer = adamw(
            model,
            rates[0],
            weight_decay=config.weight_decay,
            rate_of=layer_rates(len(model.encoder.layers), config.layer_decay),
        )
        self.stepper = OptimizerStep(
            model,
            model,
            self.optimizer,
            self.group,
            precision=precision,
            clip_norm=config.clip_norm,
            seed=config.seed,
        )
        self.loss = loss_of(task, self.group)

    @property
    def steps(self) -> int:
        return len(self.rates)

    def step(self, number: int) -> Tensor:
        """Step ``number``, from 0 → its mean loss, ()."""
        windows = windows_of(self.features, number, self.config)
        parts = micro_batches([Drawn(self.features, windows)], self.config, self.group)
        result = self.stepper.gradients(number, parts, self.loss)
        self.stepper.take(self.rates[number], result)
        return result.sums_N / self.features.count(windows)

    def finish(self) -> Any:
        """Nothing to say."""


def windows_of(features: Features, step: int, config: FinetuneConfig) -> np.ndarray:
    """The windows of a step."""
    return step_windows(step, len(features.lengths), features.lengths, config.batch_size, config.seed)


def engine_config(init: Path, batch_size: int, seed: int, dropout: float = 0.0) -> FinetuneConfig:
    """The options of a run that reads and writes nothing; the others are the engine's own."""
    return FinetuneConfig(Path(), Path(), str(init), batch_size=batch_size, seed=seed, dropout=dropout)
