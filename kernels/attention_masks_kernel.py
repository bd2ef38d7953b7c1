"""The words of `kernels.attention_masks`: one program per (tile of queries, head), 128 keys at a time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention_masks import masks_shape
from kernels.device import on_device
from kernels.dropout import threshold_of
from kernels.dropout_kernel import keep_words

WARPS = 8


@triton.jit(do_not_specialize=["heads", "words", "threshold"])
def attention_masks_kernel(
    masks_ptr, tiles_ptr, seed_ptr, heads, words, mask_rows, threshold, TILE: tl.constexpr, GROUP: tl.constexpr
):
    """`masks_ptr` (heads, words, mask_rows) int32. GROUP: words of a row at a time. Grid: heads · slots."""
    head = tl.program_id(0) % heads
    slot = tl.program_id(0) // heads
    row_start = tl.load(tiles_ptr + 4 * slot)
    row_end = tl.load(tiles_ptr + 4 * slot + 1)
    key_start = tl.load(tiles_ptr + 4 * slot + 2)
    key_end = tl.load(tiles_ptr + 4 * slot + 3)
    if row_start >= row_end:
        return

    row = tl.arange(0, TILE)
    base = masks_ptr + head.to(tl.int64) * words * mask_rows + slot * TILE
    count = tl.minimum((key_end - key_start + 31) // 32, words)
    for start in range(0, count, GROUP):
        word = start + tl.arange(0, GROUP)
        keep = keep_words(seed_ptr, head, (row_start + row)[None, :], word[:, None], threshold, 0)
        to = base + word.to(tl.int64)[:, None] * mask_rows + row[None, :]
        tl.store(to, keep.to(tl.int32, bitcast=True), mask=(word < count)[:, None])


def launch_attention_masks(
    tiles: Tensor, tile: int, heads: int, max_seqlen: int, seed: Tensor, dropout_p: float
) -> Tensor:
    """The masks of one layer, (heads, words, slots · tile) int32; words that belong to nothing are not written."""
    shape = masks_shape(heads, max_seqlen, tiles.shape[0], tile)
    masks = torch.empty(shape, dtype=torch.int32, device=tiles.device)
    with on_device(tiles):
        attention_masks_kernel[(heads * tiles.shape[0],)](
            masks,
            tiles,
            seed,
            heads,
            shape[1],
            shape[2],
            threshold_of(dropout_p),
            TILE=tile,
            GROUP=4,
            num_warps=WARPS,
        )
    return masks
