"""What the ways of cheap tuning train, keep and save, on a tiny model; and the table of a short run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.finetuning import cheap_tuning
from benchmarks.finetuning.cheap_tuning import WAYS, CheapTuningConfig, Cost, Tuning
from benchmarks.finetuning.turns import Block, TrainingProcess
from spanbert.checkpoint.model_folder import save_model
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

TEXTS = ["good that day", "bad to the end", "good", "the end was bad", "more good than that"]


@pytest.fixture
def config(
    tmp_path: Path, make_model: Callable[..., SpanBertForQuestionAnswering], tokenizer: Tokenizer
) -> CheapTuningConfig:
    model = make_model()
    save_model(tmp_path / "model", model, tokenizer)
    lines = "".join(f"{'good' if 'good' in text else 'bad'} {text}\n" for text in TEXTS)
    (tmp_path / "train.txt").write_text(lines)
    return CheapTuningConfig(
        str(tmp_path / "model"),
        tmp_path / "train.txt",
        tmp_path / "train.txt",
        window=32,
        epochs=3,
        batch_size=2,
        block=2,
    )


@pytest.fixture
def cost_of(config: CheapTuningConfig) -> Callable[[str], tuple[Tuning, Cost]]:
    """Trains that way in this process; the model has two layers, so it is the first that is frozen."""

    def train(name: str) -> tuple[Tuning, Cost]:
        way = WAYS[name]
        if name == "frozen":
            way = way._replace(options={"freeze": "embeddings,0"})
        trained = Tuning(cheap_tuning.tuning(config, way))
        assert trained.steps == 9
        for number in range(trained.steps):
            trained.step(number)
        return trained, trained.finish()

    return train


@pytest.mark.parametrize("name", WAYS)
def test_each_way_pays_for_what_it_trains(cost_of: Callable[[str], tuple[Tuning, Cost]], name: str) -> None:
    """Two moments in fp32 and a step counter for each parameter that is trained, and none for the others."""
    trained, cost = cost_of(name)
    tensors = [p for p in trained.model.parameters() if p.requires_grad]
    assert cost.trained == sum(p.numel() for p in tensors)
    assert cost.optimizer_bytes == 8 * cost.trained + 4 * len(tensors)
    assert cost.peak_bytes >= cost.before_bytes > 50e6
    assert 0 <= cost.accuracy <= 100
    every = sum(p.numel() for p in trained.model.parameters())
    assert (cost.trained == every) == (name in ("full", "decay"))


def test_an_adapter_is_smaller_than_a_model(cost_of: Callable[[str], tuple[Tuning, Cost]]) -> None:
    assert cost_of("lora")[1].saved_bytes < cost_of("full")[1].saved_bytes


def test_rates_that_fall_from_layer_to_layer_reach_the_optimizer(
    cost_of: Callable[[str], tuple[Tuning, Cost]],
) -> None:
    """The embeddings are the third block under the head here."""
    full, decayed = (cost_of(name)[0].optimizer.param_groups for name in ("full", "decay"))
    assert {group["rate"] for group in full} == {1.0}
    assert min(group["rate"] for group in decayed) == pytest.approx(0.8**3)


def test_speed_is_of_processor_time_and_its_ratio_of_the_same_turns() -> None:
    full = [Block(40.0, [1.0, 1.0]), Block(1.0, [1.0, 1.0]), Block(4.0, [1.0, 1.0])]
    half = [Block(1.0, [1.0, 1.0]), Block(0.5, [1.0, 1.0]), Block(2.0, [1.0, 1.0])]
    assert cheap_tuning._speed(half, 4) == pytest.approx(4 / 0.625)
    assert cheap_tuning._ratio(half, full) == 2.0


@pytest.mark.parametrize("together", [True, False])
def test_the_table_has_a_row_for_each_way(
    config: CheapTuningConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    together: bool,
) -> None:
    """In this process, in place of processes of their own."""

    class Here(TrainingProcess):
        def __init__(self, make: Callable[..., Tuning], what: object):
            self.trained = make(what)
            self.steps = self.trained.steps

        def take(self, steps: range) -> Block:
            return Block(1.0 * len(steps), [self.trained.step(number).item() for number in steps])

        def finish(self) -> Cost:
            return self.trained.finish()

    monkeypatch.setattr(cheap_tuning, "TrainingProcess", Here)
    cheap_tuning.main(replace(config, only=("full", "bias"), together=together, json=tmp_path / "result.json"))
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(("| full", "| bias"))]
    assert len(rows) == 2
    assert "--bias-only --lr 0.001" in rows[1]
    stored = json.loads((tmp_path / "result.json").read_text())["ways"]
    assert stored["bias"]["ratio"] == 1.0
    assert len(stored["full"]["losses"]) == 9
    assert f"| {stored['bias']['trained']:,} |" in rows[1]


@pytest.mark.slow
def test_each_way_has_a_process_of_its_own(config: CheapTuningConfig) -> None:
    rows = cheap_tuning.measure(replace(config, only=("full", "lora")))
    assert rows["lora"]["trained"] < rows["full"]["trained"]
    assert [len(row["seconds"]) for row in rows.values()] == [5, 5]
    assert all(row["peak_bytes"] > row["before_bytes"] for row in rows.values())
