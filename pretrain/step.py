"""One optimizer step: from a masked batch to a gradient, and from the gradient to new weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.config import PretrainConfig
from pretrain.data.batches import StepBatch
from pretrain.objective import TargetCounts, micro_batch_loss
from spanbert.device import autocast
from spanbert.distributed import Group
from spanbert.model.batch import MaskedBatch
from spanbert.model.dropout import dropout_key
from spanbert.model.models import SpanBertForPretraining
from spanbert.training.optim import clip_gradients, set_learning_rate, step_unless
from spanbert.training.parallel import gradient_sync


class Agreed(NamedTuple):
    """What all ranks must know of a step before they begin it."""

    counts: TargetCounts
    tokens: int
    seconds: float  # the leader's clock
    stop: bool  # whether any rank was asked to


def agree(group: Group, batch: StepBatch, seconds: float, stop: bool) -> Agreed:
    """Add up targets and tokens over ranks; one clock and one decision to stop for all. Host numbers only."""
    ours = [*batch.target_counts, batch.tokens, seconds if group.is_main else 0.0, stop]
    mlm, sbo, tokens, clock, stops = group.sum(ours)
    return Agreed(TargetCounts(mlm, sbo), int(tokens), clock, stops > 0)


class Stepper:
    """Makes gradients and takes steps.

    model: the plain module; parallel: what to call in its place (the same, or the same in DDP).
    """

    def __init__(
        self,
        config: PretrainConfig,
        group: Group,
        model: SpanBertForPretraining,
        parallel: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: str,
    ):
        self.config, self.group, self.precision = config, group, precision
        self.model, self.parallel, self.optimizer = model, parallel, optimizer
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(self, batch: StepBatch, counts: TargetCounts) -> tuple[Tensor, Tensor]:
        """Gradients of the step's loss, clipped → this rank's loss sums (4,) and the norm () before clipping.

        Nothing here waits for the device.
        """
        sums_4 = torch.zeros(4, dtype=torch.float64, device=self.group.device)
        micro_batches = self.micro_batches(batch)
        for number, micro_batch in enumerate(micro_batches):
            with gradient_sync(self.parallel, enabled=number == len(micro_batches) - 1):
                sums_4 += self.backward(batch.step, number, micro_batch, counts)
        return sums_4, clip_gradients(self.parameters, self.config.clip_norm)

    def micro_batches(self, batch: StepBatch) -> list[MaskedBatch[Tensor]]:
        """This rank's parts of a step, positions shifted where the run asks for it."""
        table = self.model.config.max_position_embeddings if self.config.shift_positions else None
        return batch.micro_batches(self.config.seed, table)

    def backward(self, step: int, number: int, micro_batch: MaskedBatch[Tensor], counts: TargetCounts) -> Tensor:
        """Add micro-batch ``number``'s part to the gradients → its loss sums (4,)."""
        key = dropout_key(self.config.seed, step, number * self.group.world + self.group.rank)
        torch.manual_seed(key)
        as_tensor = self.config.compile or self.group.device.type == "cuda"  # made there, nothing is copied
        device = self.group.device
        self.model.encoder.dropout_seed = torch.full((), key, dtype=torch.int64, device=device) if as_tensor else key
        with autocast(self.group.device, self.precision):
            micro_batch = micro_batch.to(self.group.device)
            loss, sums_4 = micro_batch_loss(self.parallel, micro_batch, counts, self.config.sbo)
        (loss * self.group.world).backward()  # DDP and FSDP average over ranks; the step's loss is a sum
        return sums_4

    def take(self, lr: float, sums_4: Tensor, norm: Tensor) -> None:
        """Update the weights, or leave them when a loss or the gradient is not finite on any rank."""
        bad = ~(norm.isfinite() & sums_4.isfinite().all())
        set_learning_rate(self.optimizer, lr)
        step_unless(self.optimizer, self.group.all_reduce_max(bad.float()))
        self.optimizer.zero_grad(set_to_none=True)
