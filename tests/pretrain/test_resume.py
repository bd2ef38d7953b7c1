"""A run that was stopped or killed and goes on ends as if nothing had happened: weights, optimizer, metrics."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import spanbert.files
from pretrain.config import PretrainConfig
from pretrain.train import run_pretrain
from spanbert.errors import UserError
from spanbert.training.run_folder import read_metrics
from spanbert.training.signals import Stopped
from spanbert.training.step import OptimizerStep

TIMING = ("tokens_per_second", "model_flops_utilisation")


def run_in_a_child(options: PretrainConfig) -> int:
    """Exit code of a forked process that trains; a negative one is the signal that ended it."""
    child = multiprocessing.get_context("fork").Process(target=_quietly, args=(options,))
    child.start()
    child.join(300)
    return child.exitcode


def _quietly(options: PretrainConfig) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    run_pretrain(options)


def result(output: Path) -> dict[str, object]:
    """Everything of a finished run that must not depend on how it came about."""
    (last,) = sorted((output / "checkpoints").glob("step-*"))[-1:]
    counters = json.loads((last / "training_state.json").read_text())
    counters.pop("seconds")
    return {
        "model": (output / "model" / "model.safetensors").read_bytes(),
        "weights": (last / "model.safetensors").read_bytes(),
        "optimizer": (last / "training_state.safetensors").read_bytes(),
        "counters": (last.name, counters),
        "score": json.loads((last / "manifest.json").read_text())["score"],
        "metrics": [{k: v for k, v in r.items() if k not in TIMING} for r in read_metrics(output / "metrics.jsonl")],
    }


def assert_same(one: Path, other: Path) -> None:
    for (name, expected), found in zip(result(one).items(), result(other).values(), strict=True):
        assert found == expected, f"{name} differs"


@pytest.fixture
def whole(config) -> PretrainConfig:
    """A run that nobody disturbed, dropout and all."""
    options = config(output=config().output.with_name("whole"))
    run_pretrain(options)
    return options


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [5, 6, 8, 12])
def test_stopped_politely(config, whole, monkeypatch, number, step):
    """In the middle of a metrics window (5), at a validation (6), at a checkpoint (8), at the very end (12)."""
    honest = OptimizerStep.take

    def take(self, *args):
        honest(self, *args)
        if self.step_seen == step:
            os.kill(os.getpid(), number)

    honest_gradients = OptimizerStep.gradients

    def gradients(self, step, *rest):
        self.step_seen = step + 1
        return honest_gradients(self, step, *rest)

    monkeypatch.setattr(OptimizerStep, "take", take)
    monkeypatch.setattr(OptimizerStep, "gradients", gradients)
    options = config()
    if step == 12:  # nothing was left to stop
        run_pretrain(options)
    else:
        with pytest.raises(Stopped) as stopped:
            run_pretrain(options)
        assert stopped.value.status == 128 + number
        assert not (options.output / "model").exists()
        assert (options.output / "checkpoints" / f"step-{step:08d}").is_dir()
        run_pretrain(dataclasses.replace(options, resume=True))
    assert_same(whole.output, options.output)
    again = dataclasses.replace(options, resume=True)
    run_pretrain(again)  # complete already: nothing happens
    assert_same(whole.output, options.output)


def test_a_complete_run_without_checkpoints_stays(config, whole, capsys):
    """It began anew, and in the end replaced the model."""
    shutil.rmtree(whole.output / "checkpoints")
    times = lambda: {path: path.stat().st_mtime_ns for path in whole.output.rglob("*") if path.name != ".lock"}  # noqa: E731
    before = times()
    capsys.readouterr()
    for steps in (whole.steps, 2 * whole.steps):
        run_pretrain(dataclasses.replace(whole, resume=True, steps=steps))
        said = capsys.readouterr().out
        assert "is complete; its model is" in said and f"--init-from {whole.output}/model" in said
        assert "from the beginning" not in said
    assert times() == before
    run_pretrain(dataclasses.replace(whole, replay=1))  # it needs no checkpoint
    assert "no earlier checkpoint: starting from the beginning" in capsys.readouterr().out
    shutil.rmtree(whole.output / "model")
    run_pretrain(dataclasses.replace(whole, resume=True))
    assert "from the beginning" in capsys.readouterr().out


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_accumulation(patch: pytest.MonkeyPatch) -> None:
    honest = OptimizerStep.backward

    def backward(self, step, number, *rest):
        if (step, number) == (6, 2):
            die()
        return honest(self, step, number, *rest)

    patch.setattr(OptimizerStep, "backward", backward)


def die_while_writing_weights(patch: pytest.MonkeyPatch) -> None:
    import pretrain.saving

    honest = pretrain.saving.write_model

    def write_model(folder, *rest):
        if "00000008" in folder.name:
            (folder / "model.safetensors").write_bytes(b"half a file")
            die()
        honest(folder, *rest)

    patch.setattr(pretrain.saving, "write_model", write_model)


def die_before_the_rename(patch: pytest.MonkeyPatch) -> None:
    honest = spanbert.files.sync_folder

    def sync_folder(folder):
        if "00000008" in folder.name:
            die()
        honest(folder)

    patch.setattr(spanbert.files, "sync_folder", sync_folder)


def die_while_pruning(patch: pytest.MonkeyPatch) -> None:
    def rmtree(path, **_):
        if "step-00000004" in Path(path).name and Path(path).exists():
            (Path(path) / "manifest.json").unlink()
            die()

    patch.setattr(spanbert.files.shutil, "rmtree", rmtree)


def die_in_the_metrics(patch: pytest.MonkeyPatch) -> None:
    from spanbert.training.run_folder import RunFolder

    honest = RunFolder.log

    def log(self, step, split, **values):
        honest(self, step, split, **values)
        if step == 9:
            with self.metrics_path.open("a") as handle:
                handle.write('{"step": 9, "split": "validation", "mlm_l')
                handle.flush()
                die()

    patch.setattr(RunFolder, "log", log)


@pytest.mark.parametrize(
    "how",
    [die_in_accumulation, die_while_writing_weights, die_before_the_rename, die_while_pruning, die_in_the_metrics],
)
def test_killed_at_a_bad_moment(config, whole, how):
    options = config()
    with pytest.MonkeyPatch.context() as patch:
        how(patch)
        assert run_in_a_child(options) == -signal.SIGKILL
    run_pretrain(dataclasses.replace(options, resume=True))
    assert_same(whole.output, options.output)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(config, monkeypatch):
    """SIGKILL, again and again, wherever the run happens to be, workers or not: while it starts, in a step, in a save.

    The moments are a number of steps and a fraction of a second after them, so that a busy machine has them too.
    """
    rng = random.Random(0)
    options = config(steps=400, save_every=9, eval_every=60)
    undisturbed = dataclasses.replace(options, output=options.output.with_name("whole"))
    assert run_in_a_child(undisturbed) == 0

    context = multiprocessing.get_context("fork")
    steps = context.Value("i", 0)
    honest = OptimizerStep.gradients

    def gradients(self, *arguments):
        steps.value += 1
        return honest(self, *arguments)

    monkeypatch.setattr(OptimizerStep, "gradients", gradients)
    kills = in_a_step = 0
    while not (options.output / "model").exists():
        resumes = (options.output / "config.json").exists()
        now = dataclasses.replace(options, resume=resumes, workers=rng.choice([0, 0, 1, 2]))
        steps.value, target = 0, rng.choice([0, *range(1, 25)])
        child = context.Process(target=_quietly, args=(now,))
        child.start()
        if kills < 20:
            until = time.monotonic() + 120
            while steps.value < target and child.is_alive() and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05 if target else 1))
        else:
            child.join(120)
        if child.is_alive():
            assert kills < 20, "the run does not end"
            child.kill()
            kills += 1
            in_a_step += steps.value > 0
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
    assert kills == 20 and in_a_step >= 15
    assert_same(undisturbed.output, options.output)


def test_other_workers_and_micro_batches_see_the_same_data(config):
    """Without dropout, only rounding may differ."""
    plain = config(dropout=0.0, attention_dropout=0.0, output=config().output.with_name("plain"))
    run_pretrain(plain)
    options = dataclasses.replace(plain, output=config().output, save_every=5, steps=5)
    run_pretrain(options)
    run_pretrain(dataclasses.replace(options, resume=True, steps=12, workers=1, micro_batch_size=5))
    theirs = {r["step"]: r for r in read_metrics(plain.output / "metrics.jsonl") if r["split"] == "validation"}
    ours = {r["step"]: r for r in read_metrics(options.output / "metrics.jsonl") if r["split"] == "train"}
    assert ours[12]["tokens"] == theirs[12]["tokens"]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(config, whole, monkeypatch, capsys):
    options = config(steps=12)
    with pytest.MonkeyPatch.context() as patch:
        die_in_the_metrics(patch)
        run_in_a_child(options)
    newest = options.output / "checkpoints" / "step-00000008"
    content = bytearray((newest / "training_state.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "training_state.safetensors").write_bytes(content)
    run_pretrain(dataclasses.replace(options, resume=True))
    said = capsys.readouterr().out
    assert "step-00000008 is damaged (training_state.safetensors does not match its SHA-256)" in said
    assert "resuming from" in said and "step-00000004" in said
    assert_same(whole.output, options.output)


def test_refuses_to_resume_with_other_options_or_data(config, corpus, tmp_path, tiny_model):
    from pretrain.data.prepare import PrepareConfig, run_prepare
    from pretrain.masking.masker import MaskConfig

    options = config(steps=2)
    run_pretrain(options)
    metrics = (options.output / "metrics.jsonl").read_bytes()
    again = dataclasses.replace(options, resume=True)
    with pytest.raises(UserError, match=r"batch_size = 8, now it is 4"):
        run_pretrain(dataclasses.replace(again, batch_size=4))
    with pytest.raises(UserError, match=r"mask.scheme = 'geometric', now it is 'subword'"):
        run_pretrain(dataclasses.replace(again, mask=MaskConfig(scheme="subword")))
    (tmp_path / "other.txt").write_text((corpus.parent / "text.txt").read_text()[:4000])
    run_prepare(PrepareConfig((str(tmp_path / "other.txt"),), tiny_model, tmp_path / "other", 32, 1, 0.25))
    with pytest.raises(UserError, match="is not the data that"):
        run_pretrain(dataclasses.replace(again, data=tmp_path / "other"))
    assert (options.output / "metrics.jsonl").read_bytes() == metrics


def test_resumes_a_run_of_a_version_that_had_fewer_options(config):
    """What the run did then is what the default does now; anything else is refused, as for every option."""
    from pretrain.masking.masker import MaskConfig

    options = config(steps=2)
    run_pretrain(options)
    stored = json.loads((options.output / "config.json").read_text())
    del stored["mask"]["words"], stored["clip_norm"]
    (options.output / "config.json").write_text(json.dumps(stored))
    again = dataclasses.replace(options, resume=True, steps=3)
    with pytest.raises(UserError, match=r"mask.words = 'tokenizer', now it is 'annotated'"):
        run_pretrain(dataclasses.replace(again, mask=MaskConfig(words="annotated")))
    with pytest.raises(UserError, match=r"clip_norm = 1.0, now it is 0.5"):
        run_pretrain(dataclasses.replace(again, clip_norm=0.5))
    run_pretrain(again)
    assert json.loads((options.output / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_two_processes_cannot_train_one_run(config, monkeypatch):
    import fcntl

    options = config(steps=2)
    run_pretrain(options)
    monkeypatch.setattr("spanbert.training.run_folder.PATIENCE_SECONDS", 0)
    with (options.output / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is training"):
            run_pretrain(dataclasses.replace(options, resume=True))


def test_a_full_disk_leaves_the_checkpoint_before(config, monkeypatch):
    """Said once and clearly, whether Python or safetensors meets the end of the disk."""
    import errno

    from safetensors import SafetensorError

    import spanbert.checkpoint.training_state

    full = [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ]
    for number, error in enumerate(full):
        options = config(output=config().output.with_name(f"full{number}"))
        honest, calls = spanbert.checkpoint.training_state.save_file, []

        def save_file(tensors, path, *rest, honest=honest, calls=calls, error=error, **more):
            calls.append(path)
            if len(calls) == 2:
                Path(path).write_bytes(b"half")
                raise error
            honest(tensors, path, *rest, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spanbert.checkpoint.training_state, "save_file", save_file)
            with pytest.raises(UserError, match=r"the disk is full while writing .*step-00000008"):
                run_pretrain(options)
        assert [p.name for p in (options.output / "checkpoints").iterdir()] == ["step-00000004"]
        run_pretrain(dataclasses.replace(options, resume=True))
        assert (options.output / "model").exists()
