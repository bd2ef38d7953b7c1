"""Bias and exact GELU (Hendrycks and Gimpel 2016) in one op."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.device import runs_triton


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias) = z Φ(z), the erf form, computed in fp32.

    Args:
        x: (…, C) fp16, bf16 or fp32: a product without its bias. `bias`: (C,), any floating dtype.

    Returns:
        x's shape and dtype, contiguous.

    Raises:
        ValueError: shapes that do not fit.
    """
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit x {tuple(x.shape)}")
    return torch.ops.fused_kernels.bias_gelu(x.reshape(-1, x.shape[-1]), bias).view(x.shape)


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """The reference, differentiable by autograd."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.gelu(x.to(wide) + bias.to(wide)).to(x.dtype)


def bias_gelu_backward_reference(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(dx in x's dtype, dbias in fp32 or fp64): dx = dy (Φ(z) + z φ(z))."""
    wide = torch.promote_types(x.dtype, torch.float32)
    z = x.to(wide) + bias.to(wide)
    density = torch.exp(-0.5 * z * z) * 0.3989422804014327
    dx = dy.to(wide) * (0.5 * (1.0 + torch.erf(z * 0.7071067811865476)) + z * density)
    return dx.to(x.dtype), dx.sum(0)


@torch.library.custom_op("fused_kernels::bias_gelu", mutates_args=())
def _bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    if not runs_triton(x):
        return bias_gelu_reference(x, bias).contiguous()
    from kernels.gelu_kernel import launch_bias_gelu_forward

    return launch_bias_gelu_forward(_unit_stride(x), bias)


@_bias_gelu.register_fake
def _bias_gelu_fake(x, bias):
    return x.new_empty(x.shape)


@torch.library.custom_op("fused_kernels::bias_gelu_backward", mutates_args=())
def _bias_gelu_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    if not runs_triton(x):
        dx, dbias = bias_gelu_backward_reference(dy, x, bias)
        return dx.contiguous(), dbias
    from kernels.gelu_kernel import launch_bias_gelu_backward

    return launch_bias_gelu_backward(_unit_stride(dy), _unit_stride(x), bias)


@_bias_gelu_backward.register_fake
def _bias_gelu_backward_fake(dy, x, bias):
    return x.new_empty(x.shape), x.new_empty(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx, dy: Tensor):
    x, bias = ctx.saved_tensors
    dx, dbias = torch.ops.fused_kernels.bias_gelu_backward(dy, x, bias)
    return dx, dbias.to(bias.dtype)


_bias_gelu.register_autograd(_autograd, setup_context=_save)
