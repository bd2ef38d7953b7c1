"""The models that come with the package: whole, small enough, described, and quick to start."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from finetune.tasks.qa.answerer import QuestionAnswerer
from spanbert import weights as bundled
from spanbert.checkpoint.model_folder import build_model, load_model, save_model
from spanbert.cli import main
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining, SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

ROOT = Path(__file__).parents[3]
TEXT = "The bridge was built in 1894. It crosses the river Thames near the Tower of London."
QUESTION = "When was the bridge built?"
KINDS = {
    "encoder": (SpanBertForPretraining, ("mlm", "sbo")),
    "scratch": (SpanBertForQuestionAnswering, ("qa_outputs",)),
    "reader": (SpanBertForQuestionAnswering, ("qa_outputs",)),
}
#: What takes long to import and has no part in answering a question.
HEAVY = (
    "datasets",
    "pyarrow",
    "pandas",
    "transformers",
    "matplotlib",
    "tensorboard",
    "torch._dynamo",
    "triton",
    "sympy",
)


# --- the weights as they are bundled --------------------------------------------------------------------------------


def folder_of(kind: str) -> Path:
    return bundled.bundled_path(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_folder_is_whole_and_bf16(kind: str) -> None:
    names = {file.name for file in folder_of(kind).iterdir()}
    files = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert names - {"calibration.json"} == files
    with safe_open(folder_of(kind) / "model.safetensors", "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"BF16"}  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize("kind", KINDS)
def test_every_shipped_tensor_was_trained(kind: str) -> None:
    cls, heads = KINDS[kind]
    model, report = load_model(folder_of(kind), cls)
    assert report.initialised == report.unused == ()
    assert all(report.has(head) for head in heads)
    assert Tokenizer.load(folder_of(kind)).vocab_size == model.config.vocab_size


def test_the_shipped_models_fit_a_package_and_two_share_a_tokenizer() -> None:
    assert Tokenizer.load(folder_of("scratch")).fingerprint == Tokenizer.load(bundled.tokenizer_path()).fingerprint
    assert sum(file.stat().st_size for file in bundled.WEIGHTS.rglob("*") if file.is_file()) <= 80_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_model_says_where_it_comes_from_and_how_good_it_is(kind: str) -> None:
    card = (folder_of(kind) / "README.md").read_text(encoding="utf-8")
    wanted = ["license: cc-by-sa-4.0", "CC BY-SA 3.0", "Wikipedia", "## Scores", "## Limits"]
    wanted += ["unigram baseline"] if kind == "encoder" else ["SQuAD", "What it gets wrong", "spanbert finetune qa"]
    wanted += ["all-MiniLM-L6-v2", "Apache-2.0", "reader_data"] if kind == "reader" else ["spanbert pretrain"]
    assert [words for words in wanted if words not in card] == []


@pytest.mark.parametrize("kind", ["reader", "scratch"])
def test_a_shipped_model_answers_in_the_texts_own_words(kind: str) -> None:
    answer = QuestionAnswerer.load(folder_of(kind), device="cpu").answer(QUESTION, TEXT)[0]
    assert TEXT[answer.start : answer.end] == answer.text
    assert answer.text.strip()


def test_the_shipped_reader_declines_where_the_text_has_no_answer() -> None:
    reader = QuestionAnswerer.load(folder_of("reader"), device="cpu")
    assert reader.answer("Who is the coach of the football team?", TEXT)[0].no_answer
    assert reader.answer(QUESTION, TEXT)[0].text == "1894"


def test_the_shipped_encoder_fills_and_its_tokenizer_masks(capsys: pytest.CaptureFixture) -> None:
    for head in ("mlm", "sbo", "both"):
        assert main(["fill", "The [SPAN:2] of France is Paris.", "--head", head, "--device", "cpu"]) == 0
    assert main(["masks", TEXT]) == 0
    assert "tokens masked" in capsys.readouterr().out


# --- how commands find them -----------------------------------------------------------------------------------------


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tiny models in the place of the bundled ones."""
    characters = sorted(set(TEXT + QUESTION) - {" "})
    pieces = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)]
    tokenizer = Tokenizer({piece: number for number, piece in enumerate(pieces)})
    shape = EncoderConfig(tokenizer.vocab_size, 32, 1, 2, 64, max_position_embeddings=384)
    for kind, (cls, _) in KINDS.items():
        save_model(tmp_path / "weights" / kind, build_model(cls, shape, 0), tokenizer)
    monkeypatch.setattr(bundled, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    qa = {"id": "1", "question": QUESTION, "answers": [{"text": "1894", "answer_start": TEXT.index("1894")}]}
    paragraphs = [{"context": TEXT, "qas": [qa]}]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "Bridge", "paragraphs": paragraphs}]}))
    return tmp_path / "squad.json"


