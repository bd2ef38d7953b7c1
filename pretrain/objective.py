"""L = MLM + SBO (§3.3), token-exact: each averaged over all of its targets in the optimizer step.

A step is cut into micro-batches and over ranks for memory's and speed's sake only. So the *sums* of the losses are
divided by the targets of the whole step, counted before the first backward pass; the gradient is then that of one big
batch, however it was cut (a mean of means would weight a target by the company it happens to be in).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spanbert.model.batch import MaskedBatch


class TargetCounts(NamedTuple):
    """Targets of one optimizer step, over all micro-batches and ranks; plain numbers, so nothing waits for a GPU."""

    mlm: float
    sbo: float


def micro_batch_loss(
    model: nn.Module, batch: MaskedBatch[Tensor], counts: TargetCounts, with_sbo: bool = True
) -> tuple[Tensor, Tensor]:
    """This micro-batch's part of the step's loss: sums over its targets ÷ the step's target counts.

    Returns the part to call backward on, and detached sums for reporting, (4,) fp64 on the device: MLM loss in nats,
    MLM targets that the model has right, then the same of SBO (zeros without it).
    """
    mlm, sbo = model(batch.packed, batch.targets, with_sbo)
    loss = mlm.loss_sum / max(counts.mlm, 1)
    if sbo is not None:
        loss = loss + sbo.loss_sum / max(counts.sbo, 1)
    parts = [mlm, sbo] if sbo is not None else [mlm]
    sums = torch.stack([value.detach().double() for part in parts for value in (part.loss_sum, part.correct)])
    return loss, sums if sbo is not None else torch.cat([sums, torch.zeros_like(sums)])


def summarise(sums: list[float], counts: TargetCounts, with_sbo: bool = True) -> dict[str, float]:
    """Means over targets: losses in nats, accuracies, perplexities. An objective without targets is left out."""
    values: dict[str, float] = {}
    for name, loss, correct, count in (("mlm", *sums[:2], counts.mlm), ("sbo", *sums[2:], counts.sbo)):
        if count and (with_sbo or name == "mlm"):
            values[f"{name}_loss"] = loss / count
            values[f"{name}_accuracy"] = correct / count
            values[f"{name}_perplexity"] = math.exp(min(loss / count, 700.0))
    return values
