"""A tiny comparison with few examples: parts that do not overlap, the rate chosen on none of the test texts, what is reported."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.finetuning import few_examples
from benchmarks.finetuning.few_examples import DATA_SETS, FewExamplesConfig, chosen_rate, rate_folders, run, write_parts
from benchmarks.finetuning.few_examples_report import paired, table
from spanbert.checkpoint.model_folder import save_model
from spanbert.config import save_json
from spanbert.errors import UserError
from tests.span_samples import TOKENIZER, small_model


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FewExamplesConfig:
    """One data set of texts with words of the tiny vocabulary."""
    data = dataclasses.replace(
        DATA_SETS["sst2"],
        train="train.tsv",
        test="test.tsv",
        prompt="{text} is [MASK] .",
        words={"0": "old", "1": "big"},
    )
    monkeypatch.setattr(few_examples, "DATA_SETS", {"tiny": data})
    draw = np.random.default_rng(0)
    words = ["the", "city", "of", "France", "Spain", "Italy", "Paris", "Madrid", "Rome", "sunny"]
    for name, count in (("train.tsv", 80), ("test.tsv", 15)):
        texts = [" ".join(words[k] for k in draw.integers(0, 10, 6)) for _ in range(count)]
        lines = [f"{text} \t{n % 2}\n" for n, text in enumerate(texts)]
        (tmp_path / name).write_text("sentence\tlabel\n" + "".join(lines) + lines[0])
    save_model(tmp_path / "start", small_model(), TOKENIZER)
    return FewExamplesConfig(
        data=tmp_path,
        output=tmp_path / "out",
        init=str(tmp_path / "start"),
        data_sets=("tiny",),
        ways=("new head", "mlm"),
        each=(2,),
        seeds=(0, 1),
        rates=(1e-3, 1e-2),
        rate_each=2,
        steps=2,
        epochs=1,
        batch_size=4,
        window=24,
        pool=50,
        scored=12,
        device="cpu",
    )


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"].strip() for line in path.read_text().splitlines()]


def test_the_texts_of_rates_and_runs_are_different_ones(config: FewExamplesConfig) -> None:
    write_parts(config, "tiny")
    folder = config.output / "data" / "tiny"
    rates, pool, test = (texts_of(folder / f"{name}.jsonl") for name in ("rates", "pool", "test"))
    assert (len(rates), len(pool), len(test)) == (12, 50, 12)
    assert len({*rates, *pool}) == 62


def test_a_small_comparison_is_reported_and_not_made_again(
    config: FewExamplesConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)
    found = json.loads((config.output / "results.json").read_text())["data_sets"]["tiny"]
    assert set(found["untrained"]) == {"mlm", "sbo", "both"}
    assert {way: {k: list(seeds) for k, seeds in runs.items()} for way, runs in found["trained"].items()} == {
        "new head": {"2": ["0", "1"]},
        "mlm": {"2": ["0", "1"]},
    }
    report = (config.output / "report.md").read_text()
    scores = [one["accuracy"] for one in found["trained"]["mlm"]["2"].values()]
    row = (
        f"| tiny | prompt, mlm | {found['rates']['mlm']:g} | {np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f} | 2 |"
    )
    assert row in report
    assert f"| tiny | the larger class | – | {found['majority']:.2f} | – |" in report
    assert (config.output / "few_examples.png").stat().st_size > 5000
    monkeypatch.setattr(few_examples, "run_finetune", lambda options: pytest.fail("it is done"))
    run(config)
    assert json.loads((config.output / "results.json").read_text())["data_sets"]["tiny"] == found


def test_the_rate_is_the_best_mean_and_the_smaller_of_equal_ones(config: FewExamplesConfig) -> None:
    several = dataclasses.replace(config, rates=(1e-2, 1e-3, 1e-4), rate_seeds=(7, 8))
    for (lr, seed, folder), accuracy in zip(
        rate_folders(several, "tiny", "mlm"), (50, 70, 90, 30, 10, 20), strict=True
    ):
        assert chosen_rate(several, "tiny", "mlm") is None
        save_json({"accuracy": accuracy, "lr": lr, "seed": seed}, folder / "result.json")
    assert chosen_rate(several, "tiny", "mlm") == 1e-3


def test_what_has_not_run_is_left_empty() -> None:
    runs = {"4": {"0": {"accuracy": 60.0}}}
    found = {"x": {"majority": 50.0, "untrained": {}, "rates": {"new head": 0.001}, "trained": {"new head": runs}}}
    assert table(found, "about", (4, 16)).splitlines()[-1] == "| x | new head | 0.001 | 60.00 |  | 0–1 |"


def test_an_unknown_data_set_is_named(config: FewExamplesConfig) -> None:
    with pytest.raises(UserError, match="--data-sets other: choose from tiny"):
        run(dataclasses.replace(config, data_sets=("other",)))


def test_prompts_are_compared_with_the_new_head_draw_by_draw() -> None:
    """Seed 2 has no prompt; unpaired, the difference would be −5 and not +2."""
    head = {"0": {"accuracy": 50.0}, "1": {"accuracy": 60.0}, "2": {"accuracy": 76.0}}
    prompt = {"0": {"accuracy": 51.0}, "1": {"accuracy": 63.0}}
    found = {"tiny": {"trained": {"new head": {"4": head}, "mlm": {"4": prompt}}}}
    assert paired(found, (4, 16)) == [
        "",
        "* tiny, 4 a class: prompt, mlm − new head: +2.00 ± 1.00, interval -10.71 … +14.71",
    ]
    assert paired({"tiny": {"trained": {"mlm": {"4": prompt}}}}, (4,)) == []
