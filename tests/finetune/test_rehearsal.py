"""Going on learning: old examples in the batches, the pull to the old weights, and the scores before and after."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import finetune.train as training
from finetune.rehearsal import Pull, Rehearsal, before_and_after, new_windows_of, told
from finetune.tasks.qa.commands import FinetuneQAConfig, run_finetune
from finetune.tasks.qa.features import TextQuestionSet
from finetune.train import Drawn, micro_batches
from spanbert.checkpoint.model_folder import load_model, save_model
from spanbert.distributed import Group, alone
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import read_metrics
from spanbert.training.signals import Stopped


@pytest.fixture
def config(
    tmp_path: Path, data: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneQAConfig:
    """New: the questions of qa_v1, old: those of qa_v2; a step is 6 new windows and 2 old ones."""
    save_model(tmp_path / "start", make_model(), tokenizer)
    (tmp_path / "old.json").write_bytes((data / "qa_v2.json").read_bytes())
    return FinetuneQAConfig(
        data / "qa_v1.json", tmp_path / "run", str(tmp_path / "start"), epochs=1, batch_size=8, lr=1e-3, window=64,
        stride=20, max_question=40, log_every=1, device="cpu", precision="fp32", backend="eager",
        rehearse=tmp_path / "old.json", rehearse_share=0.25,
    )  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(left: Path, right: Path) -> bool:
    one, other = weights(left), weights(right)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    features = SimpleNamespace(lengths=np.arange(100) % 7)
    rehearsal = Rehearsal(features, 0.25, seed=3)  # type: ignore[arg-type]
    draws = [rehearsal.draw(step, 24) for step in range(300)]
    assert {len(set(draw)) for draw in draws} == {8}  # a quarter of 32, none twice
    assert all((np.diff(features.lengths[draw]) <= 0).all() for draw in draws)
    assert rehearsal.draw(5, 24).tolist() == draws[5].tolist()
    assert set(draws[0]) != set(draws[1])
    assert set(Rehearsal(features, 0.25, seed=4).draw(0, 24)) != set(draws[0])  # type: ignore[arg-type]
    # 300 draws of 8 out of 100: each 24 times, within 5 standard deviations of √(300 · .08 · .92) = 4.7
    assert abs(np.bincount(np.concatenate(draws), minlength=100) - 24).max() < 5 * 4.7
    few = Rehearsal(SimpleNamespace(lengths=np.ones(3)), 0.5, seed=0)  # type: ignore[arg-type]
    assert len(few.draw(0, 8)) == 8
    assert new_windows_of(32, 0.2) == 26


def test_the_step_is_the_mean_over_both_and_ranks_share_it(
    config: FinetuneQAConfig, question_set: Callable[..., TextQuestionSet]
) -> None:
    new, old = question_set("qa_v1.json"), question_set("qa_v2.json")
    drawn = [Drawn(new, np.arange(5)), Drawn(old, np.arange(3))]
    parts = micro_batches(drawn, config, alone())
    assert [part.packed.sequences for part in parts] == [5, 3]
    assert [part.divisor for part in parts] == [8.0, 8.0]
    assert [part.pulls for part in parts] == [True, False]
    (lone,) = micro_batches([drawn[0], Drawn(old, np.arange(0))], config, alone())  # a step too short for an old one
    assert lone.divisor == 5.0
    ranks = [micro_batches(drawn, config, Group(rank, 2, torch.device("cpu"), True)) for rank in (0, 1)]
    assert [[part.packed.sequences for part in rank] for rank in ranks] == [[3, 2], [2, 1]]


def test_old_windows_are_learned_from_and_make_the_epoch_longer(config: FinetuneQAConfig, tmp_path: Path) -> None:
    plain = replace(config, rehearse=None, output=tmp_path / "plain")
    run_finetune(config)
    run_finetune(plain)
    steps = [len(read_metrics(run.output / "metrics.jsonl")) for run in (config, plain)]
    windows = 29
    assert steps == [-(-windows // 6), -(-windows // 8)]
    assert not same(config.output, plain.output)
    settings = json.loads((config.output / "model" / "config.json").read_text())["qa"]
    assert settings["null_allowed"] is True  # learned from the old data
    card = (config.output / "model" / "README.md").read_text(encoding="utf-8")
    assert "| rehearsal of old data | old.json |" in card


def test_stopped_and_resumed_ends_bit_identical_and_other_old_data_are_refused(
    config: FinetuneQAConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, pull=0.1)
    whole, parted = replace(config, output=tmp_path / "whole"), replace(config, output=tmp_path / "parted")
    run_finetune(whole)
    real = training.step_windows

    def sending(current: int, *rest: object) -> object:
        if current == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(current, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(training, "step_windows", sending)
        run_finetune(parted)
    content = json.loads((tmp_path / "old.json").read_text(encoding="utf-8"))
    content["data"].reverse()
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not the data that"):
        run_finetune(replace(parted, rehearse=tmp_path / "other.json", resume=True))
    run_finetune(replace(parted, resume=True))
    assert same(whole.output, parted.output)


def test_the_pull_is_half_the_squared_distance_from_what_the_folder_held(
    config: FinetuneQAConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The formula and its gradient written out; a frozen parameter and a head that is new do not pull."""
    model, report = load_model(config.init, SpanBertForQuestionAnswering)
    model.encoder.embeddings.requires_grad_(False)
    pull = Pull(model, report, 0.5)
    assert pull.penalty().item() == 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    pull.penalty().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(pull.pairs) == len(trained)  # the head was in the folder
    assert pull.penalty().item() == pytest.approx(0.25 * 1e-4 * sum(p.numel() for p in trained), rel=1e-4)
    assert all(torch.allclose(p.grad, torch.full_like(p, 0.5 * 0.01), rtol=1e-4) for p in trained)
    held = dict(report.config)
    other = replace(report, loaded=tuple(n for n in report.loaded if "qa_outputs" not in n), config=held)
    assert len(Pull(model, other, 0.5).pairs) == len(trained) - 2


