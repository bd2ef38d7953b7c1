"""Attention forward: one program per (tile of queries, head), the keys streamed past it with an online softmax.

After Dao, "FlashAttention-2" (2023, §3.1), for packed batches. docs/kernels.md derives the recurrence.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.dropout_kernel import drop_and_round


@triton.jit
def _accumulate(
    s,
    v_ptrs,
    v_mask,
    keep,
    acc,
    m,
    denom,
    scale_log2,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPILED: tl.constexpr,
):
    """One block of scores into the running output, maximum and denominator: the online softmax."""
    m_new = tl.maximum(m, tl.max(s, 1) * scale_log2)
    p = tl.exp2(s * scale_log2 - m_new[:, None])
    rescale = tl.exp2(m - m_new)
    denom = denom * rescale + tl.sum(p, 1)
    v_type: tl.constexpr = v_ptrs.dtype.element_ty
    if DROPOUT:  # after the sum: dropout acts on the normalised probabilities
        dropped = drop_and_round(p, keep.to(tl.uint32, bitcast=True), v_type, COMPILED)
    else:
        dropped = p.to(v_type)
    acc = acc * rescale[:, None]
    if v_mask is None:
        v = tl.load(v_ptrs)
    else:
        v = tl.load(v_ptrs, mask=v_mask, other=0.0)
    acc = tl.dot(dropped, v, acc, input_precision=PRECISION)
    return acc, m_new, denom


@triton.jit(do_not_specialize=["total", "heads", "words"])  # or each batch size would compile anew
def attention_forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    tiles_ptr,
    masks_ptr,
    q_stride_t,
    q_stride_h,
    k_stride_t,
    k_stride_h,
    v_stride_t,
    v_stride_h,
    out_stride_t,
    out_stride_h,
    total,
    heads,
    words,
    mask_rows,
    scale_log2,
    keep_scale,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPILED: tl.constexpr,
    PEEL: tl.constexpr,
):
    """`tiles_ptr`: (slots, 4) int32 of kernels.attention_tiles; grid heads · slots, so long tiles of all heads go first.

    `masks_ptr` (heads, words, mask_rows): kernels.attention_masks; read with DROPOUT only.

    PEEL: the last block, the only one that can hold keys that are not there, stands behind the loop, which Hopper's matrix instructions need to overlap; elsewhere the second
    copy of the loop's body costs registers.

    Scores are kept in base 2 (scale_log2 = scale · log2 e): exp2 is one instruction. `lse_ptr` (heads, total) receives
    m + log2(denominator), fp32. Strides are in elements; the last dimension has stride 1.
    """
    head = tl.program_id(0) % heads
    slot = tl.program_id(0) // heads
    row_start = tl.load(tiles_ptr + 4 * slot)
    row_end = tl.load(tiles_ptr + 4 * slot + 1)
    key_start = tl.load(tiles_ptr + 4 * slot + 2)
    key_end = tl.load(tiles_ptr + 4 * slot + 3)
    if row_start >= row_end:  # the table is as long as the worst case: unused slots end here
        return

    # Products that can pass 2³¹ are scalars in int64; offsets inside a tile are small and stay int32.
    q_base = q_ptr + row_start.to(tl.int64) * q_stride_t + head.to(tl.int64) * q_stride_h
    k_base = k_ptr + key_start.to(tl.int64) * k_stride_t + head.to(tl.int64) * k_stride_h
    v_base = v_ptr + key_start.to(tl.int64) * v_stride_t + head.to(tl.int64) * v_stride_h
    out_base = out_ptr + row_start.to(tl.int64) * out_stride_t + head.to(tl.int64) * out_stride_h

    rows = tl.arange(0, TILE)
    keys = tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_DIM)
    row_in = rows < row_end - row_start
    q = tl.load(q_base + rows[:, None] * q_stride_t + dims[None, :], mask=row_in[:, None], other=0.0)
    k_offsets = keys[:, None] * k_stride_t + dims[None, :]
    v_offsets = keys[:, None] * v_stride_t + dims[None, :]

    mask_base = masks_ptr + head.to(tl.int64) * words * mask_rows + slot * TILE
    mask_offsets = tl.arange(0, BLOCK // 32)[None, :] * mask_rows + rows[:, None]

    m = tl.full((TILE,), float("-inf"), tl.float32)  # running maximum of the scaled scores
    denom = tl.zeros((TILE,), tl.float32)  # running Σ exp2(score − m)
    acc = tl.zeros((TILE, HEAD_DIM), tl.float32)  # running Σ exp2(score − m) · V
    keep = tl.zeros((TILE, BLOCK // 32), tl.int32)
    length = key_end - key_start
    drawn = length
    if DROPOUT:
        drawn = tl.minimum(length, 32 * words)  # beyond a max_seqlen that was too small there are no masks
    if PEEL:
        full = drawn // BLOCK * BLOCK
        for start in range(0, full, BLOCK):
            step = tl.cast(start, tl.int64)
            k = tl.load(k_base + step * k_stride_t + k_offsets)
            if DROPOUT:
                keep = tl.load(mask_base + step // 32 * mask_rows + mask_offsets)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            v_ptrs = v_base + step * v_stride_t + v_offsets
            acc, m, denom = _accumulate(s, v_ptrs, None, keep, acc, m, denom, scale_log2, DROPOUT, PRECISION, COMPILED)
        if full < drawn:
            key_in = full + keys < drawn
            step = tl.cast(full, tl.int64)
            k = tl.load(k_base + step * k_stride_t + k_offsets, mask=key_in[:, None], other=0.0)
            if DROPOUT:
                keep = tl.load(mask_base + step // 32 * mask_rows + mask_offsets)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            s = tl.where(key_in[None, :], s, float("-inf"))
            v_ptrs = v_base + step * v_stride_t + v_offsets
            acc, m, denom = _accumulate(
                s, v_ptrs, key_in[:, None], keep, acc, m, denom, scale_log2, DROPOUT, PRECISION, COMPILED
            )
    else:
        for start in range(0, drawn, BLOCK):
            key_in = start + keys < drawn
            step = tl.cast(start, tl.int64)
            k = tl.load(k_base + step * k_stride_t + k_offsets, mask=key_in[:, None], other=0.0)
            if DROPOUT:
                keep = tl.load(mask_base + step // 32 * mask_rows + mask_offsets)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if start + BLOCK > drawn:
                s = tl.where(key_in[None, :], s, float("-inf"))
            v_ptrs = v_base + step * v_stride_t + v_offsets
            acc, m, denom = _accumulate(
                s, v_ptrs, key_in[:, None], keep, acc, m, denom, scale_log2, DROPOUT, PRECISION, COMPILED
            )
    if DROPOUT:
        denom = tl.where(drawn < length, float("nan"), denom)

    empty = denom == 0.0  # a row without a key: zeros, not 0/0
    inverse = tl.where(empty, 0.0, keep_scale / tl.where(empty, 1.0, denom))
    out = (acc * inverse[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_base + rows[:, None] * out_stride_t + dims[None, :], out, mask=row_in[:, None])
    lse = tl.where(empty, 0.0, m + tl.log2(tl.where(empty, 1.0, denom)))
    tl.store(lse_ptr + head.to(tl.int64) * total + row_start + rows, lse, mask=row_in)
