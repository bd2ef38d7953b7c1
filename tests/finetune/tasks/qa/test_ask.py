"""`spanbert ask` and the Python class behind it."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.predict import Machine
from finetune.tasks.qa.answerer import Answer, QuestionAnswerer, ranked_answers
from finetune.tasks.qa.ask import SENTENCE_REACH, AskConfig, highlighted, run_ask, sentence_around
from finetune.tasks.qa.decode import Candidate, Decoded
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.checkpoint.model_folder import save_model
from spanbert.cli import main
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.terminal import colour
from spanbert.tokenizer.wordpiece import Tokenizer

MakeModel = Callable[..., SpanBertForQuestionAnswering]
SETTINGS = QASettings(window=64, stride=16, max_question=24)
CONTEXT = "Ada wrote notes. Luigi described the engine in French! 北京是首都。它位于华北平原。 The end"


class Stub(SpanBertForQuestionAnswering):
    """Not a network: scores `token` high wherever it stands in the second segment, as start and as end."""

    token = -1

    def forward(self, batch):
        hit_T = ((batch.input_ids_T == self.token) & (batch.token_type_ids_T == 1)).float() * 10
        return hit_T, hit_T.clone()


@pytest.fixture
def answerer(make_model: MakeModel, tokenizer: Tokenizer) -> QuestionAnswerer:
    return QuestionAnswerer(make_model(), tokenizer, SETTINGS, Machine(torch.device("cpu"), "fp32"))


@pytest.fixture
def folder(tmp_path: Path, make_model: MakeModel, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "model", make_model(), tokenizer, QATask(SETTINGS).model_config())
    (tmp_path / "context.txt").write_text(CONTEXT, encoding="utf-8")
    return tmp_path / "model"


def test_answers_are_substrings_and_sorted(answerer: QuestionAnswerer) -> None:
    answers = answerer.answer("Who described the engine?", CONTEXT, n_best=7)
    assert len(answers) == 7
    assert all(CONTEXT[a.start : a.end] == a.text and not a.no_answer for a in answers)
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)


def test_several_questions_get_the_answers_each_gets_alone(answerer: QuestionAnswerer) -> None:
    questions = ["Who?", "Where is the end?", "Who?"]
    together = answerer.answers(questions, CONTEXT, n_best=2)
    for question, answers in zip(questions, together, strict=True):
        alone = answerer.answer(question, CONTEXT, n_best=2)
        assert [a.text for a in answers] == [a.text for a in alone]


@pytest.mark.parametrize("place", [0, 250, 777, 1499])
def test_an_answer_is_found_anywhere_in_a_long_document(
    make_model: MakeModel, tokenizer: Tokenizer, place: int
) -> None:
    words = ["from"] * 1500
    words[place] = "that"
    context = "  ".join(words)
    model = Stub(make_model().config)
    model.token = tokenizer.id("that")
    assert model.token is not None
    answerer = QuestionAnswerer(model, tokenizer, SETTINGS, Machine(torch.device("cpu"), "fp32"))
    answer = answerer.answer("that ?", context)[0]
    assert (answer.text, answer.start, answer.end) == ("that", 6 * place, 6 * place + 4)


def candidates(*scores: float) -> tuple[Candidate, ...]:
    return tuple(Candidate(f"c{i}", i, i + 2, score, 0.2) for i, score in enumerate(scores))


def test_no_answer_leads_exactly_when_the_threshold_says_so() -> None:
    decoded = Decoded("q", candidates(5.0, 4.0, 1.0), null_score=4.5)  # null odds −0.5
    assert [a.text for a in ranked_answers(decoded, None)] == ["c0", "c1", "c2"]
    assert [a.text for a in ranked_answers(decoded, -0.5)] == ["c0", "", "c1", "c2"]
    assert [a.text for a in ranked_answers(decoded, -0.6)] == ["", "c0", "c1", "c2"]
    likely = Decoded("q", candidates(5.0, 4.0), null_score=9.0)
    assert [a.text for a in ranked_answers(likely, 7.0)] == ["c0", "", "c1"]  # the threshold, not the score, decides
    nothing = ranked_answers(likely, 3.0)[0]
    assert nothing.no_answer
    assert (nothing.score, nothing.probability) == (9.0, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("notes", "Ada wrote notes."),
        ("engine", "Luigi described the engine in French!"),
        ("首都", "北京是首都。"),
        ("华北平原", "它位于华北平原。"),
        ("end", "The end"),
        ("notes. Luigi", "Ada wrote notes. Luigi described the engine in French!"),
        ("notes.", "Ada wrote notes."),
    ],
)
def test_the_sentence_around_an_answer(answer: str, sentence: str) -> None:
    start = CONTEXT.index(answer)
    low, high = sentence_around(CONTEXT, start, start + len(answer))
    assert CONTEXT[low:high] == sentence


def test_decimal_points_and_line_ends() -> None:
    text = "Heading\nIt costs 3.50 dollars. Next."
    start = text.index("3.50")
    assert text[slice(*sentence_around(text, start, start + 4))] == "It costs 3.50 dollars."


def test_a_sentence_without_end_is_shown_in_part_and_says_so() -> None:
    text = "word " * 500
    answer = Answer("word", 1000, 1004, 0.0, 1.0)
    low, high = sentence_around(text, answer.start, answer.end)
    assert low >= answer.start - SENTENCE_REACH
    assert high <= answer.end + SENTENCE_REACH
    shown = highlighted(text, answer, colour=False)
    assert shown.startswith("… ")
    assert shown.endswith(" …")
    assert "»word«" in shown


def test_colour_marks_the_answer() -> None:
    answer = Answer("notes", CONTEXT.index("notes"), CONTEXT.index("notes") + 5, 0.0, 1.0)
    assert highlighted(CONTEXT, answer, colour=False) == "Ada wrote »notes«."
    assert highlighted(CONTEXT, answer, colour=True) == f"Ada wrote {colour('1;32')}notes{colour('0')}."


def test_the_command_prints_answer_sentence_and_runners_up(folder: Path, capsys: pytest.CaptureFixture) -> None:
    config = AskConfig(
        str(folder), ("Who?", "Where?"), context=(folder.parent / "context.txt",), n_best=3, device="cpu"
    )
    run_ask(config)
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[5]] == ["Who?", "Where?"]
    best = QuestionAnswerer.load(folder, device="cpu").answer("Who?", CONTEXT)[0]
    assert f"{best.text}   (probability {best.probability:.2f}, score {best.score:.2f})" in lines[1]
    assert f"»{best.text}«" in lines[2]

    run_ask(replace(config, json=True))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["question"], second["question"]) == ("Who?", "Where?")
    assert first["answer"] == first["answers"][0]["text"] == best.text
    assert len(first["answers"]) == 3
    for answer in first["answers"]:
        assert CONTEXT[answer["start"] : answer["end"]] == answer["text"]
        assert answer["text"] in answer["sentence"]


def test_no_answer_is_said(
    tmp_path: Path, make_model: MakeModel, tokenizer: Tokenizer, capsys: pytest.CaptureFixture
) -> None:
    settings = replace(SETTINGS, null_allowed=True, null_threshold=-1e9)
    save_model(tmp_path / "model", make_model(), tokenizer, QATask(settings).model_config())
    (tmp_path / "context.txt").write_text(CONTEXT, encoding="utf-8")
    config = AskConfig(str(tmp_path / "model"), ("Who?",), context=(tmp_path / "context.txt",), device="cpu")
    run_ask(config)
    assert "no answer in this text" in capsys.readouterr().out
    run_ask(replace(config, json=True))
    entry = json.loads(capsys.readouterr().out)
    assert entry["answer"] == ""
    assert entry["answers"][1]["text"]


def test_questions_one_a_line_from_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Who?\n\nWhere?\n"))
    run_ask(AskConfig(str(folder), context=(folder.parent / "context.txt",), json=True, device="cpu"))
    questions = [json.loads(line)["question"] for line in capsys.readouterr().out.splitlines()]
    assert questions == ["Who?", "Where?"]


def test_the_context_from_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(CONTEXT.encode())))
    run_ask(AskConfig(str(folder), ("Who?",), context=(Path("-"),), json=True, device="cpu"))
    answer = json.loads(capsys.readouterr().out)["answers"][0]
    assert CONTEXT[answer["start"] : answer["end"]] == answer["text"]


@pytest.mark.parametrize(
    ("model", "questions", "context", "message"),
    [
        ("MODEL", ("Who?",), None, "--context FILE"),
        ("MODEL", ("Who?",), "absent.txt", "absent.txt: no such file"),
        ("MODEL", ("Who?",), "blank.txt", "no text to answer from"),
        ("MODEL", ("Who?",), "latin1.txt", "not UTF-8"),
        ("MODEL", ("\u200b",), "context.txt", "question holds no text"),
        ("MODEL", ("who \udcff",), "context.txt", "not valid text: character 4"),
        ("MODEL", ("who " * 200,), "context.txt", "longer than the 24 tokens"),
        ("MODEL", (), "context.txt", "no question"),
        ("runs/absent", ("Who?",), "context.txt", "runs/absent: no such model folder"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path,
    model: str,
    questions: tuple[str, ...],
    context: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder.parent / "blank.txt").write_text(" \n")
    (folder.parent / "latin1.txt").write_bytes("Zürich".encode("latin-1"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    config = AskConfig(
        str(folder) if model == "MODEL" else model,
        questions,
        context=() if context is None else (folder.parent / context,),
        device="cpu",
    )
    with pytest.raises(UserError, match=message):
        run_ask(config)


def test_the_command_line_reaches_all_three_commands(folder: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    run = folder.parent / "run"
    training = f"--init {folder} --train {data}/qa_v1.json --output {run} --epochs 1 --window 64 --stride 16"
    assert main(f"finetune qa {training} --max-question 24 --device cpu".split()) == 0
    assert main(f"evaluate qa {run} {data}/qa_v1.json --device cpu --limit 2".split()) == 0
    assert "EM" in capsys.readouterr().out
    context = str(folder.parent / "context.txt")
    for order in ([str(run), "--context", context, "Who was it?"], [str(run), "Who was it?", "--context", context]):
        assert main(["ask", *order, "--device", "cpu"]) == 0
        assert capsys.readouterr().out.startswith("Who was it?\n")
    assert main(["ask", "no/model", "Who?", "--context", context]) == 2
    assert capsys.readouterr().err == "error: no/model: no such model folder.\n"
