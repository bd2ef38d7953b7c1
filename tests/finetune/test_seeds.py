"""Several seeds in one call, the model card, and --limit."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.seeds import summary_of, table_of
from finetune.tasks.qa.commands import FinetuneQAConfig, run_finetune
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.run_folder import read_metrics


@pytest.fixture
def config(
    tmp_path: Path, data: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneQAConfig:
    save_model(tmp_path / "start", make_model(), tokenizer)
    return FinetuneQAConfig(
        data / "qa_v1.json", tmp_path / "run", str(tmp_path / "start"), dev=data / "qa_v1.json", epochs=1,
        batch_size=8, lr=3e-3, window=64, stride=20, max_question=40, device="cpu", precision="fp32", backend="eager",
    )  # fmt: skip


def test_each_seed_is_the_run_that_it_would_be_alone(
    config: FinetuneQAConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    several = replace(config, seeds=(0, 3))
    run_finetune(several)
    output = capsys.readouterr().out
    alone = replace(config, seed=3, output=tmp_path / "alone")
    run_finetune(alone)
    one, other = (load_file(run / "model" / "model.safetensors") for run in (several.output / "seed-3", alone.output))
    assert all(torch.equal(one[name], other[name]) for name in one)

    summary = json.loads((several.output / "seeds.json").read_text())
    scores = [json.loads((several.output / f"seed-{n}" / "metrics.json").read_text()) for n in (0, 3)]
    for name in ("f1", "exact"):
        assert summary["metrics"][name]["mean"] == pytest.approx(statistics.mean(one[name] for one in scores))
        assert summary["metrics"][name]["std"] == pytest.approx(statistics.stdev(one[name] for one in scores))
    assert summary["main_metric"] == "f1"
    assert not {"seconds", "windows", "total"} & set(summary["metrics"])
    table = (several.output / "seeds.md").read_text(encoding="utf-8")
    assert table in output
    assert (several.output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_resuming_trains_only_what_is_missing(config: FinetuneQAConfig, capsys: pytest.CaptureFixture) -> None:
    run_finetune(replace(config, seeds=(1,)))
    with pytest.raises(UserError, match="seed-1 already holds a run"):
        run_finetune(replace(config, seeds=(0, 1)))
    before = (config.output / "seed-1" / "model" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    run_finetune(replace(config, seeds=(0, 1), resume=True))
    assert "seed-1 is complete" in capsys.readouterr().out
    assert (config.output / "seed-1" / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert json.loads((config.output / "seeds.json").read_text())["seeds"] == [0, 1]


def test_a_run_of_one_seed_is_not_mixed_with_several(config: FinetuneQAConfig) -> None:
    run_finetune(config)
    with pytest.raises(UserError, match="holds a run of one seed"):
        run_finetune(replace(config, seeds=(0, 1), resume=True))


def test_the_table() -> None:
    """Sample standard deviation by hand: of 1, 3 and 5 it is 2. What not every seed has, and what is a count, stays out."""
    scores = {
        seed: {"exact": value * 2, "f1": value, "total": 10, "seconds": 1.5} | ({"odd": 1.0} if seed else {})
        for seed, value in enumerate([1.0, 3.0, 5.0])
    }
    summary = summary_of(scores, "f1")
    assert set(summary["metrics"]) == {"exact", "f1"}
    assert table_of(summary).splitlines() == [
        "|            | f1          | exact       |",
        "|------------|-------------|-------------|",
        "| seed 0     | 1.00        | 2.00        |",
        "| seed 1     | 3.00        | 6.00        |",
        "| seed 2     | 5.00        | 10.00       |",
        "| mean ± std | 3.00 ± 2.00 | 6.00 ± 4.00 |",
    ]
    assert table_of(summary_of({7: {"f1": 50.0}}, "f1")).splitlines()[-1].split() == ["|", "mean", "±", "std", "|", "50.00", "|"]  # fmt: skip


def test_the_card_names_data_recipe_scores_and_versions(config: FinetuneQAConfig, data: Path) -> None:
    run_finetune(config)
    card = (config.output / "model" / "README.md").read_text(encoding="utf-8")
    digest = hashlib.sha256((data / "qa_v1.json").read_bytes()).hexdigest()
    f1 = json.loads((config.output / "metrics.json").read_text())["f1"]
    for part in (
        f"| training | qa_v1.json | `{digest}` |",
        f"| scores | qa_v1.json | `{digest}` |",
        "| lr | 0.003 |",
        "| batch-size | 8 |",
        f"| f1 | {f1:.2f} |",
        "seed 0",
        f"torch {torch.__version__}",
    ):
        assert part in card
    assert str(config.output.parent) not in card.replace(config.init, "")  # no path of this machine but the one given


def test_limit_takes_the_first_examples_of_both_files(config: FinetuneQAConfig, capsys: pytest.CaptureFixture) -> None:
    run_finetune(replace(config, limit=3))
    assert "· 3 questions in" in capsys.readouterr().out
    assert json.loads((config.output / "metrics.json").read_text())["total"] == 3
    assert read_metrics(config.output / "metrics.jsonl")
