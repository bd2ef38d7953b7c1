"""Variable-length fused attention as PyTorch ops: what a model calls.

Two entries, one implementation: `attention_varlen` takes q, k and v apart, `attention_varlen_qkv` takes the packed output
of one projection. Prefer the second: its gradient is one tensor that the kernels write in place, while autograd would
build it from three by copying (six tensor moves of T · H · D).

The ops are opaque to torch.compile (`custom_op`): the launcher chooses a configuration by device. On a CPU tensor they
run kernels/attention_reference.py, so a model that uses them runs, and compiles, anywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.attention_config import HEAD_DIMS
from kernels.attention_masks import masks_shape
from kernels.attention_reference import attention_backward_reference, attention_forward_reference
from kernels.attention_tiles import AttentionPlan, attention_plan, check_cu_seqlens
from kernels.device import runs_triton
from kernels.dropout import seed_tensor, threshold_of


def attention_varlen(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    seed: Tensor | int = 0,
    scale: float | None = None,
    plan: AttentionPlan | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ) v within each sequence of a packed batch (Vaswani et al. 2017, §3.2.1), bidirectional.

    Args:
        q_THD, k_THD, v_THD: (T, heads, head_dim) fp16, bf16 or fp32 (on a CPU also fp64); head_dim 32, 64 or 128 on a GPU.
            Any strides, provided the last dimension's is 1 (otherwise it is copied): views of one projection are fine.
        cu_seqlens: (B + 1,) int32 on the same device; sequence b holds tokens cu_seqlens[b] … cu_seqlens[b + 1] − 1.
            Lengths may be 0. Tokens from cu_seqlens[B] to T belong to no sequence: zeros out, zero gradients.
        max_seqlen: at least the longest length. It sizes the dropout masks; on a GPU, where lengths are not read, a
            sequence that is longer gets NaN under dropout.
        dropout_p: share of the attention probabilities dropped, in [0, 1), met to 1/8192.
        seed: key of the dropout mask (kernels/dropout.py). One int64 tensor on the device, or a number.
        scale: factor of the scores, positive; 1/√head_dim by default.
        plan: `attention_plan(...)` of this batch, to share among layers; made here if absent.

    Returns:
        (T, heads, head_dim) in q's dtype, contiguous. Under autocast q, k and v are cast to its dtype first.

    Raises:
        ValueError: shapes, dtypes, devices or ranges that do not fit; on a CPU also max_seqlen below a length.
    """
    q_THD, k_THD, v_THD = (autocast_input(x) for x in (q_THD, k_THD, v_THD))
    if not q_THD.shape == k_THD.shape == v_THD.shape or q_THD.dim() != 3:
        raise ValueError(f"q, k, v must share one shape (T, H, D), got {q_THD.shape}, {k_THD.shape}, {v_THD.shape}")
    if not q_THD.dtype == k_THD.dtype == v_THD.dtype:
        raise ValueError(f"q, k, v must share one dtype, got {q_THD.dtype}, {k_THD.dtype}, {v_THD.dtype}")
    arguments = _arguments(q_THD, cu_seqlens, max_seqlen, dropout_p, seed, scale, plan)
    return torch.ops.fused_kernels.attention(q_THD, k_THD, v_THD, *arguments)[0]


def attention_varlen_qkv(
    qkv_T3HD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    seed: Tensor | int = 0,
    scale: float | None = None,
    plan: AttentionPlan | None = None,
) -> Tensor:
    """`attention_varlen` of the packed projection (T, 3, heads, head_dim), whose gradient comes back as one tensor."""
    qkv_T3HD = autocast_input(qkv_T3HD)
    if qkv_T3HD.dim() != 4 or qkv_T3HD.shape[1] != 3:
        raise ValueError(f"qkv must have the shape (T, 3, H, D), got {tuple(qkv_T3HD.shape)}")
    arguments = _arguments(qkv_T3HD[:, 0], cu_seqlens, max_seqlen, dropout_p, seed, scale, plan)
    return torch.ops.fused_kernels.attention_qkv(qkv_T3HD, *arguments)[0]


def autocast_input(x: Tensor) -> Tensor:
    """The tensor as autocast wants a matrix product's operand."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _arguments(
    q_THD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float,
    seed: Tensor | int,
    scale: float | None,
    plan: AttentionPlan | None,
) -> tuple[Tensor, Tensor, int, int, Tensor | None, float, float]:
    """Check what can be checked without a sync; fill in plan, scale and seed."""
    check_cu_seqlens(cu_seqlens)
    total, _, head_dim = q_THD.shape
    if runs_triton(q_THD) and (head_dim not in HEAD_DIMS or q_THD.dtype is torch.float64):
        raise ValueError(
            f"the kernels take head_dim in {HEAD_DIMS} and fp16, bf16 or fp32, got {head_dim}, {q_THD.dtype}"
        )
    if cu_seqlens.device != q_THD.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, q on {q_THD.device}")
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    if not scale > 0.0:
        raise ValueError(f"scale must be positive, got {scale}")
    if plan is None:
        plan = attention_plan(cu_seqlens, total, head_dim, q_THD.dtype)
    tall = q_THD.dtype in (torch.float16, torch.bfloat16)
    if plan.tile < 64 if tall else plan.tile > 32:
        raise ValueError(f"the plan was made for another dtype than {q_THD.dtype}: its tiles have {plan.tile} rows")
    dropped = threshold_of(dropout_p) > 0
    mask_seed = seed_tensor(seed, q_THD.device) if dropped else None
    return cu_seqlens, plan.tiles, plan.tile, max_seqlen, mask_seed, scale, dropout_p if dropped else 0.0


def _forward(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    cu_seqlens: Tensor,
    tiles: Tensor,
    tile: int,
    max_seqlen: int,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, lse, masks of kernels.attention_masks — empty without dropout and where the reference runs)."""
    if not cu_seqlens.is_cuda and cu_seqlens.shape[0] > 1 and int(cu_seqlens.diff().max()) > max_seqlen:
        longest = int(cu_seqlens.diff().max())
        raise ValueError(f"max_seqlen is {max_seqlen}, but the longest sequence has {longest} tokens")
    masks = q_THD.new_empty(0, dtype=torch.int32)
    if not runs_triton(q_THD):
        return *attention_forward_reference(q_THD, k_THD, v_THD, cu_seqlens, scale, dropout_p, _number(seed)), masks
    from kernels.attention_launch import config_for, launch_attention_forward

    if dropout_p > 0.0:
        from kernels.attention_masks_kernel import launch_attention_masks

        masks = launch_attention_masks(tiles, tile, q_THD.shape[1], max_seqlen, seed, dropout_p)
    q_THD, k_THD, v_THD = (_unit_stride(x) for x in (q_THD, k_THD, v_THD))
    config = config_for(q_THD, tile)
    out, lse = launch_attention_forward(
        q_THD, k_THD, v_THD, tiles, config, scale, dropout_p, masks if dropout_p > 0.0 else None
    )
    return out, lse, masks


