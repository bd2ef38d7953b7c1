"""AdamW with BERT's two parameter groups, and the linear schedule (§4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def adamw(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorm parameters (everything with fewer than two dimensions) do not decay."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def linear_schedule(progress: float, warmup: float) -> float:
    """Learning-rate multiplier at ``progress`` in [0, 1]: up from 0 to 1 over ``warmup``, then down to 0 at the end."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    return (1.0 - progress) / (1.0 - warmup) if warmup < 1 else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that the norm of all of them together is at most ``max_norm`` → the norm before, () fp32.

    ``max_norm`` 0 only measures. Of sharded gradients the norm is that of the whole.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Take the optimizer's step unless ``bad``, () bool on the device, is true: then weights and state stay as they are.

    The decision is made where the numbers are: the fused kernels of PyTorch take a flag (made for gradient scalers)
    and leave everything alone when it is set, so the host never waits to find out.
    """
    setattr(optimizer, "found_inf", bad.to(torch.float32))  # noqa: B010 (no attribute that the class declares)
    try:
        optimizer.step()
    finally:
        delattr(optimizer, "found_inf")
