"""A tiny comparison on one data set: both sides learn it from the same start, a second call does nothing."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.finetuning import real_tasks
from benchmarks.finetuning.real_tasks import TASKS, RealTasksConfig, finetune_config, run
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer


@pytest.fixture
def config(
    tmp_path: Path,
    make_model: Callable[..., SpanBertForQuestionAnswering],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> RealTasksConfig:
    """TREC's place is taken by texts whose class is their first word."""
    save_model(tmp_path / "tiny", make_model(), tokenizer)
    lines = [
        f"{first} {first} the end {rest}\n" for first in ("from", "that") for rest in ("", "the", "end", "end the")
    ]
    (tmp_path / "texts.txt").write_text("".join(lines))
    options = {"epochs": 12, "lr": 5e-3, "batch_size": 4, "dropout": 0.0, "window": 64}
    tiny = dataclasses.replace(TASKS["trec"], train="texts.txt", test="texts.txt", options=options)
    monkeypatch.setattr(real_tasks, "TASKS", {"trec": tiny})
    start = str(tmp_path / "tiny")
    return RealTasksConfig(tmp_path, tmp_path / "out", models=(start,), beside=(start,), tasks=("trec",), seeds=(0, 1))


def test_both_sides_learn_and_are_reported(config: RealTasksConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config)
    runs = json.loads((config.output / "results.json").read_text())["runs"]["trec"]["tiny"]
    assert {side: list(seeds) for side, seeds in runs.items()} == {"ours": ["0", "1"], "transformers": ["0", "1"]}
    assert all(one["accuracy"] == 100 for seeds in runs.values() for one in seeds.values())
    report = (config.output / "report.md").read_text()
    for side in runs:
        assert f"| TREC, accuracy | tiny | {side} | 0, 1 | **100.00 ± 0.00** | macro f1 100.00 ± 0.00 |" in report
    monkeypatch.setattr(real_tasks, "train_and_score", lambda *_: pytest.fail("it is done already"))
    run(config)


def test_a_run_that_learned_nothing_is_seen(config: RealTasksConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is scored are the weights at the end of transformers' steps, not those at the start, nor ours."""
    monkeypatch.setattr(real_tasks.TheirSide, "step", lambda side, number: side.model.classifier.weight.sum())
    run(dataclasses.replace(config, seeds=(0,)))
    runs = json.loads((config.output / "results.json").read_text())["runs"]["trec"]["tiny"]
    assert runs["transformers"]["0"]["accuracy"] < 100


def test_each_data_set_has_its_options(tmp_path: Path) -> None:
    config = RealTasksConfig(tmp_path, tmp_path / "out", models=("minilm", "random"))
    for name in TASKS:
        options = finetune_config(config, name, "minilm", 1, tmp_path)
        options.check()
        assert (options.lr, options.seed, options.tokenizer) == (TASKS[name].options["lr"], 1, None)
    random = finetune_config(config, "sst2", "random", 0, tmp_path)
    random.check()
    assert (random.lr, random.max_examples) == (4e-4, 15_000)


def test_unknown_names_are_told(config: RealTasksConfig) -> None:
    with pytest.raises(UserError, match=r"--tasks conll: choose from trec\."):
        run(dataclasses.replace(config, tasks=("conll",)))
    with pytest.raises(UserError, match=r"--beside bundled is none of --models"):
        run(dataclasses.replace(config, beside=("bundled",)))
