"""How the command ends when something around it fails: in seconds, with one sentence, a status, and no child left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.train import run_pretrain
from spanbert.checkpoint.model_folder import load_model
from spanbert.checkpoint.store import find_model
from spanbert.config import save_json, to_dict
from spanbert.device import PeakFlops
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining
from spanbert.training.run_folder import RunFolder
from spanbert.training.signals import Stopped

#: Longer than any of these commands takes to end, and less than what it waited for ever.
SECONDS = 40


@pytest.fixture
def start(config) -> Callable[..., subprocess.Popen]:
    """Begin a run too long to end by itself, as a user does, and wait for its first checkpoint."""
    running: list[subprocess.Popen] = []

    def command(*more: str, wait: bool = True, **streams) -> subprocess.Popen:
        options: PretrainConfig = config()
        arguments = [
            "pretrain", str(options.data), "--output", str(options.output), "--init-from", str(options.init_from),
            "--steps", "100000", "--warmup", "0.1", "--batch-size", "8", "--device", "cpu", "--precision", "fp32",
            "--log-every", "1", "--save-every", "5", "--eval-every", "100000", "--eval-sequences", "8", *more,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        process = subprocess.Popen([sys.executable, "-m", "spanbert", *arguments], text=True, env=environment, **pipes)
        running.append(process)
        deadline = time.monotonic() + 2 * SECONDS
        while wait and not list((options.output / "checkpoints").glob("step-*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return process

    yield command
    for process in running:
        for child in children(process.pid) if process.poll() is None else []:
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ending(process: subprocess.Popen, workers: list[int] = ()) -> tuple[int, str]:
    """Exit status and the last line of standard error; no worker outlives the command."""
    _, errors = process.communicate(timeout=SECONDS)
    deadline = time.monotonic() + 10
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers)), "a worker is left behind"
    return process.returncode, errors.strip().split("\n")[-1]


def test_a_killed_worker_ends_the_command(start):
    """Workers ignored SIGTERM, and the exit handler joined the ones that were left: it hung for ever."""
    process = start("--workers", "2")
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    status, sentence = ending(process, workers)
    assert status == 2 and sentence.startswith("error: a process that prepares batches was killed")


CRASH = """
import sys
from pretrain.config import PretrainConfig
from pretrain.train import run_pretrain
from spanbert.config import load_json
from spanbert.training.step import OptimizerStep
honest = OptimizerStep.gradients
def gradients(self, step, *rest):
    if step == 3:
        raise ZeroDivisionError("a bug")
    return honest(self, step, *rest)
