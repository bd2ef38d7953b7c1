"""Training end to end on the sample files: what it learns, what it leaves behind, stopping and resuming."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import finetune.train as training
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.commands import EvaluateQAConfig, FinetuneQAConfig, run_evaluate, run_finetune
from finetune.tasks.qa.features import TextQuestionSet
from finetune.tasks.qa.task import qa_loss_sum
from finetune.train import epoch_order, step_windows
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.config import SIZES
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import read_metrics
from spanbert.training.signals import Stopped

Start = Callable[..., FinetuneQAConfig]


@pytest.fixture
def options(
    tmp_path: Path, data: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> Start:
    """options(name, …): a run of 2 epochs × 4 steps from a tiny checkpoint."""
    save_model(tmp_path / "start", make_model(), tokenizer)

    def build(name: str = "run", **changes: object) -> FinetuneQAConfig:
        values = {
            "train": data / "qa_v1.json",
            "output": tmp_path / name,
            "init": str(tmp_path / "start"),
            "epochs": 2,
            "batch_size": 4,
            "log_every": 1,
            "lr": 1e-3,
            "window": 64,
            "stride": 20,
            "max_question": 40,
            "device": "cpu",
            "precision": "fp32",
            "backend": "eager",
        }
        return FinetuneQAConfig(**(values | changes))

    return build


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl") if record["split"] == "train"]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_loss_is_the_mean_of_two_cross_entropies_of_each_window_alone(
    question_set: Callable[..., TextQuestionSet], make_model: Callable[..., SpanBertForQuestionAnswering]
) -> None:
    """Packed neighbours do not enter a window's softmax."""
    questions, model = question_set("qa_v2.json", 64, 16), make_model().eval()
    windows = np.arange(len(questions.windows))
    batch = questions.packed(windows).tensors()
    labels_B2 = torch.from_numpy(questions.labels_W2)
    assert (labels_B2.sum(1) == 0).any()
    assert (labels_B2.sum(1) > 0).any()
    total = qa_loss_sum(*model(batch), batch.cu_seqlens, batch.max_seqlen, labels_B2)
    expected = torch.zeros(())
    for window in windows:
        start, end = model(questions.packed([window]).tensors())
        first, last = labels_B2[window]
        expected += (F.cross_entropy(start, first) + F.cross_entropy(end, last)) / 2
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_order_is_a_function_of_seed_and_epoch_and_meets_every_window_once() -> None:
    lengths = np.arange(23) % 5
    for epoch in range(2):
        steps = [step_windows(epoch * 6 + place, 23, lengths, 4, seed=3) for place in range(6)]
        assert [len(step) for step in steps] == [4, 4, 4, 4, 4, 3]
        assert sorted(np.concatenate(steps)) == list(range(23))
        for place, step in enumerate(steps):
            assert set(step) == set(epoch_order(23, 3, epoch)[place * 4 : place * 4 + 4])
            assert (np.diff(lengths[step]) <= 0).all()
    assert epoch_order(23, 3, 0).tolist() != epoch_order(23, 3, 1).tolist()
    assert epoch_order(23, 3, 0).tolist() != epoch_order(23, 4, 0).tolist()


def test_a_tiny_model_learns_the_sample_by_heart(options: Start, data: Path, capsys: pytest.CaptureFixture) -> None:
    config = options(epochs=45, lr=3e-3, dropout=0.0, dev=data / "qa_v1.json", window=128, stride=32)
    run_finetune(config)
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert metrics["f1"] > 90
    assert metrics["exact"] > 85
    assert losses(config.output)[-1] < 0.3 < 3 < losses(config.output)[0]
    predictions = json.loads((config.output / "predictions.json").read_text(encoding="utf-8"))
    nbest = json.loads((config.output / "nbest.json").read_text(encoding="utf-8"))
    contexts = {
        q["id"]: p["context"]
        for article in json.loads((data / "qa_v1.json").read_text(encoding="utf-8"))["data"]
        for p in article["paragraphs"]
        for q in p["qas"]
    }
    assert predictions.keys() == nbest.keys() == contexts.keys()
    for key, candidates in nbest.items():
        assert predictions[key] == candidates[0]["text"]
        assert 1 < len(candidates) <= 20
        for candidate in candidates:
            assert contexts[key][candidate["start"] : candidate["end"]] == candidate["text"]
    output = capsys.readouterr().out
    assert f"spanbert evaluate qa {config.output}/model" in output
    assert not (config.output / "checkpoints").exists()


