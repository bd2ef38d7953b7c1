"""Scoring models and prediction files through `spanbert evaluate qa`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.evaluate import evaluate
from finetune.predict import Machine
from finetune.tasks.qa.commands import EvaluateQAConfig, FinetuneQAConfig, run_evaluate
from finetune.tasks.qa.features import TextQuestionSet
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

MakeModel = Callable[..., SpanBertForQuestionAnswering]
MACHINE = Machine(torch.device("cpu"), "fp32", tokens=256)
SETTINGS = QASettings(window=64, stride=16, max_question=24, null_allowed=True, null_threshold=0.25)
TASK = QATask(SETTINGS)


@pytest.fixture
def model_folder(tmp_path: Path, make_model: MakeModel, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "model", make_model(seed=3), tokenizer, TASK.model_config())
    return tmp_path / "model"


def test_evaluation_leaves_the_model_in_its_mode(
    question_set: Callable[..., TextQuestionSet], make_model: MakeModel
) -> None:
    model = make_model(dropout=0.5).train()
    first, second = (evaluate(TASK, model, question_set("qa_v1.json"), MACHINE) for _ in range(2))
    assert model.training
    assert first.predictions == second.predictions  # no dropout while answering


def test_weights_that_are_not_numbers_are_refused(
    question_set: Callable[..., TextQuestionSet], make_model: MakeModel
) -> None:
    model = make_model()
    with torch.no_grad():
        model.qa_outputs.bias[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        evaluate(TASK, model, question_set("qa_v1.json"), MACHINE)


def test_scores_never_take_the_place_of_a_models_files(model_folder: Path, data: Path) -> None:
    """With --output RUN the scores of another file took the place of the run's own."""
    before = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    with pytest.raises(UserError, match="holds a run or a model"):
        run_evaluate(EvaluateQAConfig(model_folder, data / "qa_v2.json", output=model_folder, device="cpu"))
    assert {path.name: path.read_bytes() for path in model_folder.iterdir()} == before


