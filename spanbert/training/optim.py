"""AdamW with BERT's two parameter groups, and the linear schedule (§4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from spanbert.training.trainable import depth_of

#: Key of a parameter group: its rate ÷ the optimizer's.
RATE = "rate"


def adamw(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    rate_of: Callable[[str], float] = lambda parameter: 1.0,
) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorm parameters (everything with fewer than two dimensions) do not decay.

    rate_of: a parameter's name → by how much its learning rate is multiplied (``layer_rates``).
    """
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_rate.setdefault(rate_of(name), []).append(parameter)
    groups = []
    for rate, members in by_rate.items():
        for decay, matrices in ((weight_decay, True), (0.0, False)):
            chosen = [parameter for parameter in members if (parameter.ndim >= 2) == matrices]
            groups.append({"params": chosen, "weight_decay": decay, RATE: rate})
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def layer_rates(layers: int, decay: float) -> Callable[[str], float]:
    """Layer-wise rate decay (Howard & Ruder 2018): the head learns at the full rate, each block below at ``decay`` times
    the rate of the one above; the embeddings are the lowest of ``layers`` + 1 blocks."""
    return lambda parameter: decay ** depth_of(parameter, layers)


def linear_schedule(progress: float, warmup: float) -> float:
    """Learning-rate multiplier at ``progress`` in [0, 1]: up from 0 to 1 over ``warmup``, then down to 0 at the end."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    return (1.0 - progress) / (1.0 - warmup) if warmup < 1 else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """``lr`` for every parameter group, times the group's own factor where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(RATE, 1.0)


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
