"""The mechanism comparison makes its models once, finds those that are there, goes on where it stopped, and reports."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import benchmarks.ablation.mechanism.__main__ as command
from benchmarks.ablation.mechanism.look import Material
from benchmarks.ablation.mechanism.plan import ARMS, MechanismConfig, check_finished, pretrain_config
from pretrain.data.blocks import Blocks
from spanbert.checkpoint.model_folder import build_model, save_model
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.step import OptimizerStep

DATA = Path(__file__).parents[2] / "data"
BLOCK = 48


@pytest.fixture(scope="module")
def start(corpus: Path, shape: EncoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    save_model(folder, build_model(SpanBertForPretraining, shape, 0), Tokenizer.load(corpus / "tokenizer"))
    return folder


@pytest.fixture
def config(corpus: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MechanismConfig:
    """Three models and a very small encoder; without what is slow and beside the point."""
    monkeypatch.setattr("spanbert.device.measured_peak_flops", lambda *_: 1e12)
    monkeypatch.setattr("spanbert.training.run_folder.open_trackers", lambda *_, **__: [])
    for module in ("pretrain.saving", "finetune.run"):
        monkeypatch.setattr(f"{module}.plot_curves", lambda *_: False)
    return MechanismConfig(
        data=corpus, output=tmp_path / "mechanism", init_from=start, arms=("none", "geometric", "geometric+sbo"), seeds=(5,),
        threads=1, tokens=4000, lr=1e-2, batch_size=4, held_out=12, probe_held_out=12, probe_blocks=24, probe_steps=5,
        fills=8, dev_questions=5, epochs=1, qa_batch_size=4, device="cpu", precision="fp32",
    )  # fmt: skip


def test_budget_is_that_of_the_arm_with_sbo(config, shape):
    lengths = Blocks.open(config.data, "train").lengths
    made = {
        name: pretrain_config(config, name, 5, shape, lengths, config.init_from, config.output)
        for name, arm in ARMS.items()
        if arm.scheme
    }
    assert made["geometric+sbo"].tokens == config.tokens and made["geometric+sbo"].sbo
    assert len({run.tokens for name, run in made.items() if name != "geometric+sbo"}) == 1
    assert made["geometric"].tokens > 1.05 * config.tokens and not made["geometric"].sbo
    assert made["mixed"].mask.scheme == "mixed"


def test_runs_are_made_looked_at_and_reported_once(config, monkeypatch, capsys):
    command.run(config)
    record = json.loads((config.output / "mechanism.json").read_text())
    assert [(run["arm"], run["seed"]) for run in record["runs"]] == [(arm, 5) for arm in config.arms]
    none, plain, both = record["runs"]
    assert none["tokens"] == 0 and 4000 <= both["tokens"] < plain["tokens"]
    assert set(none["fills"]) == set(both["fills"]) == {"mlm", "sbo", "both"} and set(plain["fills"]) == {"mlm"}
    assert "sbo" in both["masks"]["geometric"] and "sbo" not in plain["masks"]["geometric"]
    assert plain["masks"]["geometric"]["mlm"]["loss"] < none["masks"]["geometric"]["mlm"]["loss"] - 0.2, (
        "it was trained"
    )
    text = (config.output / "mechanism.md").read_text()
    assert "3 of 3 models" in text and "Not run yet: " in text and "(one seed)" in text
    for picture in ("mechanism-probe.png", "mechanism-cross.png"):
        assert (config.output / picture).read_bytes()[1:4] == b"PNG"

    def again(*_, **__):
        raise AssertionError("done again")

    monkeypatch.setattr(command, "look_at", again)
    monkeypatch.setattr(command, "run_pretrain", again)
    monkeypatch.setattr(Material, "prepare", again)
    capsys.readouterr()
    command.run(config)
    assert "| geometric+sbo |" in capsys.readouterr().out
    command.run(dataclasses.replace(config, arms=("none",), seeds=(5, 6)))
    copied = json.loads((config.output / "runs/none/seed-6/mechanism.json").read_text())
    assert {**copied, "seed": 5, "questions": {}} == none, "the start is looked at once"
    with pytest.raises(UserError, match="started with probe_steps = 5"):
        command.run(dataclasses.replace(config, probe_steps=6))


def test_goes_on_from_the_numbers_of_a_folder_that_is_gone(config, monkeypatch, tmp_path):
    config = dataclasses.replace(config, arms=("none", "geometric"))
    command.run(config)
    kept = tmp_path / "kept.json"
    shutil.move(config.output / "mechanism.json", kept)
    shutil.rmtree(config.output)
    renamed = shutil.copytree(config.init_from, tmp_path / "renamed")
    again = dataclasses.replace(config, known=kept, init_from=renamed, output=tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"kept.json: it was made with fills = \d+, now it is 1"):
        command.run(dataclasses.replace(again, fills=1, output=tmp_path / "third"))
    for key, other, message in (
        ("start", "another", "began with other weights than"),
        ("baseline", {"probe": {"loss": 1.0}}, "it was made over other text"),
    ):
        (tmp_path / "other.json").write_text(json.dumps(json.loads(kept.read_text()) | {key: other}))
        with pytest.raises(UserError, match=rf"other.json: .*{message}"):
            command.run(dataclasses.replace(again, known=tmp_path / "other.json", output=tmp_path / "fourth"))

    def made(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(command, "look_at", made)
    monkeypatch.setattr(command, "run_pretrain", made)
    command.run(again)
    before, after = json.loads(kept.read_text()), json.loads((again.output / "mechanism.json").read_text())
    assert before["runs"] == after["runs"] and len(after["runs"]) == 2


def test_an_interrupted_run_goes_on(config, monkeypatch, tmp_path):
    """Stopped in pretraining, then while its model is looked at: the numbers are those of a run that never was."""
    config = dataclasses.replace(config, arms=("geometric+sbo",))
    plan = command.pretrain_config
    monkeypatch.setattr(command, "pretrain_config", lambda *told: dataclasses.replace(plan(*told), save_every=2))
    undisturbed = dataclasses.replace(config, output=tmp_path / "undisturbed")
    command.run(undisturbed)
    folder = config.output / "runs/geometric+sbo/seed-5"
    taken, take = [], OptimizerStep.take

    def take_five(self, *arguments):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(take(self, *arguments))

    monkeypatch.setattr(OptimizerStep, "take", take_five)
    with pytest.raises(KeyboardInterrupt):
        command.run(config)
    assert (folder / "pretrain/config.json").exists() and not (folder / "pretrain/model").exists()
    monkeypatch.setattr(OptimizerStep, "take", take)
    look = command.look_at
    monkeypatch.setattr(command, "look_at", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        command.run(config)
    assert (folder / "pretrain/model").exists() and not (folder / "mechanism.json").exists()
    assert "resuming from" in (folder / "log.txt").read_text()
    monkeypatch.setattr(command, "look_at", look)
    monkeypatch.setattr(command, "run_pretrain", _interrupt)  # must not be called any more
    command.run(config)
    mine, theirs = (json.loads((c.output / "runs/geometric+sbo/seed-5/mechanism.json").read_text()) for c in (config, undisturbed))  # fmt: skip
    assert {**mine, "cpu_seconds": 0} == {**theirs, "cpu_seconds": 0}


def test_a_model_that_is_there_is_used_and_one_trained_otherwise_is_refused(config, shape):
    command.run(dataclasses.replace(config, arms=("geometric",)))
    lengths = Blocks.open(config.data, "train").lengths
    folder = config.output / "runs/geometric/seed-5"
    made = pretrain_config(config, "geometric", 5, shape, lengths, config.init_from, folder)
    check_finished(made, BLOCK)
    check_finished(dataclasses.replace(made, tokens=made.tokens + 4 * BLOCK - 1), BLOCK)
    with pytest.raises(UserError, match="more than a step"):
        check_finished(dataclasses.replace(made, tokens=made.tokens + 4 * BLOCK), BLOCK)
    with pytest.raises(UserError, match="started with lr = "):
        check_finished(dataclasses.replace(made, lr=0.02), BLOCK)
    elsewhere = dataclasses.replace(config, output=config.output / "other", pretrain=False)
    command.run(elsewhere)
    assert not (elsewhere.output / "runs/geometric/seed-5/pretrain").exists(), "nothing is pretrained"
    assert (elsewhere.output / "runs/none/seed-5/mechanism.json").exists()


def test_a_run_that_another_process_holds_is_left_alone(config, monkeypatch):
    done = []
    monkeypatch.setattr(command.Comparison, "run_arm", lambda _self, name, _seed, _folder: done.append(name))
    with command.claim(config.output / "runs/geometric/seed-5") as ours:
        assert ours
        command.work(command.Comparison(config))
    assert done == ["none", "geometric+sbo"]


def test_models_are_fine_tuned_on_few_questions(config):
    questions = {"questions": (6,), "train": DATA / "qa_v1.json", "dev": DATA / "qa_v1.json"}
    config = dataclasses.replace(config, arms=("none", "geometric"), **questions)
    command.run(config)
    runs = json.loads((config.output / "mechanism.json").read_text())["runs"]
    assert [run["questions"]["6"]["total"] for run in runs] == [5, 5]
    text = (config.output / "mechanism.md").read_text()
    assert "geometric than none, F1 of 6 questions" in text and "## Fine-tuned on few questions" in text
    with pytest.raises(UserError, match="--questions needs --train"):
        dataclasses.replace(config, train=None)


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