def _forward_fake(
    q_THD: Tensor, tiles: Tensor, tile: int, max_seqlen: int, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(q_THD.dtype, torch.float32)
    drawn = runs_triton(q_THD) and dropout_p > 0.0
    shape = masks_shape(q_THD.shape[1], max_seqlen, tiles.shape[0], tile) if drawn else (0,)
    return (
        q_THD.new_empty(q_THD.shape),
        q_THD.new_empty((q_THD.shape[1], q_THD.shape[0]), dtype=wide),
        q_THD.new_empty(shape, dtype=torch.int32),
    )


def _number(seed: Tensor | None) -> int:
    return 0 if seed is None else int(seed)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("fused_kernels::attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    tiles: Tensor,
    tile: int,
    max_seqlen: int,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(q, k, v, cu_seqlens, tiles, tile, max_seqlen, seed, scale, dropout_p)


@_attention.register_fake
def _attention_fake(q, k, v, cu_seqlens, tiles, tile, max_seqlen, seed, scale, dropout_p):
    return _forward_fake(q, tiles, tile, max_seqlen, dropout_p)


@torch.library.custom_op("fused_kernels::attention_qkv", mutates_args=())
def _attention_qkv(
    qkv: Tensor,
    cu_seqlens: Tensor,
    tiles: Tensor,
    tile: int,
    max_seqlen: int,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(*qkv.unbind(1), cu_seqlens, tiles, tile, max_seqlen, seed, scale, dropout_p)


@_attention_qkv.register_fake
def _attention_qkv_fake(qkv, cu_seqlens, tiles, tile, max_seqlen, seed, scale, dropout_p):
    return _forward_fake(qkv[:, 0], tiles, tile, max_seqlen, dropout_p)


@torch.library.custom_op("fused_kernels::attention_backward", mutates_args=())
def _attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    masks: Tensor,
    cu_seqlens: Tensor,
    tiles: Tensor,
    tile: int,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """(T, 3, H, D): the gradients with respect to q, k and v."""
    if not runs_triton(q):
        return attention_backward_reference(dout, q, k, v, out, lse, cu_seqlens, scale, dropout_p, _number(seed))
    from kernels.attention_launch import config_for, launch_attention_backward

    q, k, v, dout = (_unit_stride(x) for x in (q, k, v, dout))
    masks = masks if dropout_p > 0.0 else None
    return launch_attention_backward(dout, q, k, v, out, lse, tiles, config_for(q, tile), scale, dropout_p, masks)


@_attention_backward.register_fake
def _attention_backward_fake(dout, q, k, v, out, lse, masks, cu_seqlens, tiles, tile, seed, scale, dropout_p):
    return q.new_empty((q.shape[0], 3, q.shape[1], q.shape[2]))


def _save(ctx, inputs, output) -> None:
    *operands, cu_seqlens, tiles, tile, _max_seqlen, seed, scale, dropout_p = inputs
    out, lse, masks = output
    ctx.mark_non_differentiable(lse, masks)
    ctx.save_for_backward(*operands, out, lse, masks, cu_seqlens, tiles, seed)
    ctx.tile, ctx.scale, ctx.dropout_p = tile, scale, dropout_p


def _gradient(ctx, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: tuple) -> Tensor:
    out, lse, masks, cu_seqlens, tiles, seed = saved
    return torch.ops.fused_kernels.attention_backward(
        dout, q, k, v, out, lse, masks, cu_seqlens, tiles, ctx.tile, seed, ctx.scale, ctx.dropout_p
    )


def _attention_autograd(ctx, dout: Tensor, _dlse, _dmasks):
    q, k, v, *saved = ctx.saved_tensors
    return *_gradient(ctx, dout, q, k, v, saved).unbind(1), None, None, None, None, None, None, None


def _attention_qkv_autograd(ctx, dout: Tensor, _dlse, _dmasks):
    qkv, *saved = ctx.saved_tensors
    return _gradient(ctx, dout, *qkv.unbind(1), saved), None, None, None, None, None, None, None


_attention.register_autograd(_attention_autograd, setup_context=_save)
_attention_qkv.register_autograd(_attention_qkv_autograd, setup_context=_save)
