"""One row of logits → its cross-entropy, and, in place, the gradient softmax − one-hot: read twice, written once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import on_device

BLOCK, WARPS = 4096, 8


@triton.jit
def cross_entropy_kernel(
    logits_ptr,
    bias_ptr,
    target_ptr,
    loss_ptr,
    correct_ptr,
    stride,
    vocabulary,
    BLOCK: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """One program per row of `logits_ptr` (rows, vocabulary); `loss_ptr` fp32 and `correct_ptr` int32 are (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * stride
    target = tl.load(target_ptr + row)
    column = tl.arange(0, BLOCK)
    m = float("-inf")  # running maximum and Σ exp(logit − m): the online softmax of kernels/attention_forward_kernel.py
    denom = 0.0
    best = float("-inf")
    best_column = 0
    for start in range(0, vocabulary, BLOCK):
        inside = start + column < vocabulary
        x = tl.load(logits + start + column, mask=inside, other=float("-inf")).to(tl.float32)
        x += tl.load(bias_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
        top, where = tl.max(x, 0, return_indices=True)
        best_column = tl.where(top > best, start + where, best_column)
        best = tl.maximum(top, best)
        m_new = tl.maximum(m, top)
        denom = denom * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new), 0)
        m = m_new
    own = tl.load(logits + target).to(tl.float32) + tl.load(bias_ptr + target).to(tl.float32)
    tl.store(loss_ptr + row, m + tl.log(denom) - own)
    tl.store(correct_ptr + row, (best_column == target).to(tl.int32))
    if GRADIENT:
        tl.debug_barrier()  # every thread has read its logits, and `own`, before any of them is overwritten
        for start in range(0, vocabulary, BLOCK):
            inside = start + column < vocabulary
            x = tl.load(logits + start + column, mask=inside, other=float("-inf")).to(tl.float32)
            x += tl.load(bias_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
            gradient = tl.exp(x - m) / denom - tl.where(start + column == target, 1.0, 0.0)
            tl.store(logits + start + column, gradient.to(logits_ptr.dtype.element_ty), mask=inside)


def launch_cross_entropy_(
    logits_NV: Tensor,
    bias_V: Tensor,
    target_N: Tensor,
    with_gradient: bool,
    empty: Callable[..., Tensor] = torch.empty,
) -> tuple[Tensor, Tensor]:
    """(loss (N,) fp32, correct (N,) int32). Turns `logits_NV` into the gradient with respect to itself if asked to."""
    rows, vocabulary = logits_NV.shape
    loss_N = empty(rows, dtype=torch.float32, device=logits_NV.device)
    correct_N = torch.empty(rows, dtype=torch.int32, device=logits_NV.device)
    with on_device(logits_NV):
        cross_entropy_kernel[(rows,)](
            logits_NV,
            bias_V,
            target_N,
            loss_N,
            correct_N,
            logits_NV.stride(0),
            vocabulary,
            BLOCK=BLOCK,
            GRADIENT=with_gradient,
            num_warps=WARPS,
        )
    return loss_N, correct_N
