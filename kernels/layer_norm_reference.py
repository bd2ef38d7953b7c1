"""LayerNorm (Ba et al. 2016) and the fused dropout-add-LayerNorm in plain PyTorch: the reference, and the CPU's version."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dropout import ELEMENTWISE_CALL, keep_mask, keep_scale_of


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """γ (x − mean) / √(var + eps) + β over the last dimension, computed in fp32 (fp64 for fp64), in x's dtype."""
    return layer_norm_forward_reference(x, None, None, weight, bias, 0.0, eps, 0, x.dtype)[0]


def dropout_add_layer_norm_reference(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    ln_bias: Tensor,
    p: float,
    eps: float,
    seed: int = 0,
) -> Tensor:
    """LayerNorm(residual + dropout(x + bias)), differentiable by autograd."""
    return layer_norm_forward_reference(x, bias, residual, weight, ln_bias, p, eps, seed, residual.dtype)[0]


def layer_norm_forward_reference(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    ln_bias: Tensor,
    p: float,
    eps: float,
    seed: int,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, 1/√(var + eps)): what the forward kernel returns. x is (N, C); the statistics (N,) fp32 or fp64."""
    z = _summed(x, bias, residual, p, seed)
    mean = z.mean(-1, keepdim=True)
    rstd = torch.rsqrt((z - mean).square().mean(-1, keepdim=True) + eps)
    y = (z - mean) * rstd * weight.to(z.dtype) + ln_bias.to(z.dtype)
    return y.to(out_dtype), mean.squeeze(-1), rstd.squeeze(-1)


def layer_norm_backward_reference(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dresidual, dγ, dβ, dbias) in fp32 (fp64), by the formulas of kernels/layer_norm_kernel.py."""
    z = _summed(x, bias, residual, p, seed)
    normal = (z - mean[:, None]) * rstd[:, None]
    dy = dy.to(z.dtype)
    weighted = dy * weight.to(z.dtype)
    along = (weighted * normal).mean(-1, keepdim=True)
    dz = (weighted - weighted.mean(-1, keepdim=True) - normal * along) * rstd[:, None]
    dx = dz * _keep(x, p, seed, z.dtype) if p > 0.0 else dz
    return dx, dz, (dy * normal).sum(0), dy.sum(0), dx.sum(0)


def _summed(x: Tensor, bias: Tensor | None, residual: Tensor | None, p: float, seed: int) -> Tensor:
    """residual + dropout(x + bias) in fp32 or wider; x alone for the plain LayerNorm."""
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    if bias is not None:
        z = z + bias.to(z.dtype)
    if p > 0.0:
        z = z * _keep(x, p, seed, z.dtype)
    return z if residual is None else z + residual.to(z.dtype)


def _keep(x: Tensor, p: float, seed: int, dtype: torch.dtype) -> Tensor:
    """keep ∘ 1/(keep share), keyed by (seed, row, column)."""
    columns = x.shape[-1]
    row = torch.arange(x.numel() // max(columns, 1), device=x.device)
    mask = keep_mask(seed, torch.zeros_like(row), row, columns, p, ELEMENTWISE_CALL)
    return mask.view(x.shape).to(dtype) * keep_scale_of(p)
