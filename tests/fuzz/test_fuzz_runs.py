"""Broken run folders are listed, resumed from a whole checkpoint, or refused in one sentence."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spanbert.checkpoint.store import MANIFEST, CheckpointStore, find_damage
from spanbert.training.list_runs import RunsConfig, run_runs
from spanbert.training.resume import DATA, RunStart
from tests.fuzz.cases import SEED, fuzz
from tests.fuzz.mutations import dump, mutate_bytes, mutate_text, mutate_value

FAST_CASES = 30


@dataclass(frozen=True)
class Options:
    """A run's configuration."""

    output: str = "run"
    lr: float = 1e-4
    mask: tuple[str, ...] = ("span",)
    steps: int | None = 30


METRICS = [
    {"step": step, "split": split, "loss": 3.5, "mlm_loss": 2.5, "tokens_per_second": 900.5, "lr": None}
    for step in (10, 20, 30) for split in ("train", "validation")
]  # fmt: skip
#: Of which file of the run → its good content. The older checkpoint is never broken.
FORMATS: dict[str, Any] = {
    "metrics.jsonl": METRICS,
    "config.json": {"output": "run", "lr": 1e-4, "mask": ["span"], "steps": 30},
    DATA: {"path": "data", "sha256": "d" * 64},
    f"checkpoints/step-00000020/{MANIFEST}": {},
}
FILES = {"config.json": b"{}", "training_state.json": b'{"step": 20}'}


def manifest(step: int) -> dict[str, Any]:
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    return {"step": step, "score": 2.5 - step / 100, "sha256": hashes}


def write_run(run: Path) -> None:
    for step in (10, 20):
        checkpoint = run / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        for name, content in FILES.items():
            (checkpoint / name).write_bytes(content)
        (checkpoint / MANIFEST).write_text(json.dumps(manifest(step)))
    for name, value in FORMATS.items():
        if not name.startswith("checkpoints"):
            (run / name).write_text("\n".join(map(json.dumps, value)) if isinstance(value, list) else json.dumps(value))


def maker(name: str) -> Callable[[random.Random], bytes]:
    def make(draw: random.Random) -> bytes:
        value: Any = FORMATS[name] or manifest(20)
        for _ in range(draw.choice((0, 1, 1, 2, 3))):
            value = mutate_value(draw, value)
        lines = value if isinstance(value, list) and name.endswith("jsonl") else [value]
        text = "\n".join(json.dumps(line) if len(lines) > 1 else dump(draw, line) for line in lines) + "\n"
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            text = mutate_text(draw, text)
        content = text.encode("utf-8", "surrogatepass")
        return mutate_bytes(draw, content) if draw.random() < 0.2 else content

    return make


def reader(name: str, top: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[bytes], str]:
    run = top / "run"

    def read(content: bytes) -> str:
        """List the runs, then resume: from a whole checkpoint, with metrics up to its step alone."""
        for old in (run / "checkpoints").glob("*"):  # one that was found damaged is set aside
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        write_run(run)
        (run / name).write_bytes(content)
        run_runs(RunsConfig(top))
        shown = capsys.readouterr().out
        assert "\n" in shown.strip(), "the run is not listed"
        assert len(shown) < 3000
        store = CheckpointStore(run / "checkpoints")
        best = store.best_whole(say=lambda line: None)
        assert best is None or find_damage(best) is None
        start = RunStart(run, Options(), ("output",), resume=True)
        try:
            assert start.checkpoint is not None, "the older checkpoint is whole"
            assert find_damage(start.checkpoint) is None
            start.check_data("d" * 64, Path("data"))
            step = int(start.checkpoint.name[-2:])
            folder = start.open(step, "d" * 64, Path("data"))
            assert folder is not None
            assert all(record["step"] <= step for record in folder.metrics())
            folder.log(step, "train", loss=1.0)
        finally:
            start.close()
        capsys.readouterr()
        return f"resumed at {step}"

    return read


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("spanbert.training.run_folder.open_trackers", lambda *_, **__: [])
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
def test_broken_runs_resume_or_are_refused(name: str, quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = fuzz(f"run: {name}", FAST_CASES, maker(name), reader(name, quick, capsys))
    assert outcomes["resumed at 20"], "the mutations leave no run"
    assert outcomes["refused"] or outcomes["resumed at 10"] or name == "metrics.jsonl", "the mutations break nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_broken_runs(name: str, seconds: float, quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz(f"run: {name}", None, maker(name), reader(name, quick, capsys), SEED + 1, seconds=seconds)
