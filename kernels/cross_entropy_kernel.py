"""One row of logits → its cross-entropy, and, in place, the gradient softmax − one-hot: read twice, written once."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.cross_entropy_config import IGNORED
from kernels.device import on_device

BLOCK, WARPS = 4096, 8
#: A row of logits starts at a multiple of this many elements, whatever the vocabulary: 16-byte loads in any dtype.
ALIGNMENT = 16


@triton.jit(do_not_specialize=["vocabulary"])
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
    IGNORED: tl.constexpr,
):
    """One program per row of `logits_ptr` (rows, vocabulary); `loss_ptr` fp32 and `correct_ptr` int32 are (rows,).

    Rows are `stride` ≥ vocabulary apart, a multiple of 16, and what lies between belongs to this kernel: a block that is
    bounded by the stride is loaded and stored in vectors, one bounded by the vocabulary would be in single numbers.
    A target IGNORED has loss and gradient 0; another outside the vocabulary has loss and gradient NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * stride
    target = tl.load(target_ptr + row)
    known = (target >= 0) & (target < vocabulary)
    wanted = tl.where(known, target, 0)  # never read outside the row
    # times 1 for a target of the vocabulary, 0 for an ignored one, NaN for nonsense: refused without a device sync
    counts = tl.where(known, 1.0, tl.where(target == IGNORED, 0.0, float("nan")))
    column = tl.arange(0, BLOCK)
    m = float("-inf")  # running maximum and Σ exp(logit − m): the online softmax of kernels/attention_forward_kernel.py
    denom = 0.0
    best = float("-inf")
    best_column = 0
    for start in range(0, vocabulary, BLOCK):
        inside = start + column < vocabulary
        x = tl.load(logits + start + column, mask=start + column < stride, other=0.0).to(tl.float32)
        x += tl.load(bias_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
        x = tl.where(inside, x, float("-inf"))
        top, where = tl.max(x, 0, return_indices=True)
        best_column = tl.where(top > best, start + where, best_column)
        best = tl.maximum(top, best)
        m_new = tl.maximum(m, top)
        denom = denom * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new), 0)
        m = m_new
    own = tl.load(logits + wanted).to(tl.float32) + tl.load(bias_ptr + wanted).to(tl.float32)
    tl.store(loss_ptr + row, tl.where(target == IGNORED, 0.0, (m + tl.log(denom) - own) * counts))
    tl.store(correct_ptr + row, (best_column == target).to(tl.int32))
    if GRADIENT:
        tl.debug_barrier()  # every thread has read its logits, and `own`, before any of them is overwritten
        for start in range(0, vocabulary, BLOCK):
            inside = start + column < vocabulary
            row_in = start + column < stride
            x = tl.load(logits + start + column, mask=row_in, other=0.0).to(tl.float32)
            x += tl.load(bias_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
            x = tl.where(inside, x, float("-inf"))  # zeros between the rows
            gradient = tl.exp(x - m) / denom - tl.where(start + column == target, 1.0, 0.0)
            gradient = tl.where(target == IGNORED, 0.0, gradient * counts)
            tl.store(logits + start + column, gradient.to(logits_ptr.dtype.element_ty), mask=row_in)


def padded_logits(rows: int, vocabulary: int, like: Tensor) -> Tensor:
    """An unwritten (rows, vocabulary) whose rows start at multiples of 16 elements."""
    width = triton.cdiv(vocabulary, ALIGNMENT) * ALIGNMENT
    return torch.empty(rows, width, dtype=like.dtype, device=like.device)[:, :vocabulary]


def launch_cross_entropy_(
    logits_NV: Tensor,
    bias_V: Tensor,
    target_N: Tensor,
    with_gradient: bool,
    empty: Callable[..., Tensor] = torch.empty,
) -> tuple[Tensor, Tensor]:
    """(loss (N,) fp32, correct (N,) int32). Turns `logits_NV` into the gradient with respect to itself if asked to.

    `logits_NV` is of `padded_logits`: what lies between its rows is overwritten.
    """
    rows, vocabulary = logits_NV.shape
    assert logits_NV.stride(0) % ALIGNMENT == 0 and logits_NV.stride(1) == 1, logits_NV.stride()
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
            IGNORED=IGNORED,
            num_warps=WARPS,
        )
    return loss_N, correct_N
