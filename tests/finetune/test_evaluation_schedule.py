"""Evaluations on the way: when, what is best, when to stop, and that a resumed run decides the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import finetune.run as running
import finetune.train as training
from finetune.evaluate import Evaluation
from finetune.evaluation_schedule import Best, evaluates_after
from finetune.tasks.qa.commands import FinetuneQAConfig, run_finetune
from spanbert.checkpoint.model_folder import save_model
from spanbert.checkpoint.store import find_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import read_metrics
from spanbert.training.signals import Stopped


@pytest.fixture
def config(
    tmp_path: Path, data: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneQAConfig:
    """3 epochs × 4 steps, judged every 2 steps."""
    save_model(tmp_path / "start", make_model(), tokenizer)
    return FinetuneQAConfig(
        data / "qa_v1.json", tmp_path / "run", str(tmp_path / "start"), dev=data / "qa_v1.json", epochs=3,
        batch_size=8, lr=1e-3, window=64, stride=20, max_question=40, log_every=3, evaluate_every=2, keep_best=True,
        device="cpu", precision="fp32", backend="eager",
    )  # fmt: skip


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def same(left: Path, right: Path) -> bool:
    one, other = weights(left), weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def records(run: Path, split: str) -> list[dict]:
    return [record for record in read_metrics(run / "metrics.jsonl") if record["split"] == split]


def judged(scores: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the evaluations on the way find these scores, whatever the model answers; the last one holds for all later."""
    real = running.evaluate
    coming = list(scores)

    def evaluate(*arguments: object, **options: bool) -> Evaluation:
        evaluation = real(*arguments, **options)  # type: ignore[arg-type]
        score = coming.pop(0) if len(coming) > 1 else coming[0]
        return replace(evaluation, metrics=evaluation.metrics | {"f1": score})

    monkeypatch.setattr(running, "evaluate", evaluate)


def test_an_equal_score_is_not_better() -> None:
    best = Best()
    assert not best.exhausted(1)
    for step, score in enumerate([1.0, 3.0, 3.0, 2.0], 1):
        best.hear(step, score)
    assert (best.score, best.step, best.without_better) == (3.0, 2, 2)
    assert best.exhausted(2)
    assert not best.exhausted(3)
    assert not best.exhausted(None)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"evaluate_every": None, "keep_best": False}, []),
        ({"evaluate_every": None, "keep_best": False, "evaluate_each_epoch": True}, [4, 8]),
        ({"evaluate_every": None}, [4, 8, 12]),
        ({"evaluate_every": 5}, [5, 10, 12]),
        ({"evaluate_every": 5, "keep_best": False}, [5, 10]),
        ({"evaluate_every": None, "keep_best": False, "patience": 2}, [4, 8, 12]),
        ({"dev": None}, []),
    ],
)
def test_when_it_is_evaluated(config: FinetuneQAConfig, changes: dict, steps: list[int]) -> None:
    config = replace(config, **changes)
    assert [step for step in range(1, 13) if evaluates_after(step, config, 4, 12)] == steps


