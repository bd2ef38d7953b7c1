"""One optimizer step, for every training stage: micro-batches to a gradient, and the gradient to new weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from spanbert.device import autocast
from spanbert.distributed import Group
from spanbert.model.dropout import dropout_key
from spanbert.model.models import SpanBertModel
from spanbert.training.optim import clip_gradients, set_learning_rate, step_unless
from spanbert.training.parallel import gradient_sync

B = TypeVar("B")

#: (the module to call, a micro-batch) → its part of the step's loss, () with gradient: sums ÷ the counts of the whole
#: step; and detached sums for reporting, () or (N,) fp64 on the device.
Loss = Callable[[nn.Module, B], tuple[Tensor, Tensor]]


class StepResult(NamedTuple):
    """What a step's backward passes left, on the device: reading it waits for the device."""

    sums_N: Tensor
    """() or (N,) fp64: this rank's detached sums over its micro-batches, as the loss gave them."""
    norm: Tensor
    """() fp32: gradient norm before clipping, over all micro-batches and ranks."""

    @property
    def finite(self) -> Tensor:
        """() bool on the device: whether this rank's sums and the gradient are."""
        return self.norm.isfinite() & self.sums_N.isfinite().all()


class OptimizerStep:
    """Makes gradients and takes steps. Nothing here waits for the device.

    A step is cut into micro-batches, and over ranks, for memory's and speed's sake only: a loss is a *sum* ÷ the counts
    of the whole step, so the gradient is that of one big batch, however it was cut.

    Args:
        model: the plain module, whose encoder draws dropout; parallel: what to call in its place (the same, or the same
            in DDP); precision: "fp32" or "bf16" (autocast).
        clip_norm: gradient norm above which the gradient is scaled down; 0 never.
        seed: of dropout, with the step, the micro-batch and the rank.
        seed_as_tensor: hand the dropout seed over as a tensor also on a CPU (compiled layers would compile again for
            every integer); on a GPU it always is one, made there, so that nothing is copied.
    """

    def __init__(
        self,
        model: SpanBertModel,
        parallel: nn.Module,
        optimizer: torch.optim.Optimizer,
        group: Group,
        *,
        precision: str,
        clip_norm: float,
        seed: int,
        seed_as_tensor: bool = False,
    ):
        self.model, self.parallel, self.optimizer, self.group = model, parallel, optimizer, group
        self.precision, self.clip_norm, self.seed = precision, clip_norm, seed
        self.seed_as_tensor = seed_as_tensor or group.device.type == "cuda"
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(self, step: int, micro_batches: Sequence[B], loss: Loss[B]) -> StepResult:
        """The gradient of the sum of the micro-batches' losses, over all ranks, clipped. Ranks have equally many.

        step: its number, from 0; it seeds dropout.
        """
        sums_N: Tensor | None = None
        for number, micro_batch in enumerate(micro_batches):
            with gradient_sync(self.parallel, enabled=number == len(micro_batches) - 1):
                part = self.backward(step, number, micro_batch, loss)
            sums_N = part if sums_N is None else sums_N + part
        assert sums_N is not None, "a step has at least one micro-batch"
        return StepResult(sums_N, clip_gradients(self.parameters, self.clip_norm))

    def backward(self, step: int, number: int, micro_batch: B, loss: Loss[B]) -> Tensor:
        """Add micro-batch ``number``'s part to the gradients → its detached sums, () or (N,) fp64."""
        key = dropout_key(self.seed, step, number * self.group.world + self.group.rank)
        torch.manual_seed(key)  # for the back-ends that draw from PyTorch's generator
        device = self.group.device
        as_tensor = self.seed_as_tensor
        self.model.encoder.dropout_seed = torch.full((), key, dtype=torch.int64, device=device) if as_tensor else key
        with autocast(device, self.precision):
            value, sums_N = loss(self.parallel, micro_batch)
        (value * self.group.world).backward()  # DDP and FSDP average over ranks; the step's loss is a sum
        return sums_N

    def take(self, lr: float, result: StepResult) -> None:
        """Update the weights, or leave them and the moments alone when something is not finite on any rank."""
        set_learning_rate(self.optimizer, lr)
        step_unless(self.optimizer, self.group.all_reduce_max((~result.finite).float()))
        self.optimizer.zero_grad(set_to_none=True)
