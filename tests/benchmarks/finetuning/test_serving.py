"""The comparison of what answers cost: a short run of our own entries, and the figures made of seconds and answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.finetuning import serving
from benchmarks.finetuning.serving import Entry, Example, Measured, ServingConfig
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer


def test_ours_is_measured_question_by_question(
    tmp_path: Path, data: Path, make_model: Callable[..., SpanBertForQuestionAnswering], tokenizer: Tokenizer
) -> None:
    """Both precisions, one by one and together, answer all questions, and as `QuestionAnswerer` does."""
    folder = tmp_path / "model"
    save_model(
        folder, make_model(), tokenizer, QATask(QASettings(window=112, stride=16, max_question=60)).model_config()
    )
    config = ServingConfig((folder,), data / "qa_v1.json", questions=4, group=2, seed=3)
    record = serving.run(config)
    rows = record["models"]["model"]
    assert [row["questions"] for row in rows] == [4] * len(rows)
    assert {(row["precision"], row["batch"]) for row in rows} >= {("fp32", 1), ("fp32", 0), ("bf16", 1), ("bf16", 0)}
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows)
    answerer = QuestionAnswerer.load(folder, precision=record["auto"])
    examples = serving.draw(config.file, 4, 3)
    answers = [answerer.answer(one.question, one.context)[0].text for one in examples]
    (expected,) = serving.rows_of({rows_entry(rows[-1]): Measured("", {}, [1.0, 1.0], answers)}, examples, 2)
    assert rows[-1]["library"] == "QuestionAnswerer" and rows[-1]["f1"] == pytest.approx(expected["f1"])
    assert "| spanbert.pipeline, fp32, in one call |" in serving.table(record)
    json.dumps(record)


def rows_entry(row: dict) -> Entry:
    return Entry(row["library"], row["precision"], row["batch"], row["ours"])


def test_ratios_are_of_the_same_group() -> None:
    """The second group is ten times as dear for all: the rates are medians, the ratio stays that of each group."""
    examples = [Example("?", "the text", ("text",))] * 5
    slow = Entry("transformers", "fp32", 1)
    assert slow.label == serving.REFERENCE
    fast = Entry("spanbert.pipeline", "fp32", 0, True)
    rows = serving.rows_of(
        {
            slow: Measured("fp32", {}, [2.0, 20.0, 1.0], ["text"] * 5),
            fast: Measured("fp32", {}, [1.0, 10.0, 0.5], ["the text", "text", "no", "a text", "text here"]),
        },
        examples,
        2,
    )
    assert [row["times_reference"] for row in rows] == [1.0, 2.0]
    assert [row["questions_per_second"] for row in rows] == [1.0, 2.0]  # of 1, 0.1 and 1, and of 2, 0.2 and 2
    assert [row["exact_match"] for row in rows] == [100, 60] and rows[1]["f1"] == pytest.approx(60 + 20 * 2 / 3)


def test_the_draw_is_of_answerable_questions(data: Path) -> None:
    every = serving.draw(data / "qa_v2.json", 3, 0)
    assert every == serving.draw(data / "qa_v2.json", 3, 0) != serving.draw(data / "qa_v2.json", 3, 1)
    assert all(one.golds and one.golds[0] in one.context for one in every)
    with pytest.raises(UserError, match="lower --questions 10000"):
        serving.draw(data / "qa_v2.json", 10_000, 0)


def test_a_library_that_is_not_there_is_named() -> None:
    """This environment has no Haystack: the last line of what it wrote says so."""
    asked = Entry("haystack", "fp32", 1), Path("model"), [Example("?", "text", ("text",))]
    ended = pytest.raises(UserError, match="haystack, fp32, 1 at a time ended: ModuleNotFoundError")
    with serving.workers(Path(sys.executable)) as started, ended:
        started[False].ask(*asked)
    with pytest.raises(UserError, match="no such file"), serving.workers(Path("no/python")):
        pass
