"""Batching at inference, and `spanbert predict qa`."""

import json
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import predict as prediction
from finetune.config import EvaluateConfig, FinetuneConfig, PredictConfig
from finetune.predict import Machine, budget_batches, predict
from finetune.retrieval.calibrate import CalibrateConfig
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.ask import AskConfig
from finetune.tasks.qa.commands import PredictQAConfig, run_predict
from finetune.tasks.qa.features import TextQuestionSet
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.checkpoint.model_folder import save_model
from spanbert.device import has_int8_units
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.model.quantized import Int8Linear, kernels_run
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import bundled_path

MakeModel = Callable[..., SpanBertForQuestionAnswering]
MACHINE = Machine(torch.device("cpu"), "fp32", tokens=256)
SETTINGS = QASettings(window=64, stride=16, max_question=24, null_allowed=True, null_threshold=0.25)


def test_batches_hold_every_window_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 100)
    groups = list(budget_batches(lengths, 200))
    assert sorted(np.concatenate(groups)) == list(range(100))
    assert all(lengths[group].sum() <= 200 for group in groups)
    joined = lengths[np.concatenate(groups)]
    assert (np.diff(joined) <= 0).all()
    assert len(groups) < 25  # full ones
    assert [group.tolist() for group in budget_batches(np.array([7, 9]), 1)] == [[1], [0]]  # too long: alone


@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_answers_do_not_depend_on_batches_or_chunks(
    question_set: Callable[..., TextQuestionSet], make_model: MakeModel, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, model = question_set("qa_v2.json", 48, 7, 20), make_model().eval()
    task = QATask(SETTINGS)
    expected = list(predict(task, model, questions, MACHINE))
    done: list[int] = []
    monkeypatch.setattr(prediction, "CHUNK_WINDOWS", 10)
    machine = replace(MACHINE, tokens=tokens)
    found = list(predict(task, model, questions, machine, advance=done.append))
    assert [one.id for one in found] == questions.questions.ids
    assert sum(done) == len(questions.windows)
    for one, other in zip(found, expected, strict=True):
        assert [c.text for c in one.candidates] == [c.text for c in other.candidates]
        assert one.null_score == pytest.approx(other.null_score, abs=1e-5)


def test_predictions_are_lines_with_offsets(
    tmp_path: Path, make_model: MakeModel, tokenizer: Tokenizer, data: Path, capsys: pytest.CaptureFixture
) -> None:
    """Questions need no answers; whatever is answered stands in the context where the line says."""
    save_model(tmp_path / "model", make_model(seed=3), tokenizer, QATask(SETTINGS).model_config())
    content = json.loads((data / "qa_v2.json").read_text(encoding="utf-8"))
    contexts = {}
    for paragraph in (paragraph for article in content["data"] for paragraph in article["paragraphs"]):
        for question in paragraph["qas"]:
            contexts[question["id"]] = paragraph["context"]
            question.pop("answers")
    (tmp_path / "questions.json").write_text(json.dumps(content))
    run_predict(PredictQAConfig(tmp_path / "model", tmp_path / "questions.json", device="cpu"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == list(contexts)
    for line in lines:
        assert line["answer"] == contexts[line["id"]][line["start"] : line["end"]]
        assert (line["null_odds"] > 0.25) == (not line["answer"])
        assert 0 <= line["probability"] <= 1

    output = tmp_path / "out.jsonl"
    run_predict(PredictQAConfig(tmp_path / "model", tmp_path / "questions.json", output=output, limit=4, device="cpu"))
    assert [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] == lines[:4]
    with pytest.raises(UserError, match="--batch-tokens 0"):
        run_predict(PredictQAConfig(tmp_path / "model", tmp_path / "questions.json", batch_tokens=0))


def test_commands_that_use_a_trained_model_take_int8_and_training_does_not() -> None:
    def precisions(config: type) -> tuple[str, ...]:
        return typing.get_args(typing.get_type_hints(config)["precision"])

    for config in (EvaluateConfig, PredictConfig, AskConfig, CalibrateConfig):
        assert precisions(config) == ("auto", "fp32", "bf16", "int8")
    assert "int8" not in precisions(FinetuneConfig)


@pytest.mark.skipif(
    not (has_int8_units() and kernels_run()), reason="this processor or build of PyTorch has no int8 products"
)
def test_a_model_loaded_for_int8_has_int8_products_and_answers() -> None:
    text = "The canal was opened on 17 November 1869. It was dug by the Suez Canal Company."
    answerers = {
        precision: QuestionAnswerer.load(bundled_path("reader"), device="cpu", precision=precision)
        for precision in ("fp32", "int8")
    }
    products = [sum(isinstance(part, Int8Linear) for part in one.model.modules()) for one in answerers.values()]
    assert products == [0, 4 * answerers["fp32"].model.config.num_hidden_layers]
    assert answerers["int8"].machine.precision == "int8"
    exact, near = (one.answer("When was the canal opened?", text)[0] for one in answerers.values())
    assert near.text == exact.text == "17 November 1869"
    assert near.score != exact.score and near.score == pytest.approx(exact.score, abs=0.5)
    assert near.probability == pytest.approx(exact.probability, abs=0.02)
