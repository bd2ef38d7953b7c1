"""Dropout by bytes: the right share, the right expectation, the right gradient, and a mask that its seed names."""

from __future__ import annotations

import math

import pytest
import torch

from spanbert.model.attention import attention
from spanbert.model.config import EncoderConfig
from spanbert.model.dropout import draw_bytes, dropout, dropout_key, generator_of, keep_scale_of, kept, threshold_of
from spanbert.model.encoder import Encoder
from spanbert.model.packing import cumulative


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.003])
def test_share_and_expectation(p):
    count = 1_000_003  # not a multiple of eight
    keep = kept(draw_bytes(torch.Size([count]), generator_of(1)), p)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    share = 1 - threshold_of(p) / 256
    assert abs(keep.sum().item() - count * share) < 5 * math.sqrt(count * share * (1 - share))
    assert abs(share - (1 - p)) <= 1 / 512 or threshold_of(p) == 1
    for place in range(8):  # every byte of a word is uniform, the sign bit's too
        part = keep[place::8]
        assert abs(part.float().mean().item() - share) < 5 * math.sqrt(share * (1 - share) / part.numel())
    assert share * keep_scale_of(p) == pytest.approx(1.0)
    assert dropout(torch.ones(count), p, 1).mean().item() == pytest.approx(1.0, abs=0.05 if p > 0.8 else 0.005)


def test_neighbours_are_independent():
    keep = kept(draw_bytes(torch.Size([400_000]), generator_of(2)), 0.25) - 0.75
    for lag in (1, 2, 7, 8, 9, 64):
        correlation = (keep[lag:] * keep[:-lag]).mean().item() / (0.75 * 0.25)
        assert abs(correlation) < 5 / math.sqrt(400_000)


def test_the_seed_names_the_mask():
    x = torch.ones(5, 33)
    torch.manual_seed(0)
    one = dropout(x, 0.3, 7)
    torch.rand(10)
    assert torch.equal(one, dropout(x, 0.3, 7)), "nothing drawn elsewhere matters"
    assert not torch.equal(one, dropout(x, 0.3, 8))
    assert dropout(x, 0.0, 7) is x
    keys = {dropout_key(seed, step, part) for seed in range(5) for step in range(50) for part in range(5)}
    assert len(keys) == 1250 and all(0 <= key < 2**63 for key in keys)
    with pytest.raises(ValueError):
        threshold_of(1.0)


def test_gradient_passes_where_the_value_did():
    x = torch.randn(40, 50, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4, 3)
    y.backward(g := torch.randn_like(y))
    assert torch.equal(x.grad, torch.where(y != 0, g * keep_scale_of(0.4), 0.0))
    assert torch.autograd.gradcheck(
        lambda x: dropout(x, 0.4, 3), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    )


def test_attention_drops_probabilities():
    """With v = identity the output is the probabilities: dropped ones are 0, the others scaled, the mean is kept."""
    length = 64
    q, k = torch.randn(2, length, 1, length).unbind(0)
    v = torch.eye(length)[:, None]
    cu_seqlens = cumulative(torch.tensor([length]))
    plain, dropped = (attention(q, k, v, cu_seqlens, length, p, seed=5)[:, 0] for p in (0.0, 0.2))
    stays = dropped != 0
    assert abs(stays.float().mean().item() - (1 - threshold_of(0.2) / 256)) < 0.03
    torch.testing.assert_close(dropped[stays], plain[stays] * keep_scale_of(0.2))
    again = attention(q, k, v, cu_seqlens, length, 0.2, seed=5)[:, 0]
    assert torch.equal(again, dropped) and not torch.equal(
        attention(q, k, v, cu_seqlens, length, 0.2, seed=6)[:, 0], again
    )


def test_a_model_without_a_seed_draws_a_fresh_one():
    """The default must not train under one fixed mask."""
    shape = EncoderConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    encoder = Encoder(shape).train()
    ids, cu_seqlens = torch.arange(20), cumulative(torch.tensor([20]))
    with torch.no_grad():
        one, two = (encoder(ids, cu_seqlens, 20) for _ in range(2))
        assert not torch.equal(one, two)
        encoder.dropout_seed = 5
        assert torch.equal(encoder(ids, cu_seqlens, 20), encoder(ids, cu_seqlens, 20))
        encoder.eval()
        encoder.dropout_seed = None
        assert torch.equal(encoder(ids, cu_seqlens, 20), encoder(ids, cu_seqlens, 20))


def test_half_precision_keeps_its_dtype():
    x = torch.ones(4, 9, dtype=torch.bfloat16, requires_grad=True)
    y = dropout(x, 0.5, 1)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16 and set(y.unique().tolist()) == {0.0, 2.0}
