"""Checkpoints: whole or absent, proven by hashes, the newest and the best kept, the damaged named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spanbert.checkpoint.store import CheckpointStore, find_damage, find_model, prove_weights
from spanbert.errors import UserError


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


@pytest.mark.parametrize(
    "damage", ["changed", "missing", "no manifest", "torn manifest", "{}", "[]", "null", '{"sha256": 3}']
)
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
    if damage[0] in "{[n" and damage != "no manifest":
        (second / "manifest.json").write_text(damage)
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


def test_a_score_that_is_no_number_counts_as_none(tmp_path):
    """One that is text would be compared with numbers, or with nothing."""
    store = CheckpointStore(tmp_path, keep_last=3)
    first, second = (store.save(step, fill, 1.0) for step in (1, 2))
    for score in ("good", True, [1], None, 10**400):
        manifest = json.loads((second / "manifest.json").read_text())
        (second / "manifest.json").write_text(json.dumps({**manifest, "score": score}))
        assert store.best() == first


# --- finding a model ----------------------------------------------------------------------------------------------


def test_finding_the_model(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_model(tmp_path / "x")
    with pytest.raises(UserError, match="neither a model folder"):
        find_model(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="without a whole checkpoint: train"):
        find_model(tmp_path)
    with pytest.raises(UserError, match="without a whole checkpoint that was validated"):
        find_model(tmp_path, "best")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert find_model(tmp_path) == tmp_path / "model" == find_model(tmp_path / "model")


def with_config(folder: Path) -> None:
    fill(folder)
    (folder / "config.json").write_text("{}")


def test_the_best_checkpoint_is_looked_at_for_damage_too(tmp_path, capsys):
    """Only the newest was: `--which best` exported a model whose file had been cut off."""
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=3)
    paths = [store.save(step, with_config, score) for step, score in ((1, 3.0), (2, 1.0), (3, 2.0))]
    assert find_model(tmp_path, "best") == paths[1]
    (paths[1] / "weights").write_bytes(b"12")
    assert find_model(tmp_path, "best") == paths[2]
    assert "step-00000002 is damaged (weights does not match its SHA-256)" in capsys.readouterr().out
    assert find_model(paths[0]) == paths[0]
    with pytest.raises(UserError, match="step-00000002 is damaged"):
        find_model(paths[1])


def test_a_download_cache_means_its_snapshot(tmp_path):
    """The folder that Hugging Face's tools keep holds the files two folders deeper, under a hash."""
    cache = tmp_path / "models--owner--bert"
    for name in ("0a1b", "2c3d"):
        (cache / "snapshots" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="2 versions of the model: name one"):
        find_model(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("2c3d\n")
    assert find_model(cache) == cache / "snapshots" / "2c3d"
    (cache / "refs" / "main").write_text("../../somewhere")
    (cache / "snapshots" / "2c3d").rmdir()
    assert find_model(cache) == cache / "snapshots" / "0a1b"


@pytest.mark.parametrize("named", ["run", "its model"])
def test_a_finished_model_with_other_weights_is_refused(tmp_path, named):
    """Flipped bits in a run's model were taken for weights: only its checkpoints had hashes."""
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    prove_weights(model)
    path = model if named == "its model" else model.parent
    assert find_model(path) == model
    (model / "README.md").write_text("more")  # what is not weights may change
    assert find_model(path) == model
    (model / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"model.safetensors does not match its SHA-256.*remove its manifest.json"):
        find_model(path)
    (model / "manifest.json").unlink()
    assert find_model(path) == model
