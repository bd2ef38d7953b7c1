"""Packing: padded ↔ packed without loss, and every token knows its place."""

from __future__ import annotations

import pytest
import torch

from spanbert.model.packing import cumulative, pack, position_ids, unpack

LENGTHS = ([3, 1, 5, 5], [1], [7], [0, 4, 0, 2, 0], [512, 1, 511])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("tail", [(), (4,), (2, 3)])
def test_unpack_undoes_pack(lengths, tail):
    lengths_B = torch.tensor(lengths)
    longest = max(lengths) + 2
    padded = torch.randn(len(lengths), longest, *tail, generator=torch.Generator().manual_seed(1))
    flat, cu_seqlens = pack(padded, lengths_B)
    assert flat.shape == (sum(lengths), *tail)
    assert cu_seqlens.dtype == torch.int32 and cu_seqlens.tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]
    for row, (start, length) in enumerate(zip(cu_seqlens.tolist(), lengths, strict=False)):
        assert torch.equal(flat[start : start + length], padded[row, :length])
    back = unpack(flat, cu_seqlens, longest, fill=-9)
    real_BL = torch.arange(longest) < lengths_B[:, None]
    assert torch.equal(back[real_BL], padded[real_BL])
    assert (back[~real_BL] == -9).all()


@pytest.mark.parametrize("lengths", LENGTHS)
def test_position_ids_count_from_zero_in_every_sequence(lengths):
    cu_seqlens = cumulative(torch.tensor(lengths))
    expected = [place for length in lengths for place in range(length)]
    positions_T = position_ids(cu_seqlens, sum(lengths))
    assert positions_T.dtype == torch.int64 and positions_T.tolist() == expected


def test_gradients_pass_through_both_ways():
    lengths_B = torch.tensor([2, 4])
    padded = torch.randn(2, 5, 3, requires_grad=True)
    flat, cu_seqlens = pack(padded, lengths_B)
    unpack(flat * 2, cu_seqlens, 5).sum().backward()
    real_BL = torch.arange(5) < lengths_B[:, None]
    assert torch.equal(padded.grad, 2.0 * real_BL[..., None].expand(-1, -1, 3))
