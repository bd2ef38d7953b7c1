"""`spanbert runs` and `spanbert plot`: from files alone."""

from __future__ import annotations

import fcntl
import json

import pytest

from spanbert.cli import main
from spanbert.training.list_runs import inspect


@pytest.fixture
def runs(tmp_path):
    for name, steps in (("a", 3), ("deep/b", 2)):
        run = tmp_path / name
        (run / "checkpoints" / "step-00000002").mkdir(parents=True)
        (run / "config.json").write_text("{}")
        records = [
            {"step": s, "split": "train", "mlm_loss": 5.0 - s, "sbo_loss": 6.0 - s, "tokens_per_second": 1234.5}
            for s in range(1, steps + 1)
        ]
        records.append({"step": 2, "split": "validation", "mlm_loss": 3.25, "sbo_loss": 4.5})
        (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "a" / "model").mkdir()
    (tmp_path / "unrelated").mkdir()
    (tmp_path / "unrelated" / "config.json").write_text("{}")
    return tmp_path


def test_lists_state_step_loss_and_speed(runs, capsys):
    assert main(["runs", str(runs)]) == 0
    header, a, b = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "step", "loss", "tokens/s"]
    assert a.split() == [str(runs / "a"), "finished", "3", "mlm", "3.250", "sbo", "4.500", "1,234"]
    assert b.split()[1:3] == ["stopped", "2"]
    (runs / "a" / ".lock").touch()
    with (runs / "a" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert inspect(runs / "a").state == "running"
    assert inspect(runs / "a").state == "finished"
    assert main(["runs", str(runs / "unrelated")]) == 0 and "no runs in" in capsys.readouterr().out
    assert main(["runs", str(runs / "absent")]) == 2


def test_plots_over_one_another(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="curves are drawn where matplotlib is")
    assert main(["plot", str(runs / "a"), str(runs / "deep" / "b"), "--output", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", str(runs)]) == 2
    assert "is not a run: it has no metrics.jsonl" in capsys.readouterr().err
    assert main(["plot", str(runs / "a"), "--metrics", "f1"]) == 2
    assert "no run has it; there are mlm_loss" in capsys.readouterr().err