def test_a_strong_pull_holds_the_weights(config: FinetuneQAConfig, tmp_path: Path) -> None:
    moved = {}
    for strength in (0.0, 100.0):
        run = replace(config, rehearse=None, pull=strength, output=tmp_path / f"pull-{strength}", weight_decay=0.0)
        run_finetune(run)
        start, end = load_file(Path(config.init) / "model.safetensors"), weights(run.output)
        moved[strength] = sum((end[name] - start[name]).square().sum().item() for name in start) ** 0.5
    assert 0 < moved[100.0] < 0.7 * moved[0.0]


def test_scores_before_and_after(config: FinetuneQAConfig, data: Path, capsys: pytest.CaptureFixture) -> None:
    config = replace(config, dev=data / "qa_v1.json", rehearse_dev=data / "qa_v2.json")
    run_finetune(config)
    told_scores = json.loads((config.output / "before_after.json").read_text())
    records = read_metrics(config.output / "metrics.jsonl")
    for which, split in (("new", "validation"), ("old", "old")):
        of_split = [record for record in records if record["split"] == split]
        assert (of_split[0]["step"], of_split[-1]["step"]) == (0, max(record["step"] for record in records))
        assert told_scores[which] == {"metric": "f1", "before": of_split[0]["f1"], "after": of_split[-1]["f1"]}
    assert told_scores["new"]["after"] == json.loads((config.output / "metrics.json").read_text())["f1"]
    assert "old data: f1" in capsys.readouterr().out
    assert "old data: f1" in (config.output / "model" / "README.md").read_text(encoding="utf-8")


def test_what_is_told() -> None:
    records = [{"step": 0, "split": "old", "f1": 80.0}, {"step": 9, "split": "old", "f1": 70.0}]
    scores = before_and_after(records, {"new": {"f1": 50.0}, "old": {"f1": 70.0}}, "f1")
    assert told(scores) == ["new data: f1 50.00 after", "old data: f1 80.00 before, 70.00 after (-10.00)"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rehearse_share": 0.01}, "leaves none old, or none new"),
        ({"rehearse_share": 1.0}, "rehearse_share is 1"),
        ({"pull": 0.1, "lora": "rank=2"}, "--pull goes towards"),
        ({"pull": -1.0}, "pull is -1"),
        ({"rehearse_dev": Path("old.json")}, "--rehearse-dev needs --dev"),
        ({"examples_per_class": 2, "max_train_questions": 2}, "exclude each other"),
        ({"rehearse": Path("absent.json")}, "no such file"),
    ],
)
def test_mistakes(config: FinetuneQAConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_finetune(replace(config, **changes))
    assert not config.output.exists()
