"""A kernel whose matrix instructions ptxas runs one after another: the control of test_aot.py. Compiled, never launched.

It is the loop of attention's forward pass as it first was: dropout drawn inside it, the last block masked inside it.
"""

import triton
import triton.language as tl

from kernels.dropout_kernel import keep_words


@triton.jit
def serialised_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, seed_ptr, stride, length, scale, threshold, TILE: tl.constexpr, DIM: tl.constexpr
):
    """(TILE, DIM) queries over `length` keys."""
    rows = tl.arange(0, TILE)
    offsets = rows[:, None] * stride + tl.arange(0, DIM)[None, :]
    q = tl.load(q_ptr + offsets)
    m = tl.full((TILE,), float("-inf"), tl.float32)
    denom = tl.zeros((TILE,), tl.float32)
    acc = tl.zeros((TILE, DIM), tl.float32)
    word = tl.arange(0, TILE // 32)
    for start in range(0, length, TILE):
        inside = start + rows < length
        step = tl.cast(start, tl.int64)
        k = tl.load(k_ptr + step * stride + offsets, mask=inside[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k))
        if start + TILE > length:
            s = tl.where(inside[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - m_new[:, None])
        rescale = tl.exp2(m - m_new)
        denom = denom * rescale + tl.sum(p, 1)
        keep = keep_words(seed_ptr, tl.program_id(0), rows[:, None], (start // 32 + word)[None, :], threshold, 0)
        keep = tl.gather(keep, tl.broadcast_to(word[None, :], (TILE, TILE // 32)), 1)
        shifted = keep[:, :, None] >> (2 * tl.arange(0, 4)).to(tl.uint32)[None, None, :]
        bit = 8 * tl.arange(0, 4)[:, None] + tl.arange(0, 2)[None, :]
        tested = tl.full((4, 2), 1, tl.uint32) << bit.to(tl.uint32)
        bits = shifted[:, :, None, :, None] & tested[None, None, :, None, :]
        p = tl.where(tl.reshape(bits, (TILE, TILE)) != 0, p, 0.0)
        acc = acc * rescale[:, None]
        v = tl.load(v_ptr + step * stride + offsets, mask=inside[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc)
        m = m_new
    tl.store(out_ptr + offsets, acc / denom[:, None])
