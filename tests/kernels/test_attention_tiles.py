"""The table of tiles: every row in exactly one tile, longest sequences first, kernel and reference alike."""

from __future__ import annotations

import pytest
import torch

from kernels.attention_config import slots_needed
from kernels.attention_tiles import attention_plan, attention_tiles_reference

BATCHES = [[1], [64], [65], [0, 0, 3], [5, 0, 64, 129, 5], [512, *[20] * 70], []]


def cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize("behind", [0, 1, 130])
def test_reference_covers_every_row_once(lengths, behind):
    cu = cumulative(lengths)
    total = int(cu[-1]) + behind
    table = attention_tiles_reference(cu, total, 64)
    assert table.shape == (slots_needed(total, len(lengths), 64), 4)
    used = [tile for tile in table.tolist() if tile[1] > tile[0]]
    assert sorted(row for start, end, _, _ in used for row in range(start, end)) == list(range(total))
    bounds = cu.tolist()
    sizes = []
    for start, end, key_start, key_end in used:
        assert end - start <= 64
        if start >= bounds[-1]:
            assert key_start == key_end  # rows of no sequence see no key
            sizes.append(-1)
        else:
            assert key_start <= start < end <= key_end and key_start in bounds and key_end in bounds
            sizes.append(key_end - key_start)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
def test_kernel_writes_the_reference(lengths, triton_device):
    from kernels.attention_tiles_kernel import launch_attention_tiles

    cu = cumulative(lengths)
    total = int(cu[-1]) + 67
    table = launch_attention_tiles(cu.to(triton_device), total, 64)
    assert torch.equal(table.cpu(), attention_tiles_reference(cu, total, 64))


@pytest.mark.parametrize(("lengths", "total"), [([4000], 64), ([30, 4000, 5], 100), ([10, 20], 15)])
def test_lengths_beyond_the_buffer_stay_inside_it(lengths, total, triton_device):
    """A captured graph replayed with lengths that pass its buffers: 63 rows were written into a table of 3 slots, and
    the tiles named rows behind the tensors. Table and rows end where the buffers do."""
    from kernels.attention_tiles_kernel import attention_tiles_kernel

    cu = cumulative(lengths)
    slots = slots_needed(total, len(lengths), 64)
    memory = torch.full((slots + 200, 4), -7, dtype=torch.int32, device=triton_device)
    attention_tiles_kernel[(1,)](cu.to(triton_device), memory, len(lengths), total, slots, TILE=64, GROUP=64)
    assert (memory[slots:] == -7).all()
    assert torch.equal(memory[:slots].cpu(), attention_tiles_reference(cu, total, 64))
    assert memory[:slots].max() <= total


def test_sequences_that_overlap_stay_inside_the_table(triton_device):
    """cu_seqlens that falls names more tiles than the table has slots for, although no row is behind the buffers."""
    from kernels.attention_tiles_kernel import attention_tiles_kernel

    cu, total = torch.tensor([0, 640, 0, 640], dtype=torch.int32), 640
    slots = slots_needed(total, 3, 64)
    memory = torch.full((slots + 50, 4), -7, dtype=torch.int32, device=triton_device)
    attention_tiles_kernel[(1,)](cu.to(triton_device), memory, 3, total, slots, TILE=64, GROUP=64)
    assert (memory[slots:] == -7).all()
    assert memory[:slots].max() <= total


def test_long_batches_take_tall_tiles():
    assert attention_plan(cumulative([512, 512]), 1024, 64, torch.bfloat16).tile == 128
    assert attention_plan(cumulative([178, 178]), 356, 64, torch.bfloat16).tile == 64
    assert attention_plan(cumulative([512]), 512, 64, torch.float32).tile == 32
    with pytest.raises(ValueError, match="int32"):
        attention_plan(cumulative([3]).long(), 3, 64, torch.float32)
