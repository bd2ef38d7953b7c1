"""Several ranks train what one would: same losses, other rank counts on resume, and a killed rank comes back."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.multiprocessing as mp

from pretrain.config import PretrainConfig
from pretrain.train import run_pretrain
from spanbert.checkpoint.model_folder import load_model
from spanbert.distributed import alone, join_group
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining
from spanbert.training.parallel import parallelise
from spanbert.training.run_folder import read_metrics
from spanbert.training.signals import Stopped
from spanbert.training.step import OptimizerStep


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(rank: int, world: int, port: int, options: PretrainConfig, stop_after: int | None) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    if stop_after is not None and rank == world - 1:  # not the leader: the others must hear of it
        honest = OptimizerStep.gradients

        def gradients(self, step, *rest):
            if step + 1 == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            return honest(self, step, *rest)

        OptimizerStep.gradients = gradients
    try:
        run_pretrain(options)
    except Stopped as stopped:
        assert stop_after is not None and stopped.number == signal.SIGTERM, "every rank hears of it"
    else:
        assert stop_after is None


def _failing_rank(*arguments) -> None:
    """As the command line does: the error is caught, and its frames let go."""
    with contextlib.suppress(UserError):
        _rank(*arguments)
        os._exit(1)


def train_on(world: int, options: PretrainConfig, stop_after: int | None = None) -> None:
    if world == 1:
        run_pretrain(options)
        return
    mp.start_processes(_rank, (world, free_port(), options, stop_after), nprocs=world, start_method="fork")


def losses(options: PretrainConfig) -> list[float]:
    return [r[k] for r in read_metrics(options.output / "metrics.jsonl") for k in ("mlm_loss", "sbo_loss") if k in r]


@pytest.fixture
def fifty(config) -> PretrainConfig:
    return config(steps=50, dropout=0.0, attention_dropout=0.0, log_every=1, eval_every=25, save_every=20)


@pytest.fixture
def single(fifty) -> PretrainConfig:
    options = dataclasses.replace(fifty, output=fifty.output.with_name("single"))
    run_pretrain(options)
    return options


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_have_the_losses_of_one(fifty, single, kind):
    options = dataclasses.replace(fifty, parallel=kind)
    train_on(2, options)
    assert losses(options) == pytest.approx(losses(single), abs=1e-5)
    assert len(losses(options)) == 2 * (50 + 3)
    model, report = load_model(options.output / "model", SpanBertForPretraining)
    assert not report.initialised and all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("kind", "worlds"), [("fsdp", (2, 1)), ("ddp", (1, 2)), ("fsdp", (1, 2))])
def test_resumes_on_another_number_of_ranks(fifty, single, kind, worlds):
    """Sharded on two, then whole on one; whole on one, then replicated or sharded on two."""
    first, second = worlds
    start = dataclasses.replace(fifty, parallel=kind if first > 1 else "ddp", save_every=17)
    if first == 1:  # stopped by the same signal, in this process
        with pytest.MonkeyPatch.context() as patch:
            honest = OptimizerStep.gradients

            def gradients(self, step, *rest):
                if step + 1 == 23:
                    os.kill(os.getpid(), signal.SIGTERM)
                return honest(self, step, *rest)

            patch.setattr(OptimizerStep, "gradients", gradients)
            with pytest.raises(Stopped):
                run_pretrain(start)
    else:
        train_on(first, start, stop_after=23)
    assert (start.output / "checkpoints" / "step-00000023" / "sharded").is_dir() == (kind == "fsdp" and first > 1)
    train_on(second, dataclasses.replace(start, parallel=kind if second > 1 else "ddp", resume=True))
    assert losses(start) == pytest.approx(losses(single), abs=1e-5)


def test_an_error_on_all_ranks_ends_them(config):
    """The frames of the error kept DDP alive after its process group was gone, and DDP's end then waited for ever."""
    with pytest.MonkeyPatch.context() as patch:

        def take(*_):
            raise UserError("nothing is finite")

        patch.setattr(OptimizerStep, "take", take)
        arguments = (2, free_port(), config(), None)
        ranks = mp.start_processes(_failing_rank, arguments, nprocs=2, start_method="fork", join=False)
    deadline = time.monotonic() + 60
    while not ranks.join(timeout=1):
        assert time.monotonic() < deadline, "the ranks wait for ever"


def test_fsdp_needs_torchrun():
    with pytest.raises(UserError, match="start it with torchrun"):
        parallelise(None, None, alone(), "fsdp")
    with join_group("cpu") as group:
        assert (group.rank, group.world, group.is_main) == (0, 1, True)
        assert group.sum([1.5, 2]) == [1.5, 2] and group.broadcast("x") == "x"


KILL_ONCE = """
import os, signal, sys
from pathlib import Path
from spanbert.training.step import OptimizerStep
honest = OptimizerStep.gradients
def gradients(self, step, *rest):
    if step == 9 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(self, step, *rest)
OptimizerStep.gradients = gradients
from spanbert.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_torchrun_brings_back_a_killed_rank(config, tmp_path):
    """Same command, no --resume: a restart goes on from the last checkpoint by itself and ends as if nothing had been."""
    (tmp_path / "kill_once.py").write_text(KILL_ONCE)
    options = config(output=tmp_path / "elastic")
    arguments = [
        "pretrain", str(options.data), "--output", str(options.output), "--init-from", str(options.init_from),
        "--steps", "12", "--batch-size", "8", "--micro-batch-size", "2", "--lr", "1e-3", "--warmup", "0.25",
        "--log-every", "3", "--eval-every", "6", "--eval-sequences", "16", "--save-every", "4", "--device", "cpu",
        "--precision", "fp32", "--seed", "3", "--dropout", "0", "--attention-dropout", "0",
    ]  # fmt: skip
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
    ]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "kill_once.py"), *arguments], capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from" in done.stdout and "step 8" in done.stdout
    whole = config(output=tmp_path / "whole", dropout=0.0, attention_dropout=0.0)
    run_pretrain(whole)
    assert losses(options) == pytest.approx(losses(whole), abs=1e-5)
