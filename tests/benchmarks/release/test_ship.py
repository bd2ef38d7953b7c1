"""Runs become package folders: bf16, complete, with cards that say what the runs did; anything less is refused."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import tyro
from safetensors.torch import load_file

from benchmarks.finetuning.cold_start import ColdStart, measure
from benchmarks.release import ship as ship_module
from benchmarks.release.model_card import table
from benchmarks.release.provenance import Cost, command_line, commands, cost, costs_told, place, run_of, told
from benchmarks.release.scores import labelled, mistakes, question_word
from benchmarks.release.ship import ShipConfig, ship
from finetune.tasks.qa.commands import FinetuneQAConfig
from finetune.tasks.qa.commands import run_finetune as run_finetune_qa
from pretrain.config import PretrainConfig
from pretrain.data.prepare import PrepareConfig, run_prepare
from pretrain.data.train_tokenizer import train_wordpiece
from pretrain.init_from_counts import InitConfig, run_init
from pretrain.masking.masker import MaskConfig
from pretrain.train import run_pretrain
from spanbert.checkpoint.model_folder import build_model, save_model
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining

DATA = Path(__file__).parents[2] / "data"
TEXT = DATA / "wikipedia_articles.txt"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny runs: pretrained for 6 steps from a small random model, fine-tuned for one epoch."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = train_wordpiece([p.read_text(encoding="utf-8") for p in (TEXT, DATA / "qa_v1.json")], vocab_size=600)
    tokenizer.save(folder / "tok")
    shape = EncoderConfig(tokenizer.vocab_size, 32, 1, 2, 64, max_position_embeddings=64, sbo_position_size=8)
    save_model(folder / "start", build_model(SpanBertForPretraining, shape, 0), tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("spanbert.device.measured_peak_flops", lambda *_: 1e12)
        patch.setattr("spanbert.training.run_folder.open_trackers", lambda *_, **__: [])
        prepare = {"block_length": 32, "processes": 1, "validation_share": 0.3}
        run_prepare(PrepareConfig(inputs=(str(TEXT),), tokenizer=Path("tok"), output=Path("blocks"), **prepare))
        options = {"batch_size": 8, "lr": 1e-3, "log_every": 2, "warmup": 1, "device": "cpu", "precision": "fp32"}
        options["mask"] = MaskConfig(scheme="subword", mask_share=0.3)
        pretraining = PretrainConfig(Path("blocks"), Path("pretrained"), init_from=Path("start"), steps=6, **options)
        run_pretrain(pretraining)
        windows = {"window": 64, "stride": 16, "max_question": 40, "epochs": 1, "device": "cpu"}
        files = {"train": DATA / "qa_v1.json", "dev": DATA / "qa_v1.json"}
        run_finetune_qa(FinetuneQAConfig(init="pretrained/model", output=Path("runs/qa"), **files, **windows))
        files = {"train": DATA / "qa_v2.json", "dev": DATA / "qa_v2.json"}
        run_finetune_qa(FinetuneQAConfig(init="runs/qa", output=Path("runs/qa-2"), **files, **windows))
    return folder


@pytest.fixture
def config(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShipConfig:
    """Without the processes that measure the cold start."""
    monkeypatch.setattr(ship_module.cold_start, "measure", lambda _: ColdStart(1.25, 0.125, 5, 0.5))
    (tmp_path / "text.txt").write_text("The canal was opened in 1869.")
    return ShipConfig(
        encoder=work / "pretrained",
        scratch=work / "runs" / "qa",
        dev=DATA / "qa_v1.json",
        also=(DATA / "qa_v2.json",),
        corpus=(str(TEXT),),
        text=tmp_path / "text.txt",
        note="A note.",
        output=tmp_path / "weights",
        results=tmp_path / "results",
    )


def test_shipping_writes_whole_bf16_folders_with_cards(config: ShipConfig) -> None:
    ship(config)
    for kind, run in (("encoder", config.encoder), ("scratch", config.scratch)):
        stored = load_file(config.output / kind / "model.safetensors")
        trained = load_file(run / "model" / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
        assert all(torch.equal(tensor, trained[name].bfloat16()) for name, tensor in stored.items())
    assert sorted(file.name for file in config.output.iterdir()) == ["encoder", "scratch"]

    facts = json.loads((config.results / "facts.json").read_text())
    card = (config.output / "scratch" / "README.md").read_text(encoding="utf-8")
    assert f"| qa_v1.json | {facts['scratch']['scores']['qa_v1.json']['exact']:.2f} |" in card
    assert "qa_v2.json" in card
    assert "before rounding to bf16" in card
    assert "1.25 s, of which loading the model 0.12 s" in card
    assert "spanbert pretrain blocks --output pretrained --init-from start --steps 6 --batch-size 8 --lr 0.001" in card
    assert "spanbert finetune qa --train qa_v1.json --output qa --init pretrained" in card
    assert facts["scratch"]["contamination"]["train"][0]["paragraphs_whole"] == 2
    assert "qa_v1.json holds 2 of these paragraphs whole" in card, "trained on what it is examined on: the card says it"
    assert "A note." in card
    for words in ("CC BY-SA 3.0", "CC BY-SA 4.0", "It always answers"):
        assert words in card
    encoder = (config.output / "encoder" / "README.md").read_text(encoding="utf-8")
    assert set(facts["encoder"]["scores"]) == {"subword, 30%", "geometric, 15%"}, "its own masks and the paper's"
    for masks, scores in facts["encoder"]["scores"].items():
        assert (
            f"| {masks} | MLM, all masked tokens | {scores['unigram_mlm_loss']:.2f} | {scores['mlm_loss']:.2f} |"
            in encoder
        )
    assert "`The war ended in [SPAN:1].` | SBO |" in encoder
    for text in (card, encoder):
        assert str(config.scratch.parent) not in text
        assert "wikipedia_articles.txt" in text


def test_the_card_of_a_model_that_may_decline(config: ShipConfig) -> None:
    file = DATA / "qa_v2.json"
    ship(
        dataclasses.replace(
            config, scratch=config.scratch.with_name("qa-2"), dev=file, also=(DATA / "qa_v1.json",), corpus=()
        )
    )
    card = (config.output / "scratch" / "README.md").read_text(encoding="utf-8")
    facts = json.loads((config.results / "facts.json").read_text())["scratch"]["scores"]
    assert "may say that the text holds no answer" in card
    assert "was chosen on qa_v2.json" in card
    assert f"| {facts['qa_v2.json']['HasAns_f1']:.2f} | {facts['qa_v2.json']['NoAns_f1']:.2f} |" in card
    assert "| qa_v1.json |" in card, "what it loses where every question has an answer"
    assert "--init qa " in card, "the run before it"
    assert "Fine-tuning: qa_v1.json and qa_v2.json, from SQuAD" in card


def test_the_card_of_a_reader_whose_encoder_is_from_elsewhere(config: ShipConfig) -> None:
    """The threshold is chosen on questions of its own, and stored; a file in which every question has an answer gets
    one for each. The encoder's makers and its data are named, and no run before the model is made up."""
    run, file = config.scratch.with_name("reader"), DATA / "qa_v2.json"
    shutil.copytree(config.scratch.with_name("qa-2"), run, dirs_exist_ok=True)
    settings = json.loads((run / "config.json").read_text()) | {"init": "start", "output": "runs/reader"}
    (run / "config.json").write_text(json.dumps(settings))
    ship(dataclasses.replace(config, encoder=None, scratch=None, reader=run, held_out=file, also=(file,), corpus=()))
    card = (config.output / "reader" / "README.md").read_text(encoding="utf-8")
    stored = json.loads((config.output / "reader" / "config.json").read_text())["qa"]
    facts = json.loads((config.results / "facts.json").read_text())["reader"]
    assert stored["null_threshold"] == facts["scores"]["qa_v2.json"]["best_f1_threshold"]
    assert "null_threshold" not in facts["scores"]["qa_v1.json"]
    assert "chosen on qa_v2.json, questions on articles that it was not trained on" in card
    assert "spanbert finetune qa --train qa_v2.json --output reader --init start" in card
    assert "spanbert pretrain" not in card
    for words in ("all-MiniLM-L6-v2", "Apache-2.0", "SQuAD's *training* set", "QED"):
        assert words in card
    with pytest.raises(UserError, match="has no question without an answer"):
        ship(dataclasses.replace(config, encoder=None, scratch=None, reader=run, held_out=DATA / "qa_v1.json"))