def test_a_model_is_scored_with_its_own_settings(
    model_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "out"
    run_evaluate(EvaluateQAConfig(model_folder, data / "qa_v2.json", output=output, device="cpu"))
    printed = capsys.readouterr().out
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["null_threshold"] == 0.25
    assert f"EM {metrics['exact']:.2f}   F1 {metrics['f1']:.2f}" in printed
    assert "HasAns: EM" in printed
    assert "NoAns: EM" in printed
    assert f"best F1 {metrics['best_f1']:.2f} at null threshold" in printed
    odds = json.loads((output / "null_odds.json").read_text())
    predictions = json.loads((output / "predictions.json").read_text(encoding="utf-8"))
    nbest = json.loads((output / "nbest.json").read_text(encoding="utf-8"))
    for key, text in predictions.items():
        assert text == ("" if odds[key] > 0.25 else nbest[key][0]["text"])

    # the same file of predictions, scored without the model, gives the same numbers
    again = tmp_path / "again"
    run_evaluate(EvaluateQAConfig(data / "qa_v2.json", predictions=output / "predictions.json", output=again))
    rescored = json.loads((again / "metrics.json").read_text())
    assert {key: metrics[key] for key in rescored} == rescored
    assert not {"best_f1", "null_threshold"} & rescored.keys()


def test_the_threshold_can_be_overridden(model_folder: Path, data: Path, tmp_path: Path) -> None:
    for threshold, empty in ((-1e9, 10), (1e9, 0)):
        output = tmp_path / str(threshold)
        config = EvaluateQAConfig(model_folder, data / "qa_v2.json", output=output, null_threshold=threshold)
        run_evaluate(config)
        predictions = json.loads((output / "predictions.json").read_text(encoding="utf-8"))
        assert sum(not text for text in predictions.values()) == empty


def test_limit_takes_the_first_questions_but_checks_the_whole_file(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run_evaluate(EvaluateQAConfig(model_folder, data / "qa_v1.json", output=output, limit=4))
    assert list(json.loads((output / "predictions.json").read_text())) == ["fox-1", "fox-2", "fox-3", "bj-1"]
    with pytest.raises(UserError, match="off-by-one"):
        run_evaluate(EvaluateQAConfig(model_folder, data / "qa_malformed.json", limit=1))


def test_predictions_file_scores_and_missing_answers(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps({"fox-1": "Zürich", "fox-2": "in 1999", "ada-1": "the byron", "else": "x"}))
    run_evaluate(EvaluateQAConfig(data / "qa_v1.json", predictions=predictions))
    printed = capsys.readouterr().out
    assert "EM 37.50   F1 37.50   (8 questions)" in printed
    assert "5 questions without a prediction" in printed


def cmrc_file(folder: Path) -> Path:
    """Two questions as CMRC 2018 has them."""
    context = "《战国无双3》由光荣和ω-force开发，在北京的大学展出。"
    qas = [
        {
            "id": f"DEV_0_QUERY_{n}",
            "question": "谁开发的？",
            "answers": [{"text": gold, "answer_start": context.index(gold)}],
        }
        for n, gold in enumerate(("光荣和ω-force", "北京的大学"))
    ]
    path = folder / "cmrc.json"
    path.write_text(
        json.dumps({"version": "v1.0", "data": [{"paragraphs": [{"context": context, "qas": qas}]}]}), encoding="utf-8"
    )
    return path


def test_the_metric_is_the_one_asked_for_or_said_by_the_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, answers = cmrc_file(tmp_path), tmp_path / "answers.json"
    answers.write_text(json.dumps({"DEV_0_QUERY_0": "光荣和ωforce", "DEV_0_QUERY_1": "北京和大学"}), encoding="utf-8")
    # the first: all tokens, for CMRC drops the hyphen, as do SQuAD's and MLQA's rules. The second: 2 of 5 tokens in a
    # run, 4 of 5 wherever they stand, and no whole word
    for asked, metric, f1 in (
        (None, "cmrc", 70),
        ("squad", "squad", 50),
        ("drcd", "drcd", 90),
        ("mlqa-zh", "mlqa-zh", 90),
    ):
        output = tmp_path / str(asked)
        run_evaluate(EvaluateQAConfig(file, predictions=answers, metric=asked, output=output))
        printed = capsys.readouterr()
        assert printed.out.startswith(f"metric: {metric}\nEM 50.00   F1 {f1}.00   (2 questions)")
        assert ("scored with --metric cmrc, for its question ids" in printed.err) is (asked is None)
        assert ("choose --metric cmrc, drcd or mlqa-zh" in printed.err) is (asked == "squad")
        assert json.loads((output / "metrics.json").read_text())["metric"] == metric


def test_a_model_keeps_its_metric_and_a_command_can_ask_for_another(
    tmp_path: Path, make_model: MakeModel, tokenizer: Tokenizer, data: Path
) -> None:
    task = QATask(replace(SETTINGS, metric="mlqa-de"))
    save_model(tmp_path / "model", make_model(seed=3), tokenizer, task.model_config())
    for asked, used in ((None, "mlqa-de"), ("drcd", "drcd")):
        output = tmp_path / used
        run_evaluate(EvaluateQAConfig(tmp_path / "model", data / "qa_v1.json", output=output, metric=asked))
        metrics = json.loads((output / "metrics.json").read_text())
        predictions = output / "predictions.json"
        again = tmp_path / f"again-{used}"
        run_evaluate(EvaluateQAConfig(data / "qa_v1.json", predictions=predictions, metric=used, output=again))
        rescored = json.loads((again / "metrics.json").read_text())
        assert metrics["metric"] == used
        assert {key: metrics[key] for key in rescored} == rescored


def test_training_passes_its_metric_to_the_task() -> None:
    config = FinetuneQAConfig(Path("t"), Path("o"), "random", metric="cmrc")
    assert config.task().settings.metric == "cmrc"
    assert FinetuneQAConfig(Path("t"), Path("o"), "random").task().settings.metric is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "nowhere", "file": "qa_v1.json"}, "nowhere: no such folder"),
        ({"model": "MODEL"}, "give a labelled file too"),
        ({"model": "MODEL", "file": "qa_malformed.json"}, "off-by-one"),
        ({"model": "MODEL", "file": "qa_v1.json", "limit": 0}, "--limit 0"),
        ({"model": "MODEL", "file": "qa_v1.json", "stride": 40}, "stride 40 must be below"),
        ({"model": "MODEL", "file": "qa_v1.json", "window": 999}, "longer than the model's 128"),
        ({"model": "qa_v1.json", "file": "qa_v2.json", "predictions": "qa_v1.json"}, "only the labelled file"),
        ({"model": "qa_v1.json", "predictions": "qa_v1.json"}, "one JSON object"),
    ],
)
def test_mistakes_are_one_sentence(model_folder: Path, data: Path, arguments: dict, message: str) -> None:
    places = {"MODEL": model_folder}
    values = {
        key: places.get(value, data / value if str(value).endswith(".json") else Path(value))
        if isinstance(value, str)
        else value
        for key, value in arguments.items()
    }
    with pytest.raises(UserError, match=message):
        run_evaluate(EvaluateQAConfig(**values))


def test_predictions_of_another_file_are_refused(data: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.json"
    predictions.write_text('{"else": "x"}')
    with pytest.raises(UserError, match="none of the question ids"):
        run_evaluate(EvaluateQAConfig(data / "qa_v1.json", predictions=predictions))


def test_an_encoder_without_a_head_is_refused(
    make_model: MakeModel, tokenizer: Tokenizer, data: Path, tmp_path: Path
) -> None:
    from spanbert.checkpoint.model_folder import build_model
    from spanbert.model.models import SpanBertForPretraining

    folder = tmp_path / "pretrained"
    save_model(folder, build_model(SpanBertForPretraining, make_model().config, 0), tokenizer)
    with pytest.raises(UserError, match="no trained head"):
        run_evaluate(EvaluateQAConfig(folder, data / "qa_v1.json"))
