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
def _signs(keep, COLUMNS: tl.constexpr):
    """(word shifted so that a column's bit is the top one of a byte, number of that byte), each (rows, COLUMNS).

    Column 8 k + 2 c + b is the top bit of byte k after a shift by 7 − 2 c − b. In the accumulator of a matrix instruction
    a thread holds all k and b of one c, so two shifted words serve its eight columns.
    """
    ROWS: tl.constexpr = keep.shape[0]
    shifted = keep[:, :, None] << (6 - 2 * tl.arange(0, 4)).to(tl.uint32)[None, None, :]
    signs = shifted[:, :, None, :, None] << (1 - tl.arange(0, 2)).to(tl.uint32)[None, None, None, None, :]
    signs, byte = tl.broadcast(signs, tl.arange(0, 4)[None, None, :, None, None])
    return tl.reshape(signs, (ROWS, COLUMNS)), tl.reshape(byte, (ROWS, COLUMNS))


#: `prmt` copies the top bit of a byte into all bits of another: with a constant for `byte`, which it always is, each of
#: these is two instructions a register. A comparison and a selection would be two a score and eight predicates in flight,
#: which the compiler keeps moving into registers and back (docs/kernels.md).
DROP_SCORE = tl.constexpr("""{
.reg .b32 mask, at;
mad.lo.s32 at, $3, 0x1111, 0x8888;
prmt.b32 mask, $2, 0, at;
and.b32 $0, $1, mask;
}""")
DROP_PAIR = tl.constexpr("""{
.reg .b32 pair, mask, at;
shl.b32 at, $6, 8;
add.s32 at, at, $5;
mad.lo.s32 at, at, 0x11, 0xCC88;
prmt.b32 mask, $3, $4, at;
cvt.rn.TYPEx2.f32 pair, $2, $1;
and.b32 $0, pair, mask;
}""")
DROP_BF16 = tl.constexpr(DROP_PAIR.value.replace("TYPE", "bf16"))
DROP_FP16 = tl.constexpr(DROP_PAIR.value.replace("TYPE", "f16"))


@triton.jit
def drop(p, keep, COMPILED: tl.constexpr):
    """`p` (rows, columns) fp32 where its bit of `keep` (rows, columns / 32) is 1, else 0. The interpreter cannot run
    assembly: without COMPILED the same is a selection."""
    if COMPILED:
        signs, byte = _signs(keep, p.shape[1])
        return tl.inline_asm_elementwise(
            DROP_SCORE, "=r,r,r,r", [p, signs, byte], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        bits = (keep[:, :, None] >> tl.arange(0, 32).to(tl.uint32)[None, None, :]) & 1
        return tl.where(tl.reshape(bits, p.shape) != 0, p, 0.0)


@triton.jit
def drop_transposed(p, keep, COMPILED: tl.constexpr):
    """The same for scores held the other way round: `p` (columns, rows), `keep` (columns / 32, rows).

    Column 16 a + 8 r + g of a word: here a thread holds both r of one (a, g): bytes 2 a + r after one shift by 7 − g.
    """
    WORDS: tl.constexpr = keep.shape[0]
    ROWS: tl.constexpr = keep.shape[1]
    if COMPILED:
        shifted = keep[:, None, None, :] << (7 - tl.arange(0, 8)).to(tl.uint32)[None, None, :, None]
        signs, byte = tl.broadcast(shifted, tl.arange(0, 4)[None, :, None, None])
        signs = tl.reshape(signs, (32 * WORDS, ROWS))
        byte = tl.reshape(byte, (32 * WORDS, ROWS))
        return tl.inline_asm_elementwise(
            DROP_SCORE, "=r,r,r,r", [p, signs, byte], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        bits = (keep[:, None, :] >> tl.arange(0, 32).to(tl.uint32)[None, :, None]) & 1
        return tl.where(tl.reshape(bits, (32 * WORDS, ROWS)) != 0, p, 0.0)


@triton.jit
def drop_and_round(p, keep, dtype: tl.constexpr, COMPILED: tl.constexpr):
    """`drop(p, keep)` in `dtype`. Rounded first, in pairs of half precision: one mask then serves two scores."""
    if COMPILED and dtype != tl.float32:
        signs, byte = _signs(keep, p.shape[1])
        if dtype == tl.bfloat16:
            return tl.inline_asm_elementwise(
                DROP_BF16, "=r,r,r,r,r,r,r", [p, signs, byte], dtype=tl.bfloat16, is_pure=True, pack=2
            )
        else:
            return tl.inline_asm_elementwise(
                DROP_FP16, "=r,r,r,r,r,r,r", [p, signs, byte], dtype=tl.float16, is_pure=True, pack=2
            )
    else:
        return drop(p, keep, COMPILED).to(dtype)


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