def test_no_model_named_means_the_shipped_one(made_up: Path, labelled: Path, capsys: pytest.CaptureFixture) -> None:
    text = str(made_up / "text.txt")
    assert main(["ask", "--context", text, QUESTION, "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] in TEXT
    assert main(["evaluate", "qa", str(labelled), "--device", "cpu"]) == 0
    assert f"spanbert ask {bundled.qa_model_path()}" in capsys.readouterr().out
    assert main(["fill", "The [SPAN:2] was built", "--device", "cpu"]) == 0
    assert "MLM and SBO heads together" in capsys.readouterr().out
    assert main(["masks", TEXT]) == 0
    run = made_up / "run"
    options = ["--init", "shipped", "--train", str(labelled), "--output", str(run), "--epochs", "1", "--device", "cpu"]
    assert main(["finetune", "qa", *options]) == 0
    assert f"starting from {bundled.encoder_path()}" in capsys.readouterr().out


def test_a_bundled_model_is_named_by_a_word(made_up: Path, labelled: Path, capsys: pytest.CaptureFixture) -> None:
    """A folder of that name in the working directory is meant rather than the word."""
    assert main(["evaluate", "qa", "scratch", str(labelled), "--device", "cpu"]) == 0
    assert f"spanbert ask {bundled.WEIGHTS / 'scratch'}" in capsys.readouterr().out
    assert main(["fill", "encoder", "The [SPAN:2] was built", "--device", "cpu"]) == 0
    assert main(["evaluate", "qa", "sctach", str(labelled), "--device", "cpu"]) == 2
    assert "sctach: no such folder; the bundled models are called reader, scratch, encoder" in capsys.readouterr().err
    assert bundled.model_path(made_up) == made_up


def test_the_better_reader_answers_and_the_smaller_one_where_it_is_missing(
    made_up: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanbert.errors._noted", set())  # notes are given once in a process
    assert bundled.qa_model_path() == bundled.WEIGHTS / "reader"
    assert capsys.readouterr().err == ""
    shutil.rmtree(bundled.WEIGHTS / "reader")
    assert bundled.qa_model_path() == bundled.WEIGHTS / "scratch"
    assert "the bundled reader is not installed: scratch" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "--context", "TEXT", QUESTION],
        ["fill", "The [SPAN:2] was built"],
        ["masks", TEXT],
        ["evaluate", "qa", "LABELLED"],
        ["finetune", "qa", "--init", "shipped", "--train", "LABELLED", "--output", "RUN"],
    ],
)
def test_without_weights_there_is_one_clear_sentence(
    arguments: list[str], tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bundled, "WEIGHTS", tmp_path / "nothing")
    (tmp_path / "text.txt").write_text(TEXT)
    places = {"TEXT": tmp_path / "text.txt", "LABELLED": labelled, "RUN": tmp_path / "run"}
    assert main([str(places.get(word, word)) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no model comes with this installation")
    assert len(error.splitlines()) == 1


def test_every_file_of_the_weights_goes_into_a_wheel(made_up: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["spanbert"]
    for file in bundled.WEIGHTS.rglob("*.*"):
        path = str(Path("weights") / file.relative_to(bundled.WEIGHTS))
        assert any(fnmatch(path, pattern) for pattern in patterns), path


# --- how quickly they start -----------------------------------------------------------------------------------------


def imported_by(arguments: list[str], weights: Path) -> set[str]:
    """Modules in memory after a command in a process of its own."""
    program = (
        "import sys, json, pathlib; from spanbert import weights; from spanbert.cli import main; "
        f"weights.WEIGHTS = pathlib.Path({str(weights)!r}); status = main(); "
        "print(json.dumps([status, sorted(sys.modules)]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    return set(modules)


def test_asking_and_filling_import_nothing_heavy(made_up: Path) -> None:
    """A decorator of PyTorch's compiler once brought 800 modules and a second of waiting into every start."""
    text = str(made_up / "text.txt")
    for arguments in (["ask", "--context", text, QUESTION], ["fill", "The [SPAN:2] was built"]):
        modules = imported_by([*arguments, "--device", "cpu"], bundled.WEIGHTS)
        assert "torch" in modules
        assert [name for name in HEAVY if name in modules] == []


def test_showing_masks_does_without_pytorch(made_up: Path) -> None:
    modules = imported_by(["masks", TEXT], bundled.WEIGHTS)
    assert [name for name in (*HEAVY, "torch") if name in modules] == []


def test_the_command_leaves_the_garbage_collector_as_it_was(made_up: Path) -> None:
    """The front door turns it off while it imports."""
    program = "import gc; from spanbert.cli import main; main(); assert gc.isenabled() and gc.get_freeze_count() > 0"
    done = subprocess.run([sys.executable, "-c", program, "runs", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_torch_sees_the_loop_over_lengths_as_python() -> None:
    """Compiled layers leave it out: one program for all batches, not one for every set of lengths."""
    from torch._dynamo.testing import CompileCounter

    from spanbert.model import attention
    from spanbert.model.packing import cumulative

    plain, counter = attention._LOOP.body, CompileCounter()
    try:
        attention.leave_loop_to_python()
        layer = torch.compile(
            lambda q, cu, n: attention.attention(q * 2, q, q, cu, n) + 1, backend=counter, dynamic=True
        )
        for lengths in ([3, 9, 4], [7, 2], [5, 5, 1, 8, 6]):
            cu_seqlens = cumulative(torch.tensor(lengths))
            layer(torch.randn(sum(lengths), 2, 8), cu_seqlens, max(lengths))
    finally:
        attention._LOOP.body = plain
        torch._dynamo.reset()
    assert counter.frame_count <= 3
