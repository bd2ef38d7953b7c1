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
    assert main(["plot", str(runs / "a"), "--output", str(tmp_path / "c.png")]) == 0, "a plot replaces a plot"
    assert main(["plot", str(runs)]) == 2
    assert "is not a run: it has no metrics.jsonl" in capsys.readouterr().err
    assert main(["plot", str(runs / "a"), "--metrics", "f1"]) == 2
    assert "no run has it; there are mlm_loss" in capsys.readouterr().err


def test_a_plot_replaces_nothing_but_a_plot(runs, tmp_path, capsys):
    """A name given by mistake cost a file."""
    (tmp_path / "c.png").write_bytes(b"a photograph")
    assert main(["plot", str(runs / "a"), "--output", str(tmp_path / "c.png")]) == 2
    assert "c.png exists and is no such plot" in capsys.readouterr().err
    assert (tmp_path / "c.png").read_bytes() == b"a photograph"


def test_links_that_go_round_and_damaged_lines_are_passed_over(runs, capsys, monkeypatch):
    """`runs` followed a link to the folder above for ever, and died of one line of metrics.jsonl; so did --resume."""
    (runs / "deep" / "round").symlink_to(runs)
    (runs / "deep" / "again").symlink_to(runs / "a")
    (runs / "self").symlink_to(runs / "self")
    damaged = [
        b'{"step": "3", "split": "train"}', b'{"step": 9}', b"\xff\xfe", b"[1]", b'{"step": 4, "split": ["x"]}',
        b"[" * 100_000, b'{"step": ' + b"9" * 5_000 + b', "split": "train"}', b"\x00" * 9,
        b'{"step": 2, "split": "validation", "mlm_loss": "low", "sbo_loss": 4.5, "tokens_per_second": "fast"}',
    ]  # fmt: skip
    with (runs / "deep" / "b" / "metrics.jsonl").open("ab") as handle:
        handle.write(b"\n".join(damaged) + b"\n")
    (runs / "unreadable").mkdir()
    (runs / "unreadable" / "run").mkdir()
    listed = type(runs).iterdir

    def iterdir(self):
        if self.name == "unreadable":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(type(runs), "iterdir", iterdir)
    assert main(["runs", str(runs)]) == 0
    shown = capsys.readouterr()
    assert [line.split()[:3] for line in shown.out.splitlines()[1:]] == [
        [str(runs / "a"), "finished", "3"],
        [str(runs / "deep" / "b"), "stopped", "2"],
    ]
    assert shown.out.splitlines()[2].split()[3:] == ["sbo", "4.500", "1,234"]
    assert shown.err == f"warning: not looked into: {runs}/unreadable: Permission denied\n"


def test_a_run_that_cannot_be_read_is_a_line_of_its_own(runs, capsys):
    (runs / "a" / "metrics.jsonl").unlink()
    (runs / "a" / "metrics.jsonl").mkdir()
    assert main(["runs", str(runs)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1] == "unreadable"


def test_a_name_is_no_formula(runs, tmp_path):
    """matplotlib read run$_{$x as mathematics, and a run of that name got no picture."""
    pytest.importorskip("matplotlib", reason="curves are drawn where matplotlib is")
    for name in ("run$_{$x", "_hidden"):
        (runs / "a").rename(runs / name)
        assert main(["plot", str(runs / name), str(runs / "deep" / "b"), "--output", str(tmp_path / "c.png")]) == 0
        (runs / name).rename(runs / "a")
