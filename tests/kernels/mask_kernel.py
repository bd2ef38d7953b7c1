"""A kernel that writes keep words as the mask kernel draws them; loaded by test_dropout_reference.py."""

import triton
import triton.language as tl

from kernels.dropout_kernel import keep_words


@triton.jit
def draw_words(words_ptr, seed_ptr, threshold, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Words 2… of rows 1000…, stream 3, call 16: (ROWS, WORDS) int32."""
    row = tl.arange(0, ROWS)[:, None]
    word = tl.arange(0, WORDS)[None, :]
    stream = tl.program_id(0) + 3
    keep = keep_words(seed_ptr, stream, 1000 + row, 2 + word, threshold, 16)
    tl.store(words_ptr + row * WORDS + word, keep.to(tl.int32, bitcast=True))
