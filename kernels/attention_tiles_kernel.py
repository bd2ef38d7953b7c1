"""The table of kernels.attention_tiles on the device, in one launch.

Where a sequence's tiles start is the number of tiles of all sequences before it in the order "longest first, then as
given". That is a sum over all pairs, which needs neither a sort nor a prefix sum across programs: each program counts
for 64 sequences by reading all lengths. 64 million pairs for 8,000 sequences; microseconds for a usual batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention_config import slots_needed
from kernels.device import on_device


@triton.jit
def _lengths(cu_ptr, index, sequences, total):
    """(first row, rows, sort key) of sequence `index`; number `sequences` stands for the rows behind the last one."""
    start = tl.load(cu_ptr + index, mask=index <= sequences, other=0)
    end = tl.load(cu_ptr + index + 1, mask=index < sequences, other=0)
    start = tl.minimum(start, total)  # a captured graph may be replayed with lengths that its buffers do not hold
    end = tl.where(index == sequences, total, tl.minimum(end, total))
    rows = end - start
    return start, rows, tl.where(index == sequences, -1, rows)


@triton.jit(do_not_specialize=["sequences", "total", "slots"])
def attention_tiles_kernel(cu_ptr, tiles_ptr, sequences, total, slots, TILE: tl.constexpr, GROUP: tl.constexpr):
    """`cu_ptr` (sequences + 1,) int32 → `tiles_ptr` (slots, 4) int32. Grid: ceil((sequences + 1) / GROUP)."""
    mine = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    my_start, my_rows, my_key = _lengths(cu_ptr, mine, sequences, total)
    first_slot = tl.zeros((GROUP,), tl.int32)
    used = 0
    for other_start in range(0, sequences + 1, GROUP):
        other = other_start + tl.arange(0, GROUP)
        _, rows, key = _lengths(cu_ptr, other, sequences, total)
        tiles = tl.where(other <= sequences, (rows + TILE - 1) // TILE, 0)
        before = (key[None, :] > my_key[:, None]) | (
            (key[None, :] == my_key[:, None]) & (other[None, :] < mine[:, None])
        )
        first_slot += tl.sum(tl.where(before, tiles[None, :], 0), 1)
        used += tl.sum(tiles, 0)

    my_tiles = tl.where(mine <= sequences, (my_rows + TILE - 1) // TILE, 0)
    my_end = my_start + my_rows
    for number in range(0, tl.max(my_tiles, 0)):
        row = my_start + number * TILE
        entry = tiles_ptr + 4 * (first_slot + number)
        write = (number < my_tiles) & (first_slot + number < slots)
        outside = mine == sequences  # an empty range of keys
        tl.store(entry, row, mask=write)
        tl.store(entry + 1, tl.minimum(row + TILE, my_end), mask=write)
        tl.store(entry + 2, tl.where(outside, row, my_start), mask=write)
        tl.store(entry + 3, tl.where(outside, row, my_end), mask=write)

    numbers = tl.arange(0, 4 * GROUP)
    programs = tl.num_programs(0)
    for slot in range(used + tl.program_id(0) * GROUP, slots, programs * GROUP):
        tl.store(tiles_ptr + 4 * slot + numbers, numbers * 0, mask=4 * slot + numbers < 4 * slots)


def launch_attention_tiles(cu_seqlens: Tensor, total: int, tile: int, group: int = 64) -> Tensor:
    """(slots, 4) int32 table of the packed batch."""
    sequences = cu_seqlens.shape[0] - 1
    slots = slots_needed(total, sequences, tile)
    tiles = torch.empty(slots, 4, dtype=torch.int32, device=cu_seqlens.device)
    with on_device(cu_seqlens):
        attention_tiles_kernel[(triton.cdiv(sequences + 1, group),)](
            cu_seqlens, tiles, sequences, total, slots, TILE=tile, GROUP=group, num_warps=4
        )
    return tiles
