"""Cross-entropy against a whole vocabulary without ever holding all logits: for MLM and SBO heads.

M targets × V words of logits, 142 MB in bf16 for 2,458 × 28,996 and several times that in a softmax with autograd, exist
`CHUNK` rows at a time. A chunk is a matrix product, one kernel that turns it in place into softmax − one-hot, and two
more products that fold it into the gradients; the backward pass only scales those by the incoming number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention import autocast_input
from kernels.cross_entropy_config import IGNORED
from kernels.device import runs_triton

#: Rows of logits at a time: enough to fill a GPU with one product, 60 MB in bf16 for a vocabulary of 29k.
CHUNK = 1024


class LinearCrossEntropy(NamedTuple):
    """Sums over the targets. Divide by the number of targets of the whole optimizer step."""

    loss_sum: Tensor  # () fp32, nats, differentiable
    correct: Tensor  # () int64: targets that are their row's maximum


def linear_cross_entropy(hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor, target_M: Tensor) -> LinearCrossEntropy:
    """Σ over the targets of −log softmax(hidden · weightᵀ + bias)[target].

    Args:
        hidden_MH: (M, H); `weight_VH` (V, H) in the same dtype, or any under autocast, which casts both; M may be 0.
        bias_V: (V,) any floating dtype. `target_M`: (M,) int64 in [0, V), or −100: no loss, no gradient, never
            correct. Any other target raises on a CPU; on a GPU, where looking would cost a sync, the loss becomes NaN.

    Returns:
        LinearCrossEntropy. The softmax is fp32; its gradient is rounded to the products' dtype, as autograd's is.

    Raises:
        ValueError: shapes or dtypes that do not fit; on a CPU also a target outside the vocabulary.
    """
    hidden_MH = autocast_input(hidden_MH)
    cast = torch.is_autocast_enabled(hidden_MH.device.type)
    if (hidden_MH.dtype != weight_VH.dtype and not cast) or hidden_MH.shape[1:] != weight_VH.shape[1:]:
        raise ValueError(
            f"hidden {hidden_MH.dtype} {hidden_MH.shape} and weight {weight_VH.dtype} {weight_VH.shape} do not fit"
        )
    if bias_V.shape != weight_VH.shape[:1] or target_M.shape != hidden_MH.shape[:1]:
        raise ValueError(f"bias {tuple(bias_V.shape)} or targets {tuple(target_M.shape)} do not fit")
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden_MH, weight_VH, bias_V))
    loss, correct, *_ = torch.ops.fused_kernels.linear_cross_entropy(
        hidden_MH, weight_VH, bias_V, target_M, with_gradient
    )
    return LinearCrossEntropy(loss, correct)


def linear_cross_entropy_reference(hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor, target_M: Tensor) -> Tensor:
    """The reference: the loss sum with all logits at once, differentiable by autograd."""
    logits_MV = hidden_MH @ weight_VH.T
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)) + bias_V
    return torch.nn.functional.cross_entropy(logits_MV, target_M, reduction="sum")


def _softmax_gradient_(
    logits_NV: Tensor, bias_V: Tensor, target_N: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The kernel's reference: (loss (N,), correct (N,)); `logits_NV` becomes the gradient with respect to itself."""
    if runs_triton(logits_NV):
        from kernels.cross_entropy_kernel import launch_cross_entropy_

        return launch_cross_entropy_(logits_NV, bias_V, target_N, with_gradient)
    ignored = target_N == IGNORED
    target_N = target_N.masked_fill(ignored, 0)
    if len(target_N) and not 0 <= int(target_N.min()) <= int(target_N.max()) < len(bias_V):
        wrong = target_N[(target_N < 0) | (target_N >= len(bias_V))][0]
        raise ValueError(f"target {wrong} is neither of the vocabulary, 0 … {len(bias_V) - 1}, nor {IGNORED}")
    wide = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) + bias_V
    log_softmax = wide.log_softmax(-1)
    loss = -log_softmax.gather(1, target_N[:, None]).squeeze(1)
    if with_gradient:
        gradient = log_softmax.exp()
        gradient[torch.arange(len(target_N), device=target_N.device), target_N] -= 1.0
        logits_NV.copy_(gradient.masked_fill_(ignored[:, None], 0.0))
    return loss.masked_fill(ignored, 0.0), (wide.argmax(-1) == target_N) & ~ignored


@torch.library.custom_op("fused_kernels::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss sum, correct, dhidden, dweight, dbias); the gradients are empty if not asked for."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
    dhidden, dweight, dbias = _gradient_buffers(hidden, weight, bias, with_gradient)
    product_weight = weight.to(hidden.dtype)
    for rows in (slice(start, start + CHUNK) for start in range(0, hidden.shape[0], CHUNK)):
        logits_NV = _logits(hidden[rows], product_weight)
        losses_N, correct_N = _softmax_gradient_(logits_NV, bias, target[rows], with_gradient)
        loss += losses_N.sum()
        correct += correct_N.sum()
        if with_gradient:
            torch.mm(logits_NV, product_weight, out=dhidden[rows])
            dbias += logits_NV.sum(0, dtype=dbias.dtype)
            if dweight.dtype == logits_NV.dtype:
                dweight.addmm_(logits_NV.T, hidden[rows])
            else:
                dweight += logits_NV.T @ hidden[rows]
    return loss, correct, dhidden, dweight, dbias


def _logits(hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
    if not runs_triton(hidden_NH):
        return hidden_NH @ weight_VH.T
    from kernels.cross_entropy_kernel import padded_logits

    return torch.mm(hidden_NH, weight_VH.T, out=padded_logits(len(hidden_NH), len(weight_VH), hidden_NH))


def _gradient_buffers(hidden: Tensor, weight: Tensor, bias: Tensor, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    if not wanted:
        return hidden.new_empty(0), weight.new_empty(0), bias.new_empty(0)
    wide = torch.promote_types(bias.dtype, torch.float32)
    return (
        hidden.new_empty(hidden.shape),
        weight.new_zeros(weight.shape),
        bias.new_zeros(bias.shape, dtype=wide),
    )


@_linear_cross_entropy.register_fake
def _linear_cross_entropy_fake(hidden, weight, bias, target, with_gradient):
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = hidden.new_empty((), dtype=wide)
    return loss, target.new_empty(()), *_gradient_buffers(hidden, weight, bias, with_gradient)


def _save(ctx, inputs, output) -> None:
    _, correct, *gradients = output
    ctx.mark_non_differentiable(correct, *gradients)
    ctx.save_for_backward(*gradients)
    ctx.bias_dtype = inputs[2].dtype


def _autograd(ctx, dloss: Tensor, *_):
    dhidden, dweight, dbias = (dloss.to(gradient.dtype) * gradient for gradient in ctx.saved_tensors)
    return dhidden, dweight, dbias.to(ctx.bias_dtype), None, None


_linear_cross_entropy.register_autograd(_autograd, setup_context=_save)
