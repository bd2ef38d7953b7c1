"""What is pretraining's own in an optimizer step: the objective L = MLM + SBO (§3.3), and what ranks agree on before it.

Each loss is averaged over all of its targets in the step. A step is cut into micro-batches and over ranks for memory's
and speed's sake only. So the *sums* of the losses are divided by the targets of the whole step, counted before the first
backward pass; the gradient is then that of one big batch, however it was cut (a mean of means would weight a target by
the company it happens to be in).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.data.batches import StepBatch
from spanbert.distributed import Group
from spanbert.model.batch import MaskedBatch
from spanbert.training.signals import voted, votes
from spanbert.training.step import Loss


class TargetCounts(NamedTuple):
    """Targets of one optimizer step, over all micro-batches and ranks; plain numbers, so nothing waits for a GPU."""

    mlm: float
    sbo: float


class LossSums(NamedTuple):
    """Sums over targets: losses in nats, and targets that the model has right. Zeros for SBO without it."""

    mlm_loss: float
    mlm_correct: float
    sbo_loss: float
    sbo_correct: float


def micro_batch_loss(
    model: nn.Module, batch: MaskedBatch[Tensor], counts: TargetCounts, with_sbo: bool = True
) -> tuple[Tensor, Tensor]:
    """This micro-batch's part of the step's loss: sums over its targets ÷ the step's target counts.

    Returns the part to call backward on, and detached sums for reporting, (4,) fp64 on the device: ``LossSums``.
    """
    mlm, sbo = model(batch.packed, batch.targets, with_sbo)
    loss = mlm.loss_sum / max(counts.mlm, 1)
    if sbo is not None:
        loss = loss + sbo.loss_sum / max(counts.sbo, 1)
    parts = [mlm, sbo] if sbo is not None else [mlm]
    sums = torch.stack([value.detach().double() for part in parts for value in (part.loss_sum, part.correct)])
    return loss, sums if sbo is not None else torch.cat([sums, torch.zeros_like(sums)])


def step_loss(counts: TargetCounts, with_sbo: bool, device: torch.device) -> Loss[MaskedBatch[Tensor]]:
    """The loss of a step with these targets, as ``OptimizerStep`` takes it."""

    def loss(model: nn.Module, micro_batch: MaskedBatch[Tensor]) -> tuple[Tensor, Tensor]:
        return micro_batch_loss(model, micro_batch.to(device), counts, with_sbo)

    return loss


class Agreed(NamedTuple):
    """What all ranks must know of a step before they begin it."""

    counts: TargetCounts
    tokens: int
    states: int
    """Last states that the heads look at."""
    seconds: float
    """The main rank's clock."""
    stop: int | None
    """The signal that asked any rank to stop."""


def agree(group: Group, batch: StepBatch, with_sbo: bool, seconds: float, stop: int | None = None) -> Agreed:
    """Add up targets, tokens and states over ranks; one clock and one decision to stop for all. Host numbers only."""
    ours = [*batch.target_counts, batch.tokens, batch.states(with_sbo), seconds if group.is_main else 0.0, *votes(stop)]
    mlm, sbo, tokens, states, clock, *asked = group.sum(ours)
    return Agreed(TargetCounts(mlm, sbo), int(tokens), int(states), clock, voted(asked))
