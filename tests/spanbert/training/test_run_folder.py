"""A run's folder: metrics that survive crashes, refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from spanbert.errors import UserError
from spanbert.training.metrics import open_trackers
from spanbert.training.run_folder import RunFolder, read_metrics


@dataclass(frozen=True)
class Options:
    lr: float = 0.1
    steps: int = 5


@pytest.fixture(autouse=True)
def no_trackers(monkeypatch):
    monkeypatch.setattr("spanbert.training.run_folder.open_trackers", lambda *_, **__: [])


def test_metrics_are_cut_to_the_checkpoint_on_resume(tmp_path):
    run = RunFolder.start(tmp_path / "r", Options())
    for step in (1, 2, 3):
        run.log(step, "train", mlm_loss=1.0 / 3 / step, rate=float("nan"))
    run.close()
    with run.metrics_path.open("a") as handle:
        handle.write('{"step": 4, "split": "tr')
    assert [r["step"] for r in run.metrics()] == [1, 2, 3]
    run = RunFolder.reopen(tmp_path / "r", Options(steps=9), ("steps",), step=2)
    run.log(3, "train", mlm_loss=7.0)
    records = run.metrics()
    run.close()
    assert [(r["step"], r["mlm_loss"]) for r in records] == [(1, 1 / 3), (2, 1 / 6), (3, 7.0)], "floats survive exactly"
    assert records[0]["rate"] is None and "NaN" not in run.metrics_path.read_text()
    assert json.loads((tmp_path / "r" / "config.json").read_text())["steps"] == 9


def test_options_added_since_do_not_hinder_a_resume(tmp_path):
    run = RunFolder.start(tmp_path / "r", Options())
    run.close()
    (tmp_path / "r" / "config.json").write_text('{"lr": 0.1}')
    with pytest.raises(UserError, match=r"lr = 0.1, now it is 0.2: resume with the same options"):
        RunFolder.reopen(tmp_path / "r", Options(lr=0.2), (), 0)
    with pytest.raises(UserError, match=r"steps = 5, now it is 3"):  # the run did what the default does
        RunFolder.reopen(tmp_path / "r", Options(steps=3), (), 0)
    RunFolder.reopen(tmp_path / "r", Options(), (), 0).close()


def test_a_run_is_not_overwritten(tmp_path):
    RunFolder.start(tmp_path / "r", Options()).close()
    with pytest.raises(UserError, match="already holds a run: add --resume"):
        RunFolder.start(tmp_path / "r", Options())


def test_a_full_disk_is_said_while_logging(tmp_path, monkeypatch):
    run = RunFolder.start(tmp_path / "r", Options())
    run.metrics_path = type(tmp_path)("/dev/full")
    with pytest.raises(UserError, match="the disk is full while writing"):
        run.log(1, "train", mlm_loss=1.0)
    run.close()


def test_metrics_of_nothing(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []


class FakeWandb:
    """Stands in for the package, which is an extra."""

    def __init__(self):
        self.records, self.finished = [], False

    def init(self, **options):
        self.options = options
        return self

    def log(self, values, step):
        self.records.append((step, values))

    def finish(self):
        self.finished = True


def test_trackers_take_the_same_records(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert open_trackers(tmp_path, {}, 0) == []
    with pytest.raises(UserError, match="wandb is not installed"):
        open_trackers(tmp_path, {}, 0, wandb=True)
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tracker,) = open_trackers(tmp_path / "run", {"lr": 1}, 0, wandb=True)
    tracker.log(3, "train", {"mlm_loss": 2.0})
    tracker.close()
    assert fake.records == [(3, {"train/mlm_loss": 2.0})] and fake.finished
    assert fake.options["name"] == "run" and fake.options["config"] == {"lr": 1}
