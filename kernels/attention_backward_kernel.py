"""Attention backward in two kernels without atomics: dQ by tiles of queries, then dK and dV by tiles of keys.

Each recomputes the probabilities from Q, K and the saved log-sum-exp. Splitting costs two of seven products a second
time (S and dP), and buys determinism and no fp32 accumulator in memory. The formulas: kernels/attention_reference.py.
The dQ kernel runs first: it holds O and dO anyway, and leaves δ = rowsum(O ∘ dO) for the other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.dropout_kernel import drop, drop_transposed


@triton.jit(do_not_specialize=["total", "heads", "words"])
def attention_dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    dout_ptr,
    dq_ptr,
    lse_ptr,
    delta_ptr,
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
    dout_stride_t,
    dout_stride_h,
    dq_stride_t,
    dq_stride_h,
    total,
    heads,
    words,
    mask_rows,
    scale,
    scale_log2,
    keep_scale,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPILED: tl.constexpr,
):
    """Grid heads · slots. Writes dQ, and δ (with dropout: δ · keep share) (heads, total) fp32."""
    head = tl.program_id(0) % heads
    slot = tl.program_id(0) // heads
    row_start = tl.load(tiles_ptr + 4 * slot)
    row_end = tl.load(tiles_ptr + 4 * slot + 1)
    key_start = tl.load(tiles_ptr + 4 * slot + 2)
    key_end = tl.load(tiles_ptr + 4 * slot + 3)
    if row_start >= row_end:
        return

    head64 = head.to(tl.int64)
    row64 = row_start.to(tl.int64)
    k_base = k_ptr + key_start.to(tl.int64) * k_stride_t + head64 * k_stride_h
    v_base = v_ptr + key_start.to(tl.int64) * v_stride_t + head64 * v_stride_h
    rows = tl.arange(0, TILE)
    keys = tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_DIM)
    row_in = rows < row_end - row_start

    q_ptrs = q_ptr + row64 * q_stride_t + head64 * q_stride_h + rows[:, None] * q_stride_t + dims[None, :]
    o_ptrs = out_ptr + row64 * out_stride_t + head64 * out_stride_h + rows[:, None] * out_stride_t + dims[None, :]
    do_ptrs = dout_ptr + row64 * dout_stride_t + head64 * dout_stride_h + rows[:, None] * dout_stride_t + dims[None, :]
    q = tl.load(q_ptrs, mask=row_in[:, None], other=0.0)
    dout = tl.load(do_ptrs, mask=row_in[:, None], other=0.0)
    out = tl.load(o_ptrs, mask=row_in[:, None], other=0.0)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    if DROPOUT:
        delta = delta / keep_scale
    tl.store(delta_ptr + head64 * total + row_start + rows, delta, mask=row_in)
    # +inf for rows that are not there: their probabilities become exp2(−inf) = 0
    lse = tl.load(lse_ptr + head64 * total + row_start + rows, mask=row_in, other=float("inf"))

    k_offsets = keys[:, None] * k_stride_t + dims[None, :]
    v_offsets = keys[:, None] * v_stride_t + dims[None, :]
    mask_base = masks_ptr + head64 * words * mask_rows + slot * TILE
    mask_offsets = tl.arange(0, BLOCK // 32)[None, :] * mask_rows + rows[:, None]
    dq = tl.zeros((TILE, HEAD_DIM), tl.float32)
    length = key_end - key_start
    if DROPOUT:
        length = tl.minimum(length, 32 * words)
        scale = scale * keep_scale
    length = tl.maximum(length, 1)  # see the dK/dV kernel
    for start in range(0, length, BLOCK):
        key_in = start + keys < key_end - key_start
        step = tl.cast(start, tl.int64)
        k = tl.load(k_base + step * k_stride_t + k_offsets, mask=key_in[:, None], other=0.0)
        v = tl.load(v_base + step * v_stride_t + v_offsets, mask=key_in[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        # Masked before the next product, which the mask's branch would otherwise part from what waits for it. A key of
        # zeros scores 0, and exp2(0 − lse) overflows where lse is very negative.
        if start + BLOCK > length:
            s = tl.where(key_in[None, :], s, float("-inf"))
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        p = tl.exp2(s * scale_log2 - lse[:, None])
        if DROPOUT:  # P ∘ (keep ∘ dP / keep share − δ) · keep share, the last factor being part of `scale`
            keep = tl.load(mask_base + step // 32 * mask_rows + mask_offsets)
            ds = drop(p, keep.to(tl.uint32, bitcast=True), COMPILED) * dp - p * delta[:, None]
        else:
            ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)

    dq_ptrs = dq_ptr + row64 * dq_stride_t + head64 * dq_stride_h + rows[:, None] * dq_stride_t + dims[None, :]
    tl.store(dq_ptrs, (dq * scale).to(dq_ptr.dtype.element_ty), mask=row_in[:, None])


@triton.jit(do_not_specialize=["total", "heads", "words"])
def attention_dkdv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    dk_ptr,
    dv_ptr,
    lse_ptr,
    delta_ptr,
    tiles_ptr,
    masks_ptr,
    q_stride_t,
    q_stride_h,
    k_stride_t,
    k_stride_h,
    v_stride_t,
    v_stride_h,
    dout_stride_t,
    dout_stride_h,
    dk_stride_t,
    dk_stride_h,
    dv_stride_t,
    dv_stride_h,
    total,
    heads,
    words,
    mask_rows,
    scale,
    scale_log2,
    keep_scale,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    COMPILED: tl.constexpr,
):
    """Grid heads · slots. A tile's rows are keys here, and its range of keys the queries that see them: attention
    within a sequence is symmetric, so one table serves. Scores are held transposed, (keys, queries), which makes them
    the left operand of both products as they are.
    """
    head = tl.program_id(0) % heads
    slot = tl.program_id(0) // heads
    key_start = tl.load(tiles_ptr + 4 * slot)
    key_end = tl.load(tiles_ptr + 4 * slot + 1)
    row_start = tl.load(tiles_ptr + 4 * slot + 2)
    row_end = tl.load(tiles_ptr + 4 * slot + 3)
    if key_start >= key_end:
        return

    head64 = head.to(tl.int64)
    key64 = key_start.to(tl.int64)
    row64 = row_start.to(tl.int64)
    keys = tl.arange(0, TILE)
    rows = tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_DIM)
    key_in = keys < key_end - key_start
    k_ptrs = k_ptr + key64 * k_stride_t + head64 * k_stride_h + keys[:, None] * k_stride_t + dims[None, :]
    v_ptrs = v_ptr + key64 * v_stride_t + head64 * v_stride_h + keys[:, None] * v_stride_t + dims[None, :]
    k = tl.load(k_ptrs, mask=key_in[:, None], other=0.0)
    v = tl.load(v_ptrs, mask=key_in[:, None], other=0.0)

    q_base = q_ptr + row64 * q_stride_t + head64 * q_stride_h
    dout_base = dout_ptr + row64 * dout_stride_t + head64 * dout_stride_h
    lse_base = lse_ptr + head64 * total + row_start
    delta_base = delta_ptr + head64 * total + row_start
    q_offsets = rows[:, None] * q_stride_t + dims[None, :]
    dout_offsets = rows[:, None] * dout_stride_t + dims[None, :]
    dk = tl.zeros((TILE, HEAD_DIM), tl.float32)
    dv = tl.zeros((TILE, HEAD_DIM), tl.float32)
    place = key_start - row_start  # of the tile in its sequence, whose first query has mask row slot · TILE − place
    mask_base = masks_ptr + (head64 * words + place // 32) * mask_rows + slot * TILE - place
    mask_offsets = tl.arange(0, TILE // 32)[:, None] * mask_rows + rows[None, :]
    # At least one pass, of queries that are not there in a tile of no sequence: a loop that may be skipped gives the
    # accumulators a second origin, beside which ptxas runs all matrix instructions one by one (C7515).
    length = row_end - row_start
    if DROPOUT:
        length = tl.minimum(length, 32 * words)
        scale = scale * keep_scale
    length = tl.maximum(length, 1)
    for start in range(0, length, BLOCK):
        row_in = start + rows < row_end - row_start
        step = tl.cast(start, tl.int64)
        q = tl.load(q_base + step * q_stride_t + q_offsets, mask=row_in[:, None], other=0.0)
        dout = tl.load(dout_base + step * dout_stride_t + dout_offsets, mask=row_in[:, None], other=0.0)
        # Queries that are not there have q = dO = 0, hence dP = δ = 0, and add nothing, whatever their lse. The gathers
        # change nothing: they keep the loads as narrow as the vectors are (of 551 instructions 200 copied them otherwise).
        lse = tl.gather(tl.load(lse_base + start + rows, mask=row_in, other=0.0), rows, 0)
        delta = tl.gather(tl.load(delta_base + start + rows, mask=row_in, other=0.0), rows, 0)
        s_t = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        dp_t = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
        p_t = tl.exp2(s_t * scale_log2 - lse[None, :])
        if DROPOUT:
            keep = tl.load(mask_base + start + mask_offsets)
            dropped_t = drop_transposed(p_t, keep.to(tl.uint32, bitcast=True), COMPILED)
            ds_t = dropped_t * dp_t - p_t * delta[None, :]
        else:
            dropped_t = p_t
            ds_t = p_t * (dp_t - delta[None, :])
        dv = tl.dot(dropped_t.to(dout.dtype), dout, dv, input_precision=PRECISION)
        dk = tl.dot(ds_t.to(q.dtype), q, dk, input_precision=PRECISION)

    dk_ptrs = dk_ptr + key64 * dk_stride_t + head64 * dk_stride_h + keys[:, None] * dk_stride_t + dims[None, :]
    dv_ptrs = dv_ptr + key64 * dv_stride_t + head64 * dv_stride_h + keys[:, None] * dv_stride_t + dims[None, :]
    tl.store(dk_ptrs, (dk * scale).to(dk_ptr.dtype.element_ty), mask=key_in[:, None])
    tl.store(dv_ptrs, (dv * keep_scale).to(dv_ptr.dtype.element_ty), mask=key_in[:, None])
