"""Optimizer state and counters come back exactly, and only into the model that they are of."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spanbert.checkpoint.training_state import load_training_state, save_training_state
from spanbert.errors import UserError
from spanbert.training.optim import adamw


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_optimizer_state_comes_back_exactly(tmp_path):
    torch.manual_seed(0)
    one = nn.Linear(4, 2)
    optimizer = adamw(one, 0.1)
    train(one, optimizer, 3)
    save_training_state(tmp_path, one, optimizer, {"step": 3, "window": [[1.0]]})
    other = nn.Linear(4, 2)
    other.load_state_dict(one.state_dict())
    restored = adamw(other, 0.1)
    assert load_training_state(tmp_path, other, restored) == {"step": 3, "window": [[1.0]]}
    train(one, optimizer, 2)
    train(other, restored, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match=r"has state for '(weight|bias)', which this model does not have"):
        load_training_state(tmp_path, nn.Sequential(other), adamw(other, 0.1))
    assert json.loads((tmp_path / "training_state.json").read_text())["step"] == 3


@pytest.mark.parametrize("content", ["null", "[]", '{"step": 3'])
def test_broken_counters_are_one_sentence(tmp_path, content):
    one = nn.Linear(4, 2)
    save_training_state(tmp_path, one, adamw(one, 0.1), {"step": 0})
    (tmp_path / "training_state.json").write_text(content)
    with pytest.raises(UserError, match=r"training_state.json: (expected a JSON object|not valid JSON)"):
        load_training_state(tmp_path, one, adamw(one, 0.1))