def test_version_2_stores_the_threshold_that_was_best_on_dev(options: Start, data: Path) -> None:
    config = options(train=data / "qa_v2.json", dev=data / "qa_v2.json", epochs=3)
    run_finetune(config)
    stored = json.loads((config.output / "model" / "config.json").read_text())["qa"]
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert stored["null_allowed"] is True
    assert stored["null_threshold"] == metrics["best_f1_threshold"] == metrics["null_threshold"]
    assert metrics["f1"] == pytest.approx(metrics["best_f1"])
    assert (stored["window"], stored["stride"], stored["max_question"]) == (64, 20, 40)
    answerer = QuestionAnswerer.load(config.output, device="cpu")
    assert answerer.settings.null_threshold == stored["null_threshold"]
    odds = json.loads((config.output / "null_odds.json").read_text())
    predictions = json.loads((config.output / "predictions.json").read_text())
    assert {key for key, text in predictions.items() if not text} == {
        key for key, value in odds.items() if value > stored["null_threshold"]
    }


def test_version_1_may_not_answer_nothing(options: Start) -> None:
    config = options(epochs=1)
    run_finetune(config)
    assert json.loads((config.output / "model" / "config.json").read_text())["qa"]["null_allowed"] is False


def interrupt_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal in the middle of a step."""
    real = training.step_windows

    def sending(current: int, *rest: object) -> np.ndarray:
        if current == step:
            os.kill(os.getpid(), number)
        return real(current, *rest)

    monkeypatch.setattr(training, "step_windows", sending)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 1), (signal.SIGTERM, 5)])
def test_stopped_and_resumed_ends_bit_identical(
    options: Start, number: int, step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole, parted = options("whole"), options("parted")
    run_finetune(whole)
    with monkeypatch.context() as patch:
        interrupt_at(step, number, patch)
        with pytest.raises(Stopped) as stopped:
            run_finetune(parted)
    assert stopped.value.status == 128 + number
    assert "--resume" in capsys.readouterr().out
    assert len(losses(parted.output)) == step + 1  # the step was finished …
    assert (parted.output / "checkpoints" / f"step-{step + 1:08d}").is_dir()  # … and saved
    assert not (parted.output / "model").exists()
    run_finetune(options("parted", resume=True))
    assert same(weights(whole.output), weights(parted.output))
    assert losses(whole.output) == losses(parted.output)
    assert len(losses(whole.output)) > step + 2


def test_resumed_after_a_kill_continues_from_the_last_checkpoint(
    options: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between checkpoints: the lines of the lost steps leave metrics.jsonl and are written again."""
    whole, parted = options("whole"), options("parted", save_every=3)
    run_finetune(whole)

    class Crash(Exception):
        pass

    def crash(step: int, *rest: object) -> np.ndarray:
        if step == 5:
            raise Crash
        return step_windows(step, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(training, "step_windows", crash)
        run_finetune(parted)
    run_finetune(options("parted", resume=True))
    assert same(weights(whole.output), weights(parted.output))
    assert losses(whole.output) == losses(parted.output)


def test_a_run_is_a_function_of_its_seed(options: Start) -> None:
    runs = [options("a", epochs=1), options("b", epochs=1), options("c", epochs=1, seed=1)]
    for config in runs:
        run_finetune(config)
    first, again, other = (weights(config.output) for config in runs)
    assert same(first, again)
    assert not same(first, other)


def test_micro_batches_do_not_change_the_gradient(options: Start) -> None:
    whole, parts = options("whole", dropout=0.0), options("parts", dropout=0.0, micro_batch_size=3)
    run_finetune(whole)
    run_finetune(parts)
    assert losses(whole.output) == pytest.approx(losses(parts.output), rel=1e-4)


def test_the_learning_rate_rises_over_the_warmup_and_falls_to_almost_nothing(options: Start) -> None:
    config = options(epochs=4, warmup=0.25)
    run_finetune(config)
    rates = [record["lr"] for record in read_metrics(config.output / "metrics.jsonl")]
    peak = len(rates) - 1 - int(np.argmax(rates[::-1]))  # the last of equal ones
    assert 0.15 < (peak + 1) / len(rates) < 0.35
    assert (np.diff(rates[:peak]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert 0 < rates[0] < 0.2 * max(rates)  # no step is spent at rate 0
    assert 0 < rates[-1] < 0.1 * max(rates)
    assert 0.8e-3 < max(rates) <= 1e-3


def test_random_start_takes_a_tokenizer_and_a_size(
    options: Start, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "mini", (1, 32, 2, 64))
    config = options(init="random", tokenizer=tokenizer_folder, epochs=1)
    run_finetune(config)
    assert json.loads((config.output / "model" / "config.json").read_text())["num_hidden_layers"] == 1


def test_the_first_n_questions_are_those_of_the_fixed_shuffle(options: Start, capsys: pytest.CaptureFixture) -> None:
    one = options("one", max_train_questions=3, epochs=1, batch_size=1)
    run_finetune(one)
    output = capsys.readouterr().out
    assert "the first 3 of 8 questions" in output
    assert "numpy.random.default_rng(0).permutation" in output
    assert "· 3 questions in" in output
    run_finetune(options("two", max_train_questions=3, epochs=1, batch_size=1))
    run_finetune(options("three", max_train_questions=3, epochs=1, batch_size=1, shuffle_seed=1))
    first, again, other = (losses(one.output.with_name(name)) for name in ("one", "two", "three"))
    assert first == again
    assert first != other


def test_malformed_training_records_are_listed(options: Start, data: Path, capsys: pytest.CaptureFixture) -> None:
    config = options(train=data / "qa_malformed.json", epochs=1)
    run_finetune(config)
    lines = (config.output / "skipped.txt").read_text().splitlines()
    assert len(lines) == 14
    assert any("paragraph 0, id off-by-one" in line for line in lines)
    assert "skipped 14 malformed records" in capsys.readouterr().out


def test_cut_questions_are_said(options: Start, capsys: pytest.CaptureFixture) -> None:
    run_finetune(options(epochs=1, max_question=10, window=48, stride=20))
    assert "questions cut to 10 tokens" in capsys.readouterr().out


def test_evaluation_after_each_epoch_does_not_disturb_training(options: Start, data: Path) -> None:
    plain, watched = options("plain"), options("watched", dev=data / "qa_v1.json", evaluate_each_epoch=True)
    run_finetune(plain)
    run_finetune(watched)
    assert same(weights(plain.output), weights(watched.output))
    steps = [r["step"] for r in read_metrics(watched.output / "metrics.jsonl") if r["split"] == "validation"]
    assert steps == [len(losses(plain.output)) // 2, len(losses(plain.output))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 21}, "stride 21 must be below 21"),
        ({"window": 200}, "longer than the model's 128 positions"),
        ({"init": "nowhere"}, "no such folder"),
        ({"init": "random"}, "needs --tokenizer"),
        ({"tokenizer": Path("x")}, "--init random only"),
        ({"epochs": 0}, "epochs is 0: expected at least 1"),
        ({"dropout": 1.0}, r"dropout is 1\.0: expected 0 to below 1"),
        ({"lr": float("nan")}, "lr is nan: expected at least 0"),
        ({"clip_norm": float("nan")}, "clip_norm is nan"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
        ({"seed": -1}, "seed is -1"),
        ({"resume": True}, "holds no run"),
        ({"evaluate_each_epoch": True}, "needs --dev"),
        ({"max_train_questions": 0}, "max_train_questions is 0: expected at least 1"),
        ({"train": Path("absent.json")}, "no such file"),
        ({"dev": Path("absent.json")}, "no such file"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(options: Start, changes: dict, message: str) -> None:
    config = options(**changes)
    with pytest.raises(UserError, match=message):
        run_finetune(config)
    assert not config.output.exists()


def test_an_existing_run_is_not_overwritten(options: Start) -> None:
    run_finetune(options(epochs=1))
    with pytest.raises(UserError, match="already holds a run"):
        run_finetune(options(epochs=1))


def test_resume_refuses_other_options(options: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(2, signal.SIGTERM, patch)
        with pytest.raises(Stopped):
            run_finetune(options())
    with pytest.raises(UserError, match="lr"):
        run_finetune(options(resume=True, lr=1e-4))


def test_divergence_ends_with_a_sentence(options: Start) -> None:
    config = options(lr=1e38, clip_norm=0.0, warmup=0.0, stop_after_bad_steps=3)
    with pytest.raises(UserError, match=r"3 steps in a row .* lower --lr"):
        run_finetune(config)
    skipped = [
        record["step"] for record in read_metrics(config.output / "metrics.jsonl") if record["split"] == "skipped"
    ]
    assert skipped == [2, 3, 4]


def test_later_evaluations_use_the_metric_that_the_run_was_scored_with(
    options: Start, data: Path, tmp_path: Path
) -> None:
    """It is in the model; and --dev may have an answer that is not in the text as it stands, as CMRC 2018's has."""
    content = json.loads((data / "qa_v1.json").read_text(encoding="utf-8"))
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = -1
    dev = tmp_path / "dev.json"
    dev.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="--ignore-offsets"):
        run_finetune(options("refused", dev=dev))
    config = options(dev=dev, metric="drcd", ignore_offsets=True, epochs=1)
    run_finetune(config)
    run_evaluate(EvaluateQAConfig(config.output / "model", dev, output=tmp_path / "later", ignore_offsets=True))
    scored, later = (json.loads((one / "metrics.json").read_text()) for one in (config.output, tmp_path / "later"))
    assert scored["metric"] == later["metric"] == "drcd"
    assert scored["f1"] == later["f1"]
    assert json.loads((config.output / "model" / "config.json").read_text())["qa"]["metric"] == "drcd"
