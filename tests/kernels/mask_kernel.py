"""A kernel that writes the dropout masks as both kinds of attention kernel see them; loaded by test_dropout_law.py."""

import triton
import triton.language as tl

from kernels.dropout_kernel import keep_columns, keep_rows


@triton.jit
def draw_masks(rows_ptr, columns_ptr, seed_ptr, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Masks of rows 1000…, words 2…, stream 3, call 16: (ROWS, COLUMNS) and transposed, int8."""
    row = 1000 + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    stream = tl.program_id(0) + 3
    by_rows = keep_rows(seed_ptr, stream, row, 2, threshold, COLUMNS, 16)
    tl.store(rows_ptr + tl.arange(0, ROWS)[:, None] * COLUMNS + column[None, :], by_rows.to(tl.int8))
    by_columns = keep_columns(seed_ptr, stream, row, 2, threshold, COLUMNS, 16)
    tl.store(columns_ptr + column[:, None] * ROWS + tl.arange(0, ROWS)[None, :], by_columns.to(tl.int8))
