"""Which program works on which rows: the table of tiles of a ragged batch, made on the device, without a host sync.

A tile is four numbers: rows [row_start, row_end) of the packed batch, at most `tile` of them and all of one sequence,
and the range [key_start, key_end) of that sequence. Tiles of the longest sequences come first: they run longest, so
they must not start last. Rows behind the last sequence (a batch padded to a fixed number of tokens, as CUDA graphs
want) make tiles with an empty range, whose outputs and gradients are zeros. The host knows T and B but not the
lengths, so the table has room for the worst case, T // tile + B + 1 slots; unused ones have row_start = row_end = 0.

One table serves all layers and both directions of a step: make it once with `attention_plan` and pass it on.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention_config import slots_needed, tile_size
from kernels.device import runs_triton


class AttentionPlan(NamedTuple):
    """The tiles of one batch: `tiles` (slots, 4) int32 on the device, for programs of `tile` rows."""

    tile: int
    tiles: Tensor


def attention_plan(cu_seqlens: Tensor, total: int, head_dim: int, dtype: torch.dtype) -> AttentionPlan:
    """The plan of a batch of `total` packed tokens, for heads of `head_dim` and operands of `dtype`.

    Args:
        cu_seqlens: (B + 1,) int32, ascending from 0; its last number may be smaller than `total`.
        total: tokens in the packed batch, T.

    Raises:
        ValueError: cu_seqlens is not a contiguous int32 vector.
    """
    check_cu_seqlens(cu_seqlens)
    tile = tile_size(head_dim, dtype, total, cu_seqlens.shape[0] - 1)
    return AttentionPlan(tile, torch.ops.fused_kernels.attention_tiles(cu_seqlens, total, tile))


def check_cu_seqlens(cu_seqlens: Tensor) -> None:
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.shape[0] < 1:
        raise ValueError(
            f"cu_seqlens must be an int32 vector of B + 1 numbers, got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    if not cu_seqlens.is_contiguous():
        raise ValueError("cu_seqlens must be contiguous")


def attention_tiles_reference(cu_seqlens: Tensor, total: int, tile: int) -> Tensor:
    """The reference: (slots, 4) int32 with the tiles in the order in which the kernel writes them. Sequences end at
    `total`, whatever cu_seqlens says: a tile beyond it would read and write foreign memory."""
    bounds = [min(bound, total) for bound in cu_seqlens.tolist()]
    sequences = sorted(pairwise(bounds), key=lambda s: s[0] - s[1])  # stable: longest first
    tiles = [(row, min(row + tile, end), start, end) for start, end in sequences for row in range(start, end, tile)]
    tiles += [(row, min(row + tile, total), row, row) for row in range(bounds[-1], total, tile)]
    table = torch.zeros(slots_needed(total, len(bounds) - 1, tile), 4, dtype=torch.int32)
    table[: len(tiles)] = torch.tensor(tiles, dtype=torch.int32).view(-1, 4)
    return table.to(cu_seqlens.device)


@torch.library.custom_op("fused_kernels::attention_tiles", mutates_args=())
def _attention_tiles(cu_seqlens: Tensor, total: int, tile: int) -> Tensor:
    if not runs_triton(cu_seqlens):
        return attention_tiles_reference(cu_seqlens, total, tile)
    from kernels.attention_tiles_kernel import launch_attention_tiles

    return launch_attention_tiles(cu_seqlens, total, tile)


@_attention_tiles.register_fake
def _attention_tiles_fake(cu_seqlens: Tensor, total: int, tile: int) -> Tensor:
    return cu_seqlens.new_empty(slots_needed(total, cu_seqlens.shape[0] - 1, tile), 4)
