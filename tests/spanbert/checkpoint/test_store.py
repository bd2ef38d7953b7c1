"""Checkpoints: whole or absent, proven by hashes, the newest and the best kept, the damaged named."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spanbert.checkpoint.store import CheckpointStore, find_damage
from spanbert.checkpoint.training_state import load_training_state, save_training_state
from spanbert.errors import UserError
from spanbert.training.optim import adamw


def fill(folder):
    (folder / "weights").write_bytes(b"123")
    (folder / "sub").mkdir()
    (folder / "sub" / "more").write_bytes(b"456")


def steps(store) -> list[int]:
    return [int(p.name[5:]) for p in store.all()]


def test_the_newest_and_the_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step, score in [(1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, 1.0), (6, float("nan")), (100_000_000, None)]:
        store.save(step, fill, score)
    assert steps(store) == [5, 6, 100_000_000], "the newest of equally good ones; order by number, not by name"
    assert store.best().name == "step-00000005"
    assert store.newest_whole().name == "step-100000000"
    assert store.newest_whole(before=6).name == "step-00000005"
    assert CheckpointStore(tmp_path / "none").newest_whole() is None


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest", "torn manifest"])
def test_damage_is_named_and_passed_over(tmp_path, damage):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.keep_last = 2
    first, second = (store.save(step, fill, 1.0) for step in (1, 2))
    if damage == "changed":
        (second / "sub" / "more").write_bytes(b"457")
    if damage == "missing":
        (second / "weights").unlink()
    if damage == "no manifest":
        (second / "manifest.json").unlink()
    if damage == "torn manifest":
        (second / "manifest.json").write_text('{"sha')
    said: list[str] = []
    assert store.newest_whole(said.append) == first
    assert len(said) == 1 and "step-00000002 is damaged" in said[0] and find_damage(second) in said[0]
    store.set_aside_after(first)
    assert steps(store) == [1]
    store.keep_last = 1
    store.save(2, fill)
    assert steps(store) == [1, 2], "the best stays, and a damaged one pushes nothing out"


def test_a_write_that_fails_changes_nothing(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, fill)

    def fail(folder):
        fill(folder)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.save(1, fail)
    assert find_damage(store.newest_whole()) is None and len(list(tmp_path.iterdir())) == 1


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