def test_a_wrong_kind_of_run_is_refused(config: ShipConfig) -> None:
    with pytest.raises(UserError, match="name at least one run"):
        ship(dataclasses.replace(config, encoder=None, scratch=None))
    with pytest.raises(UserError, match="--encoder wants a run of `spanbert pretrain`"):
        ship(dataclasses.replace(config, encoder=config.scratch))
    with pytest.raises(UserError, match=r"config\.json is not that of a run"):
        ship(dataclasses.replace(config, encoder=config.encoder.parent / "start"))


def test_what_is_too_large_is_an_error(config: ShipConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship_module, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="more than a package should carry"):
        ship(config)


def test_a_failure_leaves_the_old_weights(config: ShipConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(config)
    before = (config.output / "scratch" / "README.md").read_bytes()
    with pytest.raises(UserError, match="no such file"):
        ship(dataclasses.replace(config, dev=config.dev.with_name("absent.json")))
    assert (config.output / "scratch" / "README.md").read_bytes() == before
    assert sorted(file.name for file in config.output.iterdir()) == ["encoder", "scratch"]


def test_commands_of_a_run_are_taken_by_the_command_line(work: Path) -> None:
    lines = commands(work / "runs" / "qa")
    assert [shlex.split(line)[1] for line in lines] == ["tokenizer", "prepare", "pretrain", "finetune"]
    again = tyro.cli(PretrainConfig, args=shlex.split(lines[2])[2:])
    assert (again.steps, again.batch_size, again.lr, again.init_from) == (6, 8, 1e-3, Path("start"))


def test_a_start_from_counts_is_part_of_the_commands(work: Path, tmp_path: Path) -> None:
    run_init(InitConfig(work / "blocks", tmp_path / "counted", size="mini", tokens=1000))
    config = json.loads((work / "pretrained" / "config.json").read_text())
    (tmp_path / "run").mkdir()
    changed = config | {"init_from": str(tmp_path / "counted"), "data": str(work / "blocks"), "output": "run"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
    lines = commands(tmp_path / "run")
    assert [line.split()[1] for line in lines] == ["tokenizer", "prepare", "init", "pretrain"]
    assert lines[2] == "spanbert init blocks --output counted --size mini --tokens 1000"
    assert "--init-from counted" in lines[3]


def test_what_a_bundled_start_tells_of_itself_is_part_of_the_next_card(config: ShipConfig, tmp_path: Path) -> None:
    first = dataclasses.replace(config, scratch=None, also=(), corpus=(), samples=0)
    ship(first)
    start = (tmp_path / "weights" / "encoder").rename(tmp_path / "stage1")
    before = told(start)
    assert first.encoder is not None
    settings = json.loads((first.encoder / "config.json").read_text())
    run = tmp_path / "stage2"
    run.mkdir()
    changed = {"init_from": str(start), "data": str(first.encoder.parent / "blocks"), "output": "stage2", "steps": 7}
    (run / "config.json").write_text(json.dumps(settings | changed))
    for name in ("metrics.jsonl", "model"):
        (run / name).symlink_to(first.encoder / name)
    ship(dataclasses.replace(first, encoder=run))
    card = (tmp_path / "weights" / "encoder" / "README.md").read_text()
    lines = [line for line in card.splitlines() if line.startswith("    spanbert ")]
    earlier = [line for line in before if line.startswith("    spanbert ")]
    assert lines[-len(earlier) - 1 :] == [*earlier, lines[-1]] and "--init-from stage1" in lines[-1]
    cost_of = dict(costs_told(tmp_path / "weights" / "encoder"))
    assert list(cost_of) == ["pretrained", "stage2"] and cost_of["pretrained"].steps == 6
    assert costs_told(tmp_path) == []


def test_a_command_line_gives_back_the_config() -> None:
    mask = MaskConfig(budget="reference", special_boundaries=False)
    config = PretrainConfig(
        Path("blocks"),
        Path("run"),
        stream=("a b.txt", "c"),
        minutes=1.5,
        warmup=0.06,
        mask=mask,
        sbo=False,
        compile=True,
    )
    line = command_line("pretrain", config, positional=("data",))
    assert tyro.cli(PretrainConfig, args=shlex.split(line)[2:]) == config


def test_what_a_run_cost(work: Path, tmp_path: Path) -> None:
    assert cost(work / "pretrained").steps == 6
    assert cost(work / "runs" / "qa").tokens > 100
    records = [
        {"step": 10, "tokens": 4000, "tokens_per_second": 2.0},
        {"step": 20, "tokens": 7600, "tokens_per_second": 1.0},
    ]
    lines = [json.dumps({"split": "train", **record}) for record in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({"step": 20, "split": "validation"})]))
    assert cost(tmp_path) == Cost(20, 7600, (2000 + 3600) / 3600)


