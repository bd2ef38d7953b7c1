"""Optimizer groups, schedule, clipping, and the step that is not taken."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spanbert.training.optim import adamw, clip_gradients, linear_schedule, set_learning_rate, step_unless


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))


def test_biases_and_layer_norms_do_not_decay():
    m = model()
    optimizer = adamw(m, lr=0.1, weight_decay=0.5)
    before = [p.detach().clone() for p in m.parameters()]
    for p in m.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(m.parameters(), before, strict=True):
        assert torch.allclose(p, old * 0.95 if p.ndim >= 2 else old)


def test_frozen_parameters_are_left_out():
    m = model()
    m[1].requires_grad_(False)
    held = [p for group in adamw(m, 0.1).param_groups for p in group["params"]]
    assert len(held) == 3


def test_schedule():
    assert [linear_schedule(x, 0.2) for x in (0, 0.1, 0.2, 0.6, 1.0, 2.0)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert linear_schedule(0.0, 0.0) == 1.0 and linear_schedule(0.5, 1.0) == 0.5
    optimizer = adamw(model(), 0.1)
    set_learning_rate(optimizer, 0.03)
    assert {group["lr"] for group in optimizer.param_groups} == {0.03}


def test_clipping_measures_and_scales():
    m = model()
    for p in m.parameters():
        p.grad = torch.full_like(p, 2.0)
    count = sum(p.numel() for p in m.parameters())
    assert clip_gradients(m.parameters(), 0).item() == pytest.approx(2 * math.sqrt(count))
    assert m[0].weight.grad.max() == 2.0, "0 only measures"
    assert clip_gradients(m.parameters(), 1.0).item() == pytest.approx(2 * math.sqrt(count))
    assert clip_gradients(m.parameters(), 1.0).item() == pytest.approx(1.0, rel=1e-4)


def test_a_bad_step_changes_nothing_at_all():
    """Neither weights nor moments nor the step count of bias correction; the next step is as if it had not been."""
    twin_a, twin_b = model(), model()
    optimizers = adamw(twin_a, 0.1), adamw(twin_b, 0.1)
    plan = [(1.0, False), (math.nan, True), (math.inf, True), (0.5, False)]
    for twin, optimizer, steps in ((twin_a, optimizers[0], plan), (twin_b, optimizers[1], [plan[0], plan[3]])):
        for value, bad in steps:
            for p in twin.parameters():
                p.grad = torch.full_like(p, value)
            step_unless(optimizer, torch.tensor(bad))
    for a, b in zip(twin_a.parameters(), twin_b.parameters(), strict=True):
        assert torch.equal(a, b)
        for key, value in optimizers[0].state[a].items():
            assert torch.equal(value, optimizers[1].state[b][key]), key
    assert not hasattr(optimizers[0], "found_inf")
