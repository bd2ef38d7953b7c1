"""L = MLM + SBO (§3.3), token-exact: each averaged over all of its targets in the optimizer step.

A step is cut into micro-batches and over ranks for memory's and speed's sake only. So the *sums* of the losses are
divided by the targets of the whole step, counted before the first backward pass; the gradient is then that of one big
batch, however it was cut (a mean of means would weight a target by the company it happens to be in).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.batches import MicroBatch
from spanbert.models import SpanBertForPretraining


class LossSums(NamedTuple):
    """Running sums over targets; tensors on the device so that nothing waits for a GPU."""

    mlm_loss: Tensor  # () fp32, nats
    mlm_correct: Tensor  # ()
    mlm_count: Tensor  # ()
    sbo_loss: Tensor
    sbo_correct: Tensor
    sbo_count: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> LossSums:
        return cls(*torch.zeros(6, dtype=torch.float64, device=device))

    def plus(self, other: LossSums) -> LossSums:
        return LossSums(*(a + b for a, b in zip(self, other, strict=True)))

    def means(self) -> dict[str, float]:
        """Losses in nats, accuracies and perplexities; brings the sums to the host. SBO is left out when it has no targets."""
        mlm_loss, mlm_correct, mlm_count, sbo_loss, sbo_correct, sbo_count = torch.stack(self).tolist()
        values = {}
        if mlm_count:
            values |= _summary("mlm", mlm_loss / mlm_count, mlm_correct / mlm_count)
        if sbo_count:
            values |= _summary("sbo", sbo_loss / sbo_count, sbo_correct / sbo_count)
        return values


def count_targets(micro_batches: Iterable[MicroBatch], device: torch.device) -> Tensor:
    """MLM and SBO targets of a step over all micro-batches and ranks: (2,) fp32."""
    counts = [(m.targets.ids_M.numel(), m.targets.sbo_K.numel()) for m in micro_batches]
    total = torch.tensor(counts, dtype=torch.float32).sum(0).to(device, non_blocking=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total


def micro_batch_loss(
    model: SpanBertForPretraining, batch: MicroBatch, step_counts: Tensor, with_sbo: bool
) -> tuple[Tensor, LossSums]:
    """This micro-batch's part of the step's loss: sums over its targets ÷ the step's target counts.

    → (the part to call backward on, detached sums for reporting).
    """
    mlm, sbo = model(batch.input_ids_T, batch.cu_seqlens, batch.max_seqlen, batch.targets, with_sbo)
    loss = mlm.loss_sum / step_counts[0].clamp(min=1)
    zero = torch.zeros((), dtype=torch.float64, device=step_counts.device)
    sums = [mlm.loss_sum.detach(), mlm.correct, zero + batch.targets.ids_M.numel(), zero, zero, zero]
    if sbo is not None:
        loss = loss + sbo.loss_sum / step_counts[1].clamp(min=1)
        sums[3:] = [sbo.loss_sum.detach(), sbo.correct, zero + batch.targets.sbo_K.numel()]
    return loss, LossSums(*(value.to(torch.float64) for value in sums))


def _summary(name: str, loss: float, accuracy: float) -> dict[str, float]:
    perplexity = float(torch.tensor(loss, dtype=torch.float64).clamp(max=700).exp())
    return {f"{name}_loss": loss, f"{name}_accuracy": accuracy, f"{name}_perplexity": perplexity}
