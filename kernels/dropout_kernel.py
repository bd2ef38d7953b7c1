"""The bits of `kernels.dropout` inside a Triton kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.dropout import CALLS, ROUNDS

_CALLS = tl.constexpr(CALLS)
_ROUNDS = tl.constexpr(ROUNDS)


@triton.jit
def _take(keep, bits, threshold, index: tl.constexpr):
    """One step of the bit-sliced comparison: majority(bits, keep, not threshold's bit), a single LOP3."""
    either = ((threshold >> index) & 1).to(tl.uint32) - 1  # all ones where the threshold's bit is 0: "or"
    return (bits & keep) | (either & (bits | keep))


@triton.jit
def keep_words(seed_ptr, stream, row, word, threshold, FIRST_CALL: tl.constexpr):
    """32 keep decisions per element of `row` and `word` (int32, broadcast together): see kernels.dropout."""
    seed = tl.load(seed_ptr)
    key0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    key1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    row, word = tl.broadcast(row, word)
    c0 = row.to(tl.uint32)
    c1 = word.to(tl.uint32)
    c2 = c0 * 0 + stream.to(tl.uint32)
    keep = c0 * 0 + 0xFFFFFFFF
    for call in tl.static_range(_CALLS):
        c3 = c0 * 0 + (FIRST_CALL + call)
        b0, b1, b2, b3 = tl.philox_impl(c0, c1, c2, c3, key0, key1, _ROUNDS)
        keep = _take(keep, b0, threshold, 4 * call)
        keep = _take(keep, b1, threshold, 4 * call + 1)
        keep = _take(keep, b2, threshold, 4 * call + 2)
        keep = _take(keep, b3, threshold, 4 * call + 3)
    return keep


@triton.jit
def keep_rows(seed_ptr, stream, row, first_word, threshold, COLUMNS: tl.constexpr, FIRST_CALL: tl.constexpr):
    """Boolean (rows, COLUMNS) for rows `row` (int32, (rows,)) and the columns from 32 · first_word on."""
    words: tl.constexpr = COLUMNS // 32
    word = first_word + tl.arange(0, words)
    keep = keep_words(seed_ptr, stream, row[:, None], word[None, :], threshold, FIRST_CALL)
    bits = (keep[:, :, None] >> tl.arange(0, 32).to(tl.uint32)[None, None, :]) & 1
    return tl.reshape(bits, (row.shape[0], COLUMNS)) != 0


@triton.jit
def keep_columns(seed_ptr, stream, row, first_word, threshold, COLUMNS: tl.constexpr, FIRST_CALL: tl.constexpr):
    """The same decisions transposed, (COLUMNS, rows): for a kernel that holds its scores that way round."""
    words: tl.constexpr = COLUMNS // 32
    word = first_word + tl.arange(0, words)
    keep = keep_words(seed_ptr, stream, row[None, :], word[:, None], threshold, FIRST_CALL)
    bits = (keep[:, None, :] >> tl.arange(0, 32).to(tl.uint32)[None, :, None]) & 1
    return tl.reshape(bits, (COLUMNS, row.shape[0])) != 0