def test_the_best_state_is_the_model_and_not_the_last_one(
    config: FinetuneQAConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Best at step 6 of 12: the weights are those of a run that was saved there, though two newer states were saved."""
    with monkeypatch.context() as patch:
        judged([10, 20, 30, 30, 5, 5, 30], patch)
        run_finetune(replace(config, save_every=1))
    assert "the best state is that of step 6, f1 30.00" in capsys.readouterr().out
    assert [r["step"] for r in records(config.output, "validation")] == [2, 4, 6, 8, 10, 12]
    assert not (config.output / "checkpoints").exists()

    stopped = replace(config, output=tmp_path / "stopped", keep_best=False)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt_at(5, patch)
        run_finetune(stopped)
    assert same(config.output / "model", stopped.output / "checkpoints" / "step-00000006")
    run_finetune(replace(stopped, resume=True))
    assert not same(config.output / "model", stopped.output / "model")


def test_metrics_and_settings_are_those_of_the_best_state(config: FinetuneQAConfig, data: Path) -> None:
    """The score that the run states is that of the model that it leaves, and the threshold is the one chosen for it."""
    config = replace(config, train=data / "qa_v2.json", dev=data / "qa_v2.json", lr=3e-3)
    run_finetune(config)
    stated = json.loads((config.output / "metrics.json").read_text())
    seen = records(config.output, "validation")
    best = max(seen, key=lambda record: record["f1"])
    assert stated["f1"] == best["f1"]
    stored = json.loads((config.output / "model" / "config.json").read_text())
    assert stored["qa"]["null_threshold"] == best["null_threshold"]
    assert "training_progress" not in stored


def test_patience_ends_the_run(
    config: FinetuneQAConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        judged([10, 20, 19, 20, 90], patch)
        run_finetune(replace(config, keep_best=False, patience=2))
    assert [r["step"] for r in records(config.output, "validation")] == [2, 4, 6, 8]
    assert [r["step"] for r in records(config.output, "train")] == [3, 6, 8]  # the last steps are reported too
    assert "the best state is that of step 4" in capsys.readouterr().out
    assert "stopped at step 8 of 12" in (config.output / "model" / "README.md").read_text(encoding="utf-8")


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.step_windows

    def sending(current: int, *rest: object) -> object:
        if current == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(current, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "step_windows", sending)


@pytest.mark.parametrize("step", [2, 3, 5, 6])
def test_a_run_that_was_stopped_finds_the_same_best_and_the_same_end(
    config: FinetuneQAConfig, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between evaluations, right at the best one (step 4), and one evaluation before patience ends."""
    scores = [10, 20, 19, 18, 90]
    whole = replace(config, output=tmp_path / "whole", patience=2)
    parted = replace(config, output=tmp_path / "parted", patience=2)
    with monkeypatch.context() as patch:
        judged(scores, patch)
        run_finetune(whole)
    with monkeypatch.context() as patch:
        judged(scores, patch)
        with monkeypatch.context() as inner:
            interrupt_at(step, inner)
            with pytest.raises(Stopped):
                run_finetune(parted)
        run_finetune(replace(parted, resume=True))
    assert same(whole.output / "model", parted.output / "model")
    for split, key in (("train", "loss"), ("validation", "f1")):
        assert [(r["step"], r[key]) for r in records(whole.output, split)] == [
            (r["step"], r[key]) for r in records(parted.output, split)
        ]


def test_a_kill_after_the_early_end_does_not_train_further(
    config: FinetuneQAConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        judged([20, 10, 10, 90], patch)
        with monkeypatch.context() as inner, pytest.raises(Killed):
            inner.setattr(running, "prove_weights", killed)
            run_finetune(replace(config, patience=2))
        run_finetune(replace(config, patience=2, resume=True))
    assert [r["step"] for r in records(config.output, "train")] == [3, 6]
    assert (config.output / "model").is_dir()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [Killed(), KeyError("a question")])
@pytest.mark.parametrize("scores", [[], [10, 30, 20, 20, 20]], ids=["the only evaluation", "the sixth"])
@pytest.mark.parametrize("last", [5.0, 90.0])
def test_a_crash_in_the_last_evaluation_loses_no_step_and_no_state(
    config: FinetuneQAConfig,
    tmp_path: Path,
    scores: list[float],
    last: float,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The steps since the last checkpoint were trained again, all of them where the last evaluation was the only one."""
    config = replace(config, evaluate_every=2 if scores else 12)
    whole = replace(config, output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        judged([*scores, last], patch)
        run_finetune(whole)

    def fail_at_the_last(patch: pytest.MonkeyPatch, scores: list[float]) -> None:
        judged([*scores, last], patch)
        honest, calls = running.evaluate, []

        def evaluate(*arguments: object, **options: bool) -> Evaluation:
            calls.append(1)
            if len(calls) > len(scores):
                raise error
            return honest(*arguments, **options)  # type: ignore[arg-type]

        patch.setattr(running, "evaluate", evaluate)

    for resume in (False, True):  # it fails twice
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            fail_at_the_last(patch, [] if resume else scores)
            run_finetune(replace(config, resume=resume))
        assert not (config.output / "model").exists()
        names = {path.name for path in (config.output / "checkpoints").iterdir()}
        assert names >= {"step-00000012"} | ({"step-00000004"} if scores else set())
    capsys.readouterr()
    find_model(config.output)
    assert "is not a finished model" in capsys.readouterr().err

    def never(*_: object) -> None:
        raise AssertionError("a step is trained again")

    with monkeypatch.context() as patch:
        judged([last], patch)
        patch.setattr(training, "step_windows", never)
        run_finetune(replace(config, resume=True))
    assert "is complete" not in capsys.readouterr().out
    assert same(whole.output / "model", config.output / "model")
    for split, key in (("train", "loss"), ("train", "lr"), ("validation", "f1")):
        assert [(r["step"], r[key]) for r in records(whole.output, split)] == [
            (r["step"], r[key]) for r in records(config.output, split)
        ]
    assert not (config.output / "checkpoints").exists()


def test_resume_refuses_another_dev_file_where_it_decides(
    config: FinetuneQAConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((data / "qa_v1.json").read_text(encoding="utf-8"))
    content["data"].reverse()
    (tmp_path / "other.json").write_text(json.dumps(content))
    for name, keeps in (("judged", True), ("plain", False)):
        one = replace(config, output=tmp_path / name, keep_best=keeps)
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            interrupt_at(5, patch)
            run_finetune(one)
        other = replace(one, dev=tmp_path / "other.json", resume=True)
        if keeps:
            with pytest.raises(UserError, match="is not the data that"):
                run_finetune(other)
        else:
            run_finetune(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": None}, "--evaluate-every needs --dev"),
        ({"dev": None, "evaluate_every": None}, "--keep-best needs --dev"),
        ({"dev": None, "evaluate_every": None, "keep_best": False, "seeds": (1,)}, "--seeds needs --dev"),
        ({"evaluate_each_epoch": True}, "exclude each other"),
        ({"patience": 0}, "patience is 0"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"seeds": (1, 1)}, "--seeds 1 1: give different numbers"),
        ({"seeds": (-1,)}, "of at least 0"),
    ],
)
def test_mistakes(config: FinetuneQAConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_finetune(replace(config, **changes))
    assert not config.output.exists()


@pytest.mark.slow
def test_two_ranks_keep_the_same_best_state_as_one(config: FinetuneQAConfig, data: Path, tmp_path: Path) -> None:
    """To 1e-5, with one micro-batch a rank: a sum of two is the same in either order.

    Of more it is not. Then the bias of the last LayerNorm drifts by about the learning rate: it moves all logits of a window
    alike, so its gradient is rounding alone, and Adam makes steps of full length of that.
    """
    run_finetune(replace(config, micro_batch_size=4, patience=2))
    options = {
        "train": config.train, "dev": config.dev, "init": config.init, "epochs": 3, "batch-size": 8, "patience": 2,
        "micro-batch-size": 4, "lr": "1e-3", "window": 64, "stride": 20, "max-question": 40, "device": "cpu",
        "evaluate-every": 2, "precision": "fp32", "backend": "eager", "log-every": 3, "output": tmp_path / "two",
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spanbert"]
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([*command, "finetune", "qa", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [r["step"] for r in records(config.output, "validation")] == [
        r["step"] for r in records(tmp_path / "two", "validation")
    ]
    one, two = weights(config.output / "model"), weights(tmp_path / "two" / "model")
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
