"""The counter-based dropout mask: the generator, the share, and the kernel's agreement with the reference."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from kernels.dropout import BITS, keep_mask, keep_scale_of, keep_words, philox, seed_tensor, threshold_of


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """The known-answer vectors of Philox4x32-7 published with the Random123 library."""
    words = philox(tuple(torch.tensor(c) for c in counter), key)
    assert tuple(w.item() for w in words) == expected


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_share_and_expectation(p):
    rows = torch.arange(400)
    keep = keep_mask(7, torch.zeros_like(rows), rows, 500, p)
    share = keep.double().mean().item()
    quantised = 1 / keep_scale_of(p)
    assert abs(quantised - (1 - p)) <= 2.0 ** -(BITS + 1)
    assert abs(share - quantised) <= 4 * (quantised * (1 - quantised) / keep.numel()) ** 0.5


def test_decisions_are_independent_of_their_neighbours():
    """Pairs of columns, rows, streams and seeds agree as often as independent draws do: no bit is used twice."""
    rows = torch.arange(300)
    stream = torch.zeros_like(rows)
    mask = keep_mask(1, stream, rows, 320, 0.5)
    others = {
        "next column": (mask[:, 1:], mask[:, :-1]),
        "32 columns on": (mask[:, 32:], mask[:, :-32]),
        "next row": (mask[1:], mask[:-1]),
        "next stream": (mask, keep_mask(1, stream + 1, rows, 320, 0.5)),
        "next seed": (mask, keep_mask(2, stream, rows, 320, 0.5)),
        "high half of the seed": (mask, keep_mask(1 + (1 << 32), stream, rows, 320, 0.5)),
        "other calls": (mask, keep_mask(1, stream, rows, 320, 0.5, first_call=16)),
    }
    for name, (a, b) in others.items():
        assert abs((a == b).double().mean().item() - 0.5) < 0.01, name


def test_threshold_range():
    assert threshold_of(0.0) == 0
    assert threshold_of(0.1) == round(0.1 * 4096)
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="dropout probability"):
            threshold_of(p)
    with pytest.raises(ValueError, match="one number"):
        seed_tensor(torch.zeros(2), torch.device("cpu"))


def test_kernel_draws_the_same_words(triton_device):
    spec = importlib.util.spec_from_file_location("mask_kernel", Path(__file__).with_name("mask_kernel.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    seed, p = -5_000_000_000_123, 0.3
    drawn = torch.zeros(16, 2, dtype=torch.int32, device=triton_device)
    arguments = seed_tensor(seed, triton_device), threshold_of(p)
    module.draw_words[(1,)](drawn, *arguments, ROWS=16, WORDS=2)
    words = keep_words(seed, torch.tensor(3), torch.arange(1000, 1016)[:, None], torch.tensor([2, 3]), p, 16)
    assert torch.equal(drawn.cpu().long() & 0xFFFFFFFF, words)
