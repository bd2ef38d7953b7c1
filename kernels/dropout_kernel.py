"""The bits of `kernels.dropout` inside a Triton kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.dropout import CALLS, ROUNDS

_CALLS = tl.constexpr(CALLS)
_ROUNDS = tl.constexpr(ROUNDS)


@triton.jit
def keep_words(seed_ptr, stream, row, word, threshold, FIRST_CALL: tl.constexpr):
    """32 keep decisions per element of `row` and `word` (int32, broadcast together): see kernels.dropout.

    Written out rather than called in pieces: in the interpreter a call costs more than the work in it.
    """
    seed = tl.load(seed_ptr)
    row, word = tl.broadcast(row, word)
    counter0 = row.to(tl.uint32)
    counter1 = word.to(tl.uint32)
    keep = counter0 * 0 + 0xFFFFFFFF
    for call in tl.static_range(_CALLS):
        c0 = counter0
        c1 = counter1
        c2 = counter0 * 0 + stream.to(tl.uint32)
        c3 = counter0 * 0 + (FIRST_CALL + call)
        key0 = (seed & 0xFFFFFFFF).to(tl.uint32)
        key1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
        for _ in tl.static_range(_ROUNDS):
            product0 = c0.to(tl.uint64) * 0xD2511F53  # one widening multiplication, where umulhi and mul would be two
            product1 = c2.to(tl.uint64) * 0xCD9E8D57
            c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ key0
            c1 = product1.to(tl.uint32)
            c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ key1
            c3 = product0.to(tl.uint32)
            key0 = tl.add(key0, 0x9E3779B9, sanitize_overflow=False)
            key1 = tl.add(key1, 0xBB67AE85, sanitize_overflow=False)
        # The bit-sliced comparison: "and" where the threshold's bit is 1, "or" where it is 0, which is the majority of
        # (bits, keep, not the threshold's bit): a single LOP3.
        or0 = ((threshold >> (4 * call)) & 1).to(tl.uint32) - 1
        or1 = ((threshold >> (4 * call + 1)) & 1).to(tl.uint32) - 1
        or2 = ((threshold >> (4 * call + 2)) & 1).to(tl.uint32) - 1
        or3 = ((threshold >> (4 * call + 3)) & 1).to(tl.uint32) - 1
        keep = (c0 & keep) | (or0 & (c0 | keep))
        keep = (c1 & keep) | (or1 & (c1 | keep))
        keep = (c2 & keep) | (or2 & (c2 | keep))
        keep = (c3 & keep) | (or3 & (c3 | keep))
    return keep


@triton.jit
def keep_rows(seed_ptr, stream, row, first_word, threshold, COLUMNS: tl.constexpr, FIRST_CALL: tl.constexpr):
    """Boolean (rows, COLUMNS) for rows `row` (int32, (rows,)) and the columns from 32 · first_word on.

    Column 8 k + 2 c + b of a word: in the accumulator of a matrix instruction a thread holds all k and b of one c, so
    the word is shifted by 2 c once and tested against constants.
    """
    WORDS: tl.constexpr = COLUMNS // 32
    ROWS: tl.constexpr = row.shape[0]
    word = tl.arange(0, WORDS)
    keep = keep_words(seed_ptr, stream, row[:, None], (first_word + word)[None, :], threshold, FIRST_CALL)
    # This gather changes nothing. It keeps the compiler from computing the words anew in each of the threads that
    # share one, as its layout pass does across element-wise operations (2 to 16 times the work).
    keep = tl.gather(keep, tl.broadcast_to(word[None, :], (ROWS, WORDS)), 1)
    shifted = keep[:, :, None] >> (2 * tl.arange(0, 4)).to(tl.uint32)[None, None, :]
    tested = tl.full((4, 2), 1, tl.uint32) << (8 * tl.arange(0, 4)[:, None] + tl.arange(0, 2)[None, :]).to(tl.uint32)
    bits = shifted[:, :, None, :, None] & tested[None, None, :, None, :]
    return tl.reshape(bits, (ROWS, COLUMNS)) != 0


@triton.jit
def keep_columns(seed_ptr, stream, row, first_word, threshold, COLUMNS: tl.constexpr, FIRST_CALL: tl.constexpr):
    """The same decisions transposed, (COLUMNS, rows): for a kernel that holds its scores that way round.

    Column 16 a + 8 r + g of a word: here a thread holds both r of one (a, g).
    """
    WORDS: tl.constexpr = COLUMNS // 32
    ROWS: tl.constexpr = row.shape[0]
    word = tl.arange(0, WORDS)
    keep = keep_words(seed_ptr, stream, row[None, :], (first_word + word)[:, None], threshold, FIRST_CALL)
    keep = tl.gather(keep, tl.broadcast_to(word[:, None], (WORDS, ROWS)), 0)  # as above
    shift = (16 * tl.arange(0, 2)[:, None] + tl.arange(0, 8)[None, :]).to(tl.uint32)
    shifted = keep[:, None, None, :] >> shift[None, :, :, None]
    tested = tl.full((2,), 1, tl.uint32) << (8 * tl.arange(0, 2)).to(tl.uint32)
    bits = shifted[:, :, None, :, :] & tested[None, None, :, None, None]
    return tl.reshape(bits, (COLUMNS, ROWS)) != 0


@triton.jit
def keep_elements(seed_ptr, row, threshold, COLUMNS: tl.constexpr, CALL: tl.constexpr):
    """Boolean (rows, COLUMNS) of an element-wise kernel, stream 0: a thread holds eight neighbouring columns, 8 k + b."""
    WORDS: tl.constexpr = COLUMNS // 32
    ROWS: tl.constexpr = row.shape[0]
    word = tl.arange(0, WORDS)
    keep = keep_words(seed_ptr, tl.program_id(0) * 0, row[:, None], word[None, :], threshold, CALL)
    keep = tl.gather(keep, tl.broadcast_to(word[None, :], (ROWS, WORDS)), 1)  # as above
    shifted = keep[:, :, None] >> (8 * tl.arange(0, 4)).to(tl.uint32)[None, None, :]
    tested = tl.full((8,), 1, tl.uint32) << tl.arange(0, 8).to(tl.uint32)
    bits = shifted[:, :, :, None] & tested[None, None, None, :]
    return tl.reshape(bits, (ROWS, COLUMNS)) != 0
