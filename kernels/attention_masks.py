"""Dropout masks of attention as words of 32 decisions, drawn once in the forward pass and kept for the backward pass.

The attention kernels have no issue slots left for random numbers, and what they draw inside their loop keeps Hopper's
matrix instructions from overlapping (docs/kernels.md). So one small kernel draws a layer's decisions, 1 bit a score, the
very bits of `kernels.dropout`, and the three attention kernels load them:

    masks[head, w, slot · tile + i]     bit j: query i of the slot's tile, key 32 w + j of its sequence

The tiles of a sequence are neighbours in the table, so the dK/dV kernel finds a sequence's queries in a row, too.
Memory: an eighth of a byte a score. A layer of 12 heads on 32 sequences of 512 tokens takes 16 MB (12.6 of them for
scores, the rest for slots in reserve); eager attention would keep 400 MB of probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dropout import keep_mask


def mask_words(max_seqlen: int) -> int:
    """Words a row: as many as the longest sequence needs, rounded up to what the widest block of a kernel loads."""
    return (max_seqlen + 127) // 128 * 4


def masks_shape(heads: int, max_seqlen: int, slots: int, tile: int) -> tuple[int, int, int]:
    return (heads, mask_words(max_seqlen), slots * tile)


def attention_masks_reference(
    tiles: Tensor, tile: int, heads: int, max_seqlen: int, seed: int, dropout_p: float
) -> Tensor:
    """The reference, (heads, words, slots · tile) int32 from the table of tiles; words that belong to nothing are 0."""
    shape = masks_shape(heads, max_seqlen, tiles.shape[0], tile)
    bits = torch.zeros(heads, 32 * shape[1], shape[2], dtype=torch.bool)
    stream = torch.arange(heads)[:, None]
    for slot, (row_start, row_end, key_start, key_end) in enumerate(tiles.tolist()):
        row = torch.arange(row_start, row_end)[None, :]
        length = key_end - key_start
        keep = keep_mask(seed, stream, row, length, dropout_p).transpose(1, 2)  # (heads, keys, queries of the tile)
        bits[:, :length, slot * tile : slot * tile + row_end - row_start] = keep
    weights = 1 << torch.arange(32, dtype=torch.int64)
    words = (bits.unflatten(1, (shape[1], 32)).to(torch.int64) * weights[:, None]).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
