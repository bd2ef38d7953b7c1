"""Question-answering models of other programs: windows that fit them, and whether they may answer nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.predict import load_trained
from finetune.tasks.qa.commands import EvaluateQAConfig, PredictQAConfig, run_evaluate, run_predict
from finetune.tasks.qa.task import QASettings, QATask, default_settings
from spanbert import errors
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

MakeModel = Callable[..., SpanBertForQuestionAnswering]


@pytest.fixture
def folder(tmp_path: Path, make_model: MakeModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of 128 positions without settings, as another program leaves it."""
    monkeypatch.setattr(errors, "_noted", set())
    save_model(tmp_path / "model", make_model(), tokenizer)
    return tmp_path / "model"


def test_default_windows_fit_every_model() -> None:
    """A model of 128 positions was refused for stride 128, which no option of `ask` could change."""
    for positions in range(6, 600):
        settings = default_settings(positions)
        settings.windows.check(positions)
        if positions >= 64 + 3 + 129:  # the usual question and stride fit
            assert settings == QASettings(min(positions, 384))


def test_a_model_of_few_positions_says_its_windows(folder: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    run_evaluate(EvaluateQAConfig(folder, data / "qa_v1.json", device="cpu"))
    printed = capsys.readouterr()
    assert "(8 questions)" in printed.out
    assert "has 128 positions and no settings for questions: window 128, stride 46, at most 32 tokens" in printed.err
    assert f"note: {folder} always answers: nothing in it says SQuAD 2; with --null-threshold" in printed.err


@pytest.mark.parametrize(
    ("place", "words", "evidence"),
    [
        ("name", "bert-base-squad2", "its name, 'bert-base-squad2', says SQuAD 2"),
        ("name", "bert_SQuAD_v2", "its name"),
        (
            "config",
            "someone/bert-squadv2",
            "\"_name_or_path\" in its config.json, 'someone/bert-squadv2', says SQuAD 2",
        ),
        ("card", "datasets:\n- squad_v2\n", "its README.md says 'squad_v2'"),
        ("cache", "models--someone--bert-squad2", "its name"),
        ("name", "bert-squad", None),
        ("name", "squad-20k", None),
        ("card", "fine-tuned on SQuAD 1.1", None),
    ],
)
def test_a_model_that_says_squad_2_may_answer_nothing(
    folder: Path, place: str, words: str, evidence: str | None, capsys: pytest.CaptureFixture
) -> None:
    """It always answered, and --null-threshold was refused, unless this program had trained it."""
    if place == "name":
        folder = folder.rename(folder.with_name(words))
    elif place == "cache":
        snapshots = folder.parent / words / "snapshots"
        snapshots.mkdir(parents=True)
        folder = folder.rename(snapshots / "0f3a")
    elif place == "card":
        (folder / "README.md").write_text(words)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": words}))
    settings = load_trained(QATask, folder, device="cpu").task.settings
    assert settings.null_allowed == (evidence is not None)
    assert settings.null_threshold == 0
    printed = capsys.readouterr().err
    assert (
        f"note: {folder} {'always answers' if evidence is None else f'may answer nothing, for {evidence}'}" in printed
    )


@pytest.mark.parametrize("stored", [None, QASettings(64, 16, 24)])
def test_a_threshold_is_taken_by_any_model(
    folder: Path, data: Path, tmp_path: Path, stored: QASettings | None, capsys: pytest.CaptureFixture,
    make_model: MakeModel, tokenizer: Tokenizer,
) -> None:  # fmt: skip
    if stored is not None:  # trained here, on answerable questions
        save_model(folder, make_model(), tokenizer, QATask(stored).model_config())
    for threshold, empty in ((-1e9, 10), (1e9, 0)):
        output = tmp_path / str(threshold)
        run_evaluate(EvaluateQAConfig(folder, data / "qa_v2.json", output=output, null_threshold=threshold))
        predictions = json.loads((output / "predictions.json").read_text(encoding="utf-8"))
        assert sum(not text for text in predictions.values()) == empty
        printed = capsys.readouterr()
        assert f"null threshold used: {threshold:.4f}" in printed.out
        run_predict(PredictQAConfig(folder, data / "qa_v2.json", null_threshold=threshold))
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert sum(not line["answer"] for line in lines) == empty
    with pytest.raises(UserError, match="--null-threshold nan"):
        run_predict(PredictQAConfig(folder, data / "qa_v2.json", null_threshold=float("nan")))


def test_why_a_threshold_makes_a_model_decline_is_said(folder: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    run_predict(PredictQAConfig(folder, data / "qa_v1.json", null_threshold=0.0))
    assert "note: the model may answer nothing, for --null-threshold is given" in capsys.readouterr().err
