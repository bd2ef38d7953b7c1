"""LayerNorm and the fused dropout-add-LayerNorm as PyTorch ops: what a model calls. On a CPU tensor the reference runs."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.device import runs_triton
from kernels.dropout import seed_tensor, threshold_of
from kernels.layer_norm_reference import layer_norm_backward_reference, layer_norm_forward_reference


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension (Ba et al. 2016): γ (x − mean) / √(var + eps) + β.

    Args:
        x: (…, C), fp16, bf16 or fp32, C ≤ 8,192; statistics are taken and saved in fp32.
        weight, bias: (C,) γ and β, of any floating dtype (fp32 masters beside bf16 activations are fine).

    Returns:
        x's shape and dtype; under autocast the autocast dtype, since a matrix product comes next.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(x, weight, bias)
    flat = _rows(x)
    return torch.ops.fused_kernels.layer_norm(flat, None, None, weight, bias, None, 0.0, eps, _out_dtype(x))[0].view(
        x.shape
    )


def dropout_add_layer_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    ln_bias: Tensor,
    p: float,
    eps: float,
    seed: Tensor | int = 0,
) -> Tensor:
    """LayerNorm(residual + dropout(x + bias)): how both halves of an encoder layer end, in one pass.

    Args:
        x: (…, C) output of the product without its bias; `bias` (C,).
        residual: (…, C), of x's shape; its dtype may differ.
        weight, ln_bias: (C,) γ and β.
        p: dropout probability in [0, 1), met to 1/8192; 0 outside training.
        seed: key of the mask, which is a function of (seed, row, column): one int64 tensor on the device, or a number.
            Give every call of a step its own.

    Returns:
        x's shape in residual's dtype; under autocast in the autocast dtype.

    Raises:
        ValueError: shapes that do not fit, p outside [0, 1).
    """
    _check(x, weight, ln_bias)
    if residual.shape != x.shape or bias.shape != weight.shape:
        raise ValueError(f"x {tuple(x.shape)}, residual {tuple(residual.shape)}, bias {tuple(bias.shape)} do not fit")
    dropped = threshold_of(p) > 0
    return torch.ops.fused_kernels.layer_norm(
        _rows(x),
        bias,
        _rows(residual),
        weight,
        ln_bias,
        seed_tensor(seed, x.device) if dropped else None,
        p if dropped else 0.0,
        eps,
        _out_dtype(residual),
    )[0].view(x.shape)


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    columns = x.shape[-1]
    if weight.shape != (columns,) or bias.shape != (columns,):
        raise ValueError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must be ({columns},) like x's rows"
        )
    if runs_triton(x) and columns > 8192:
        raise ValueError(f"rows of {columns} do not fit in registers: at most 8192")


def _rows(x: Tensor) -> Tensor:
    """(N, C) with unit stride along C: a view where possible."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 or flat.numel() == 0 else flat.contiguous()


def _out_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@torch.library.custom_op("fused_kernels::layer_norm", mutates_args=())
def _layer_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    ln_bias: Tensor,
    seed: Tensor | None,
    p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y (N, C), mean (N,), rstd (N,))."""
    if not runs_triton(x):
        number = 0 if seed is None else int(seed)
        return layer_norm_forward_reference(x, bias, residual, weight, ln_bias, p, eps, number, out_dtype)
    from kernels.layer_norm_launch import launch_layer_norm_forward

    return launch_layer_norm_forward(x, bias, residual, weight, ln_bias, p, eps, seed, out_dtype)


@_layer_norm.register_fake
def _layer_norm_fake(x, bias, residual, weight, ln_bias, seed, p, eps, out_dtype):
    statistics = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    return x.new_empty(x.shape, dtype=out_dtype), statistics, torch.empty_like(statistics)


@torch.library.custom_op("fused_kernels::layer_norm_backward", mutates_args=())
def _layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dresidual — empty where it equals dx —, (3, C) sums of dγ, dβ, dbias in fp32)."""
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    if runs_triton(x):
        from kernels.layer_norm_launch import launch_layer_norm_backward

        return launch_layer_norm_backward(dy, x, bias, residual, weight, mean, rstd, p, seed)
    number = 0 if seed is None else int(seed)
    dx, dresidual, *sums = layer_norm_backward_reference(dy, x, bias, residual, weight, mean, rstd, p, number)
    fused = residual is not None
    two = fused and (p > 0.0 or residual.dtype != x.dtype)
    dresidual = dresidual.to(residual.dtype) if two else x.new_empty(0, dtype=(residual if fused else x).dtype)
    return dx.to(x.dtype), dresidual, torch.stack(sums)


@_layer_norm_backward.register_fake
def _layer_norm_backward_fake(dy, x, bias, residual, weight, mean, rstd, seed, p):
    fused = residual is not None
    two = fused and (p > 0.0 or residual.dtype != x.dtype)
    like = residual if fused else x
    dresidual = like.new_empty(x.shape if two else (0,))
    return x.new_empty(x.shape), dresidual, x.new_empty((3, x.shape[1]), dtype=mean.dtype)


def _save(ctx, inputs, output) -> None:
    x, bias, residual, weight, ln_bias, seed, p, _eps, _out = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, bias, residual, weight, mean, rstd, seed)
    ctx.p, ctx.ln_bias_dtype = p, ln_bias.dtype


def _autograd(ctx, dy: Tensor, _dmean, _drstd):
    x, bias, residual, weight, mean, rstd, seed = ctx.saved_tensors
    dx, dresidual, sums = torch.ops.fused_kernels.layer_norm_backward(
        dy, x, bias, residual, weight, mean, rstd, seed, ctx.p
    )
    dweight, dln_bias, dbias = sums.unbind(0)
    dweight, dln_bias = dweight.to(weight.dtype), dln_bias.to(ctx.ln_bias_dtype)
    if residual is None:
        return dx, None, None, dweight, dln_bias, None, None, None, None
    dresidual = dresidual if dresidual.dim() == 2 else dx
    return dx, dbias.to(bias.dtype), dresidual, dweight, dln_bias, None, None, None, None


_layer_norm.register_autograd(_autograd, setup_context=_save)
