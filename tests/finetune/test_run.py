"""A run's folder: what resumes, what is refused, what a kill at any moment leaves, and several ranks."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import finetune.run as running
import finetune.train as training
from finetune.tasks.qa.commands import FinetuneQAConfig, run_finetune
from finetune.tasks.qa.task import QATask
from finetune.train import Drawn, micro_batches, share_of, step_windows
from spanbert.checkpoint.model_folder import save_model
from spanbert.checkpoint.store import find_model
from spanbert.distributed import Group
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import hold_run, read_metrics
from spanbert.training.signals import STOP_SIGNALS, Stopped, votes


class Killed(BaseException):
    pass


@pytest.fixture
def config(
    tmp_path: Path, data: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneQAConfig:
    """2 epochs × 8 steps, two micro-batches a step, saved after every step."""
    save_model(tmp_path / "start", make_model(), tokenizer)
    (tmp_path / "train.json").write_bytes((data / "qa_v1.json").read_bytes())
    return FinetuneQAConfig(
        tmp_path / "train.json",
        tmp_path / "run",
        str(tmp_path / "start"),
        epochs=2,
        batch_size=4,
        micro_batch_size=2,
        lr=1e-3,
        window=64,
        stride=20,
        max_question=40,
        log_every=3,
        save_every=1,
        device="cpu",
        precision="fp32",
        backend="eager",
    )


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(current: int, *rest: object) -> np.ndarray:
        if current == step:
            raise Killed
        return step_windows(current, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "step_windows", killed)


def run_until(config: FinetuneQAConfig, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        run_finetune(config)


def same_weights(left: Path, right: Path) -> bool:
    one, other = (load_file(run / "model" / "model.safetensors") for run in (left, right))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_checkpoints_are_kept_and_a_damaged_newest_one_is_set_aside(
    config: FinetuneQAConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The run continues from the one before, ends as if nothing had been, and the records do not come twice."""
    whole = replace(config, output=tmp_path / "whole")
    run_finetune(whole)
    run_until(config, 5)
    kept = sorted(path.name for path in (config.output / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005"]
    (config.output / "checkpoints" / "step-00000005" / "model.safetensors").write_bytes(b"torn")
    capsys.readouterr()
    run_until(replace(config, resume=True), 6)
    assert "step-00000005 is damaged" in capsys.readouterr().out
    names = {path.name for path in (config.output / "checkpoints").iterdir()}
    assert "damaged-step-00000005" in names
    run_finetune(replace(config, resume=True))
    assert same_weights(whole.output, config.output)
    steps, losses = ([(r[key]) for r in read_metrics(whole.output / "metrics.jsonl")] for key in ("step", "loss"))
    assert [r["step"] for r in read_metrics(config.output / "metrics.jsonl")] == steps == [3, 6, 9, 12, 15, 16]
    assert [r["loss"] for r in read_metrics(config.output / "metrics.jsonl")] == losses


def test_a_record_is_the_mean_of_its_steps(config: FinetuneQAConfig, tmp_path: Path) -> None:
    run_finetune(config)
    run_finetune(replace(config, output=tmp_path / "each", log_every=1))
    grouped, each = (read_metrics(run / "metrics.jsonl") for run in (config.output, tmp_path / "each"))
    parts = [each[:3], each[3:6], each[6:9], each[9:12], each[12:15], each[15:]]
    assert [r["tokens"] for r in grouped] == [sum(r["tokens"] for r in part) for part in parts]
    means = [np.mean([r["loss"] for r in part]) for part in parts]
    assert [r["loss"] for r in grouped] == pytest.approx(means, rel=0.05)  # the last step of an epoch has fewer windows


def test_resume_refuses_other_data_and_other_options_but_not_another_place(
    config: FinetuneQAConfig, data: Path, tmp_path: Path
) -> None:
    run_until(config, 3)
    config.train.rename(tmp_path / "moved.json")
    moved = replace(config, train=tmp_path / "moved.json", resume=True)
    run_until(moved, 4)
    with pytest.raises(UserError, match="batch_size"):
        run_finetune(replace(moved, batch_size=2))
    content = json.loads(moved.train.read_text(encoding="utf-8"))
    content["data"].reverse()  # the same questions in another order are another order of training
    moved.train.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not the data that"):
        run_finetune(moved)


@pytest.mark.parametrize("moment", ["prove_weights", "write_evaluation", "remove_folder"])
def test_a_kill_around_the_last_rename_loses_nothing(
    config: FinetuneQAConfig, moment: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Killed anywhere in its last seconds, the run completes on --resume; after them, it says that it is complete.

    It once said "complete" to a folder without curves, and left the checkpoints there for good; and it logged the last
    validation twice.
    """

    def killed(*_: object, **__: object) -> None:
        raise Killed

    config = replace(config, dev=config.train)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(running, moment, killed)
        run_finetune(config)
    assert (config.output / "checkpoints").exists()
    assert (config.output / "model").exists() == (moment != "prove_weights")
    run_finetune(replace(config, resume=True))
    assert "is complete" not in capsys.readouterr().out
    assert (config.output / "metrics.json").exists() and not (config.output / "checkpoints").exists()
    assert (config.output / "curves.png").exists()
    run_finetune(replace(config, output=tmp_path / "whole"))
    assert same_weights(config.output, tmp_path / "whole")
    records = read_metrics(config.output / "metrics.jsonl")
    assert [record["split"] for record in records].count("validation") == 1
    run_finetune(replace(config, resume=True))
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="lr"):
        run_finetune(replace(config, resume=True, lr=1.0))


@pytest.mark.parametrize("fault", ["predictions", "curves", "checkpoints"])
def test_the_model_is_written_whatever_happens_to_the_rest(
    config: FinetuneQAConfig, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A matplotlib error over the name of a run kept a finished training from writing its model."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    name = {"predictions": "write_evaluation", "curves": "plot_curves", "checkpoints": "remove_folder"}[fault]
    monkeypatch.setattr(running, name, fail)
    run_finetune(replace(config, dev=config.train, epochs=1))
    assert find_model(config.output) == config.output / "model"
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "No space left on device" in warnings[0]


@pytest.mark.parametrize(("stage", "error"), [("score", UserError("not finite")), ("decode", KeyError("a question"))])
def test_a_final_evaluation_that_fails_comes_after_the_model(
    config: FinetuneQAConfig, stage: str, error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An error of a metric kept a finished training from writing its model; it is told all the same, and --resume
    evaluates again."""

    def fail(*_: object, **__: object) -> None:
        raise error

    config = replace(config, dev=config.train, epochs=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)) as raised:
        patch.setattr(QATask, stage, fail)
        run_finetune(config)
    assert raised.value is error
    assert f"wrote {config.output}/model" in capsys.readouterr().out
    assert find_model(config.output) == config.output / "model"
    assert not (config.output / "metrics.json").exists()
    run_finetune(replace(config, resume=True))
    assert (config.output / "metrics.json").exists() and not (config.output / "checkpoints").exists()
    run_finetune(replace(config, output=tmp_path / "whole"))
    assert same_weights(config.output, tmp_path / "whole")


def test_what_no_file_can_hold_in_a_dev_id_is_refused_before_training(config: FinetuneQAConfig) -> None:
    """A lone surrogate in the id of a dev question kept a finished training from writing its model."""
    entry = json.loads(config.train.read_text())
    entry["data"][0]["paragraphs"][0]["qas"][0]["id"] = "\udc80"
    dev = config.train.with_name("dev.json")
    dev.write_text(json.dumps(entry))
    with pytest.raises(UserError, match='not UTF-8: in "id"'):
        run_finetune(replace(config, dev=dev, epochs=1))
    assert not (config.output / "model").exists()


def test_a_resume_that_waited_sees_that_the_run_is_complete(
    config: FinetuneQAConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It had looked before it waited: it then found no checkpoint, and trained the finished run from its beginning."""
    config = replace(config, epochs=1)
    run_until(config, 5)
    waited = []

    def hold_after_the_other(path: Path) -> object:
        if not waited:
            waited.append(path)
            run_finetune(replace(config, resume=True))
            capsys.readouterr()
        return hold_run(path)

    monkeypatch.setattr("spanbert.training.resume.hold_run", hold_after_the_other)
    run_finetune(replace(config, resume=True))
    assert waited and "is complete" in capsys.readouterr().out


def test_a_signal_saves_and_gives_the_shell_its_status(config: FinetuneQAConfig) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stopped:
        original = training.step_windows

        def interrupted(step: int, *rest: object) -> np.ndarray:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(step, *rest)  # type: ignore[arg-type]

        patch.setattr(training, "step_windows", interrupted)
        run_finetune(replace(config, save_every=100))
    assert stopped.value.status == 143
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_model_of_a_run_that_was_stopped_says_so(
    config: FinetuneQAConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped run could be asked, and answered as if it were finished; only pretraining's checkpoints told."""
    test_a_signal_saves_and_gives_the_shell_its_status(config)
    capsys.readouterr()
    find_model(config.output)
    assert "its training had come to step 3 of 16" in capsys.readouterr().err
    run_finetune(replace(config, resume=True))
    assert "training_progress" not in json.loads((config.output / "model" / "config.json").read_text())


def test_a_signal_to_another_rank_ends_this_one_with_its_status(
    config: FinetuneQAConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the rank that the signal reached ended with 143; the others saved and returned 0."""
    asked = []

    def sum_with_the_other(_group: Group, values: list[float]) -> list[float]:
        if len(values) == len(STOP_SIGNALS):
            asked.append(values)
            return votes(signal.SIGTERM) if len(asked) == 3 else values
        return values

    monkeypatch.setattr(Group, "sum", sum_with_the_other)
    with pytest.raises(Stopped) as stopped:
        run_finetune(config)
    assert stopped.value.status == 143
    assert asked == [votes(None)] * 3


@pytest.mark.parametrize("windows", [1, 3, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 2, 3])
def test_ranks_share_a_steps_windows(windows: int, world: int, size: int) -> None:
    """Every window once, equally many micro-batches a rank, and the micro-batches of one rank if the size is given."""
    chosen = np.arange(windows) * 10
    shares = [share_of(chosen, size, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(np.concatenate([part for share in shares for part in share])) == chosen.tolist()
    in_order = [share[number] for number in range(len(shares[0])) for share in shares]
    alone = share_of(chosen, size, 0, 1)
    if size:
        assert [part.tolist() for part in in_order if len(part)] == [part.tolist() for part in alone]


def test_a_rank_without_windows_adds_nothing(config: FinetuneQAConfig, question_set: Callable) -> None:
    questions = question_set("qa_v1.json")
    drawn = [Drawn(questions, np.array([4]))]
    (idle,) = micro_batches(drawn, config, Group(1, 2, torch.device("cpu"), distributed=True))
    assert idle.packed.sequences == 1
    assert idle.divisor == float("inf")


def test_two_ranks_end_with_the_weights_of_one(config: FinetuneQAConfig, data: Path, tmp_path: Path) -> None:
    """Each takes every second micro-batch of a step; the last step of an epoch has an odd number of them."""
    run_finetune(config)
    options = {
        "train": config.train, "dev": data / "qa_v1.json", "init": config.init, "epochs": 2, "batch-size": 4,
        "micro-batch-size": 2, "lr": "1e-3", "window": 64, "stride": 20, "max-question": 40, "device": "cpu",
        "precision": "fp32", "backend": "eager", "output": tmp_path / "two",
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spanbert"]
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([*command, "finetune", "qa", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("wrote") == 1
    one, two = (load_file(run / "model" / "model.safetensors") for run in (config.output, tmp_path / "two"))
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    assert (tmp_path / "two" / "predictions.json").exists()
