"""What a run may continue from, and what it must not overwrite; the same for every stage."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from spanbert.errors import UserError
from spanbert.training.resume import RunStart, data_identity


@dataclass(frozen=True)
class Options:
    lr: float = 0.1
    steps: int = 5


def begin(output: Path, options: Options | None = None, **how) -> RunStart:
    return RunStart(output, options or Options(), ("steps",), **({"resume": False} | how))


def finish(start: RunStart, *steps: int, data: str = "abc") -> None:
    """Leave a folder with checkpoints of these steps, and metrics up to the last."""
    run = start.open(0, data, Path("data"))
    for step in steps:
        run.log(step, "train", loss=1.0)
        start.store.save(step, lambda folder: (folder / "weights").write_text("w"))
    start.close()


def test_a_new_run_is_written_only_when_it_is_opened(tmp_path):
    start = begin(tmp_path / "run")
    assert (start.resumes, start.checkpoint) == (False, None) and not (tmp_path / "run").exists()
    finish(start, 1)
    assert json.loads((tmp_path / "run" / "data.json").read_text()) == {"path": "data", "sha256": "abc"}
    with pytest.raises(UserError, match="already holds a run: add --resume to continue it"):
        begin(tmp_path / "run")


def test_two_commands_that_begin_one_run_at_once(tmp_path):
    """The second has looked before the first made the folder: what was read before the lock is read again after it."""
    first, second = begin(tmp_path / "run"), begin(tmp_path / "run")
    finish(first, 1)
    with pytest.raises(UserError, match="already holds a run"):
        second.open(0, "abc", Path("data"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UserError, match="holds no run; leave --resume out"):
        begin(tmp_path / "run", resume=True)
    assert not begin(tmp_path / "run", resume=True, optional=True).resumes
    begin(tmp_path / "run").open(0, "abc", Path("data")).close()
    start = begin(tmp_path / "run", resume=True)
    assert start.resumes and start.checkpoint is None
    start.close()


def test_resumes_from_the_newest_whole_checkpoint_and_sets_damaged_ones_aside(tmp_path, capsys):
    finish(begin(tmp_path / "run"), 1, 2)
    (tmp_path / "run" / "checkpoints" / "step-00000002" / "weights").write_text("x")
    start = begin(tmp_path / "run", Options(steps=9), resume=True)
    assert start.checkpoint.name == "step-00000001" and "step-00000002 is damaged" in capsys.readouterr().out
    run = start.open(1, "abc", Path("data"))
    assert [record["step"] for record in run.metrics()] == [1]
    assert [path.name for path in start.store.all()] == ["step-00000001"]
    start.close()


def test_two_checkpoints_are_kept_even_for_one(tmp_path):
    """With one, a newest checkpoint that turned out damaged was the end of the run."""
    start = begin(tmp_path / "run", keep_last=1)
    finish(start, 1, 2, 3)
    assert [path.name[-1] for path in start.store.all()] == ["2", "3"]


def test_refuses_other_options_and_other_data_and_changes_nothing(tmp_path):
    finish(begin(tmp_path / "run"), 1)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"lr = 0.1, now it is 0.2"):
        begin(tmp_path / "run", Options(lr=0.2), resume=True)
    start = begin(tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="is not the data that"):
        start.open(1, "other", Path("data"))
    start.close()
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_run_is_held_before_it_is_read(tmp_path, monkeypatch):
    """The lock used to be taken after the checkpoint was chosen and loaded: another process could train on meanwhile."""
    monkeypatch.setattr("spanbert.training.run_folder.PATIENCE_SECONDS", 0)
    finish(begin(tmp_path / "run"), 1)
    start = begin(tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="another process is training"):
        begin(tmp_path / "run", resume=True)
    start.close()
    with (tmp_path / "run" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert begin(tmp_path / "run", resume=True, before=2).checkpoint.name == "step-00000001", (
            "looking needs no lock"
        )


def test_data_identity_is_a_hash_of_all_parts():
    import hashlib

    import numpy as np

    array = np.arange(3)
    assert data_identity("ab", array) == hashlib.sha256(b"ab" + array.tobytes()).hexdigest()
    assert data_identity("ab", array) != data_identity("ab", array + 1)