def test_paths_of_a_run_are_found_from_anywhere(work: Path) -> None:
    assert place(Path("pretrained/model"), work / "runs" / "qa", Path("runs/qa")) == work / "pretrained" / "model"
    assert place(Path("blocks"), work / "qa-renamed", Path("qa")) == work / "blocks"
    assert run_of(work / "pretrained" / "model") == work / "pretrained"
    assert run_of(work / "start") is None


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("When was it built?", "when"),
        ("In what year did it end?", "what"),
        ("How many ships were there?", "how many"),
        ("Name the king who lost.", "who"),
        ("Is it large?", "other"),
    ],
)
def test_the_asking_word(question: str, word: str) -> None:
    assert question_word(question) == word


def test_mistakes_are_a_fixed_sample_of_the_wrong_answers() -> None:
    questions = labelled(DATA / "qa_v1.json")
    predictions = {
        question.id: question.answers[0] if number % 2 else "nonsense" for number, question in enumerate(questions)
    }
    rows, wrong = mistakes(questions, predictions, samples=2)
    assert sum(count for _, count, _, _ in rows) == len(questions)
    assert len(wrong) == 2
    assert all(one.answered == "nonsense" and one.f1 == 0 for one in wrong)
    assert mistakes(questions, predictions, samples=2)[1] == wrong


def test_texts_cannot_break_a_table() -> None:
    assert table(("a", "b"), [("x|y\nz", 1234)]).splitlines()[2] == "| x\\|y z | 1,234 |"


def test_the_cold_start_is_measured_in_processes_of_their_own(config: ShipConfig) -> None:
    found = measure(config.scratch / "model", runs=1)
    assert 0 < found.load < found.ask