OptimizerStep.gradients = gradients
run_pretrain(load_json(PretrainConfig, sys.argv[1]))
"""


def test_a_crash_ends_the_command(config, tmp_path):
    """Python keeps the frames of a crash until its exit handlers run, and those waited for workers that ignored SIGTERM."""
    save_json(to_dict(config(workers=2)), tmp_path / "options.json")
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path / "options.json")],
        capture_output=True, text=True, timeout=SECONDS, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 1 and "a bug" in done.stderr


def test_a_signal_to_the_whole_group_lets_the_loop_save_and_end_its_workers(start, config):
    """A scheduler sends SIGTERM to workers, too: they must go on until the loop has ended."""
    process = start("--workers", "2")
    workers = children(process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    time.sleep(0.5)
    assert all(map(is_alive, workers)) and process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    status, _ = ending(process, workers)
    assert status == 143
    checkpoints = sorted((config().output / "checkpoints").iterdir())
    progress = json.loads((checkpoints[-1] / "config.json").read_text())["training_progress"]
    assert progress == {"step": int(checkpoints[-1].name[5:]), "of": 100_000}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_interrupted_is_not_success(start, number, status):
    """It exited with 0: `spanbert pretrain && spanbert finetune` went on with half a model."""
    process = start()
    process.send_signal(number)
    assert ending(process)[0] == status


def test_a_removed_run_folder_is_one_sentence(start, config):
    """With two workers and an error in the loop the command hung for ever."""
    process = start("--workers", "2")
    workers = children(process.pid)
    config().output.rename(config().output.with_name("elsewhere"))  # at once, between any two of its files
    status, sentence = ending(process, workers)
    assert status == 2 and sentence.startswith("error: ") and "was the run's folder" in sentence
    assert not (config().output / "checkpoints").exists() or not list((config().output / "checkpoints").glob("step-*"))


def test_a_reader_that_leaves_does_not_end_training(start, config):
    """`spanbert pretrain … | head`: the first line that nobody read any more ended the run, with status 0."""
    process = start("--eval-every", "1", wait=False, stderr=subprocess.STDOUT)
    process.stdout.close()
    output, deadline = config().output, time.monotonic() + 2 * SECONDS
    while not list((output / "checkpoints").glob("step-0000001*")):
        assert process.poll() is None, "training ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 143


def test_a_checkpoint_of_a_stopped_run_says_so(config, monkeypatch, capsys):
    options = config(steps=40)
    honest = RunFolder.log

    def log(self, step, split, **values):
        honest(self, step, split, **values)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "log", log)
    with pytest.raises(Stopped):
        run_pretrain(options)
    assert "stopped at step 6 of 40, saved in" in capsys.readouterr().out
    checkpoint = find_model(options.output)
    assert "is not a finished model: its training had come to step 6 of 40" in capsys.readouterr().err
    assert "its training had come to step 6 of 40" in str(load_model(checkpoint, SpanBertForPretraining)[1])
    monkeypatch.setattr(RunFolder, "log", honest)
    run_pretrain(config(steps=8, output=options.output.with_name("whole")))
    assert "step" not in str(load_model(options.output.with_name("whole") / "model", SpanBertForPretraining)[1])


def test_decoration_never_keeps_a_finished_run_from_its_model(config, monkeypatch, capsys):
    """The curves were drawn before the model was written: a broken matplotlib cost the run its result."""

    class Broken:
        def __init__(self, *_, **__):
            pass

        def log(self, *_):
            raise OSError("no space for events")

        def close(self):
            raise RuntimeError("cannot close")

    def broken(*_, **__):
        raise RuntimeError("cannot draw")

    import spanbert.training.metrics

    monkeypatch.setattr("pretrain.saving.plot_curves", spanbert.training.metrics.plot_curves)
    monkeypatch.setattr("spanbert.training.metrics.plot_runs", broken)
    monkeypatch.setattr("spanbert.training.run_folder.open_trackers", lambda *_, **__: [Broken(), Broken()])
    options = config(steps=3)
    run_pretrain(options)
    assert (options.output / "model" / "model.safetensors").exists()
    warnings = capsys.readouterr().err
    assert "cannot draw; training is not affected" in warnings
    assert warnings.count("no space for events") == 2, "each is left out after its first failure"


def test_a_read_only_run_is_one_sentence(config, monkeypatch):
    def full(*_, **__):
        raise PermissionError(13, "Permission denied", "metrics.jsonl")

    options = config(steps=4)
    monkeypatch.setattr("spanbert.training.run_folder.report_full_disk", full)
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written \(Permission denied\)"):
        run_pretrain(options)


def test_utilisation_is_never_above_the_peak(config, monkeypatch):
    """The peak was measured once, at a moment when the machine was busy, and 213 % of it were reported."""
    monkeypatch.setattr("spanbert.device.measured_peak_flops", lambda *_: 1.0)
    options = config(steps=6, log_every=1)
    run_pretrain(options)
    records = [json.loads(line) for line in (options.output / "metrics.jsonl").read_text().splitlines()]
    shares = [r["model_flops_utilisation"] for r in records if r["split"] == "train"]
    assert shares[0] == 1.0 and len(shares) == 6 and all(0 < share <= 1 for share in shares)


def test_a_peak_that_is_exceeded_is_measured_again(monkeypatch):
    """Whatever the machine does beside the test: the speeds are given."""
    peaks = iter([1.0, 1.0, 8.0])
    monkeypatch.setattr("spanbert.device.measured_peak_flops", lambda *_: next(peaks))
    peak = PeakFlops(torch.device("cpu"), "fp32", 32)
    assert peak.utilisation(4.0) == 1.0, "the second measurement was no better: the work itself is the peak"
    assert peak.utilisation(2.0) == 0.5
    assert peak.utilisation(6.0) == 0.75, "the third was"
    assert next(peaks, None) is None
