"""Block sizes of the attention kernels, by head dimension, dtype and GPU family: everything that can be selected.

All three kernels of a call share the tile (rows of a program), because they share the table of tiles. Short sequences
take tiles of 64 rows: SQuAD's windows (178 tokens on average) then cost 1.3 times the products they need, with 128 × 128
blocks 1.8 times. `python -m kernels.aot` compiles every entry and prints its registers and spills.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

HEAD_DIMS = (32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CAPABILITIES = (80, 90)
#: Mean length from which tiles of 128 rows pay.
LONG = 320


@dataclass(frozen=True)
class BlockConfig:
    """One kernel's choice: rows of the streamed block, warps of a program, depth of the software pipeline."""

    block: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class AttentionConfig:
    tile: int
    forward: BlockConfig
    dq: BlockConfig
    dkdv: BlockConfig


def tile_size(head_dim: int, dtype: torch.dtype, total: int, sequences: int) -> int:
    """Rows of a tile for a batch of `total` tokens in `sequences` sequences."""
    if dtype not in (torch.float16, torch.bfloat16):
        return 32
    return 128 if total >= LONG * sequences else 64


def slots_needed(total: int, sequences: int, tile: int) -> int:
    """Tiles of the worst case: Σ ceil(length / tile) over the sequences and the rest never exceeds this."""
    return total // tile + sequences + 1


def attention_config(capability: int, head_dim: int, dtype: torch.dtype, tile: int) -> AttentionConfig:
    """The configuration that a launch uses."""
    if dtype not in (torch.float16, torch.bfloat16):
        return AttentionConfig(tile, *_FULL_PRECISION[head_dim])
    return AttentionConfig(tile, *_HALF_PRECISION[capability, head_dim, tile])


def peeled(capability: int, dtype: torch.dtype) -> bool:
    """Whether the forward kernel treats full blocks apart: where it uses Hopper's matrix instructions."""
    return capability >= 90 and dtype is not torch.float32


def all_configs() -> Iterator[tuple[int, int, torch.dtype, AttentionConfig]]:
    """(capability, head_dim, dtype, configuration) of every launch that can happen."""
    for capability in CAPABILITIES:
        for head_dim in HEAD_DIMS:
            for dtype in DTYPES:
                for tile in (32,) if dtype is torch.float32 else (64, 128):
                    yield capability, head_dim, dtype, attention_config(capability, head_dim, dtype, tile)


#: (capability, head_dim, tile) → forward, dQ, dK/dV. Chosen without a GPU, by the compiled table: no spills under either
#: Triton, then programs on a multiprocessor at once, then instructions. The encoder's forward kernels on sm_90 have blocks
#: of 64 keys and two stages: of 128 × 128 only one program fits a multiprocessor, of 128 × 64 two, which fill each other's
#: waits. dK/dV holds one. `python -m benchmarks.kernels.tune` times the neighbours.
_HALF_PRECISION = {
    (80, 32, 64): (BlockConfig(64, 4, 3), BlockConfig(64, 4, 2), BlockConfig(32, 4, 2)),
    (80, 32, 128): (BlockConfig(64, 8, 3), BlockConfig(64, 8, 2), BlockConfig(32, 8, 2)),
    (80, 64, 64): (BlockConfig(64, 4, 3), BlockConfig(32, 4, 2), BlockConfig(32, 4, 2)),
    (80, 64, 128): (BlockConfig(64, 8, 3), BlockConfig(64, 8, 2), BlockConfig(32, 8, 2)),
    (80, 128, 64): (BlockConfig(64, 4, 2), BlockConfig(32, 4, 2), BlockConfig(32, 8, 2)),
    (80, 128, 128): (BlockConfig(64, 8, 2), BlockConfig(32, 8, 1), BlockConfig(16, 8, 1)),
    (90, 32, 64): (BlockConfig(64, 4, 3), BlockConfig(64, 4, 2), BlockConfig(64, 4, 2)),
    (90, 32, 128): (BlockConfig(128, 8, 3), BlockConfig(64, 8, 2), BlockConfig(64, 8, 2)),
    (90, 64, 64): (BlockConfig(64, 4, 2), BlockConfig(64, 4, 2), BlockConfig(64, 4, 2)),
    (90, 64, 128): (BlockConfig(64, 8, 2), BlockConfig(64, 8, 2), BlockConfig(64, 8, 2)),
    (90, 128, 64): (BlockConfig(64, 4, 2), BlockConfig(64, 4, 2), BlockConfig(32, 8, 2)),
    (90, 128, 128): (BlockConfig(64, 8, 2), BlockConfig(64, 8, 2), BlockConfig(32, 8, 2)),
}
#: fp32 is the exact path (IEEE multiply-adds, no matrix instructions): small blocks, the same on every GPU.
_FULL_PRECISION = {
    32: (BlockConfig(32, 4, 1), BlockConfig(32, 8, 1), BlockConfig(32, 4, 1)),
    64: (BlockConfig(32, 4, 1), BlockConfig(32, 8, 1), BlockConfig(32, 8, 1)),
    128: (BlockConfig(32, 8, 1), BlockConfig(32, 16, 3), BlockConfig(32, 16, 1)),
}
