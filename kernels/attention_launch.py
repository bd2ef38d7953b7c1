"""Launchers of the attention kernels: allocate the outputs, choose the configuration, fill in strides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.attention_backward_kernel import attention_dkdv_kernel, attention_dq_kernel
from kernels.attention_config import AttentionConfig, attention_config, peeled
from kernels.attention_forward_kernel import attention_forward_kernel
from kernels.device import capability, interpreted, on_device
from kernels.dropout import keep_scale_of

LOG2_E = 1.4426950408889634


def launch_attention_forward(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    tiles: Tensor,
    config: AttentionConfig,
    scale: float,
    dropout_p: float,
    masks: Tensor | None,
    empty: Callable[..., Tensor] = torch.empty,
) -> tuple[Tensor, Tensor]:
    """(output (T, H, D) contiguous, lse (H, T) fp32). `masks`: of kernels.attention_masks, for `dropout_p` > 0. `empty`
    allocates the outputs: tests hand in a poisoned one."""
    total, heads, head_dim = q_THD.shape
    out_THD = empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_HT = empty(heads, total, dtype=torch.float32, device=q_THD.device)
    choice = config.forward
    with on_device(q_THD):
        attention_forward_kernel[(heads * tiles.shape[0],)](
            q_THD,
            k_THD,
            v_THD,
            out_THD,
            lse_HT,
            tiles,
            masks if masks is not None else tiles,  # never read without dropout, but a pointer it must be
            *_strides(q_THD, k_THD, v_THD, out_THD),
            total,
            heads,
            *_mask_sizes(masks),
            scale * LOG2_E,
            keep_scale_of(dropout_p),
            HEAD_DIM=head_dim,
            TILE=config.tile,
            BLOCK=choice.block,
            DROPOUT=dropout_p > 0.0,
            PRECISION=precision(q_THD.dtype),
            COMPILED=not interpreted(),
            PEEL=peeled(capability(q_THD.device), q_THD.dtype),
            num_warps=choice.num_warps,
            num_stages=choice.num_stages,
        )
    return out_THD, lse_HT


def launch_attention_backward(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    tiles: Tensor,
    config: AttentionConfig,
    scale: float,
    dropout_p: float,
    masks: Tensor | None,
    empty: Callable[..., Tensor] = torch.empty,
) -> Tensor:
    """The three gradients in one buffer (T, 3, H, D): the gradient of a packed QKV projection without a copy."""
    total, heads, head_dim = q_THD.shape
    dqkv_T3HD = empty(total, 3, heads, head_dim, dtype=q_THD.dtype, device=q_THD.device)
    delta_HT = empty(heads, total, dtype=torch.float32, device=q_THD.device)
    dq_THD, dk_THD, dv_THD = dqkv_T3HD.unbind(1)
    numbers = (total, heads, *_mask_sizes(masks), scale, scale * LOG2_E, keep_scale_of(dropout_p))
    masks = masks if masks is not None else tiles
    constants = {
        "HEAD_DIM": head_dim,
        "TILE": config.tile,
        "DROPOUT": dropout_p > 0.0,
        "PRECISION": precision(q_THD.dtype),
        "COMPILED": not interpreted(),
    }
    grid = (heads * tiles.shape[0],)
    with on_device(q_THD):
        attention_dq_kernel[grid](
            q_THD,
            k_THD,
            v_THD,
            out_THD,
            dout_THD,
            dq_THD,
            lse_HT,
            delta_HT,
            tiles,
            masks,
            *_strides(q_THD, k_THD, v_THD, out_THD, dout_THD, dq_THD),
            *numbers,
            **constants,
            BLOCK=config.dq.block,
            num_warps=config.dq.num_warps,
            num_stages=config.dq.num_stages,
        )
        attention_dkdv_kernel[grid](
            q_THD,
            k_THD,
            v_THD,
            dout_THD,
            dk_THD,
            dv_THD,
            lse_HT,
            delta_HT,
            tiles,
            masks,
            *_strides(q_THD, k_THD, v_THD, dout_THD, dk_THD, dv_THD),
            *numbers,
            **constants,
            BLOCK=config.dkdv.block,
            num_warps=config.dkdv.num_warps,
            num_stages=config.dkdv.num_stages,
        )
    return dqkv_T3HD


def config_for(q_THD: Tensor, tile: int) -> AttentionConfig:
    return attention_config(capability(q_THD.device), q_THD.shape[2], q_THD.dtype, tile)


def precision(dtype: torch.dtype) -> str:
    """fp32 operands are multiplied in fp32, not in tf32: PyTorch's own default, and what the error bounds ask for."""
    return "ieee" if dtype is torch.float32 else "tf32"


def _mask_sizes(masks: Tensor | None) -> tuple[int, int]:
    """(words, mask rows); numbers as divisible as real ones where there are no masks, or a kernel would compile anew."""
    return (4, 32) if masks is None else (masks.shape[1], masks.shape[2])


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]
