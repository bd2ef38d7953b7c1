"""Answers over passages: what is read, how scores are compared, equal answers merged, and places in the documents."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.predict import Machine
from finetune.retrieval.answer_documents import (
    Candidate,
    DocumentAnswer,
    DocumentAnswerer,
    Place,
    ranked,
    surer_than,
    words_found,
)
from finetune.retrieval.calibrate import Asked, CalibrateConfig, cross_validate, fit, run_calibrate
from finetune.retrieval.combine import Combination, Features
from finetune.retrieval.confidence import Evidence, load_calibration
from finetune.retrieval.documents import Document, Section
from finetune.retrieval.index import Index
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.ask import AskConfig, run_ask
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

SETTINGS = QASettings(window=128, stride=32, max_question=24)
FILLER = "They were very much the same from here to there. " * 14  # 140 terms


class Stub(SpanBertForQuestionAnswering):
    """Not a network: a token of `heights` scores that high in the text, as start and as end; `[CLS]` as `null`."""

    heights: dict[int, float] = {}
    null = -5.0

    def forward(self, batch):
        hit_T = torch.zeros(len(batch.input_ids_T))
        for token, height in self.heights.items():
            hit_T += ((batch.input_ids_T == token) & (batch.token_type_ids_T == 1)).float() * height
        hit_T[batch.cu_seqlens[:-1].long()] = self.null
        return hit_T, hit_T.clone()


@pytest.fixture
def answerer(make_model: Callable, tokenizer: Tokenizer) -> Callable[..., QuestionAnswerer]:
    """answerer({word: height}, null=…, **settings)"""

    def make(heights: dict[str, float], null: float = -5.0, **settings: object) -> QuestionAnswerer:
        model = Stub(make_model().config)
        numbers = {tokenizer.id(word): height for word, height in heights.items()}
        assert None not in numbers
        model.heights, model.null = numbers, null
        chosen = QASettings(**{**SETTINGS.__dict__, **settings})
        return QuestionAnswerer(model, tokenizer, chosen, Machine(torch.device("cpu"), "fp32"))

    return make


def document(number: int, sentence: str) -> Document:
    text = f"{FILLER}\n{sentence} {FILLER}\nThe end."
    return Document(f"d{number}", f"Title {number}", text, (Section(0, "page 1"), Section(len(FILLER), "page 2")))


def test_the_search_outweighs_a_reader_that_is_sure_of_the_wrong_passage(answerer: Callable) -> None:
    """The reader likes "that" more wherever it stands; only the other passage is about the question."""
    documents = [document(0, "This was from Lisbon, with two words."), document(1, "All that is from another.")]
    found = DocumentAnswerer(answerer({"that": 5.5, "with": 5.0}), Index.of(documents)).answer(["Lisbon from?"])[0]
    assert found.passages > found.passages_read == 5
    best = found.answers[0]
    assert best.text == "with" and best.confidence is None
    (place,) = best.places
    text = documents[0].text
    assert (place.document, place.title, place.section) == ("d0", "Title 0", "page 2")
    assert text[place.start : place.end] == place.match == "with"
    assert text[place.start - len(place.before) :].startswith(place.before + place.match + place.after)
    assert place.sentence == "This was from Lisbon, with two words."
    assert text[place.sentence_start :].startswith(place.sentence)
    assert place.passage_rank == 1 and place.reader_score == 10.0 and place.retrieval_score > 0
    assert [one.text for one in found.answers][:2] == ["with", "that"]
    assert found.words == ("Lisbon", "from")


def test_several_questions_get_the_answers_that_each_gets_alone(answerer: Callable) -> None:
    documents = [document(n, f"This was {word} with that.") for n, word in enumerate(("Lisbon", "Porto", "Faro"))]
    asked = DocumentAnswerer(answerer({"that": 6.0, "with": 5.0}), Index.of(documents))
    questions = ["Porto?", "Where is Faro?", "Porto?", "nothing"]
    together = asked.answer(questions, passages=2)
    for question, found in zip(questions, together, strict=True):
        alone = asked.answer([question], passages=2)[0]
        assert (found.answers, found.words, found.passages_read) == (alone.answers, alone.words, alone.passages_read)
    assert together[0].answers[0].places[0].document == "d1"


def test_equal_answers_are_one_with_all_their_places(answerer: Callable) -> None:
    documents = [document(n, "Porto was with us.") for n in range(3)]
    found = DocumentAnswerer(answerer({"with": 5.0}), Index.of(documents)).answer(["Porto?"], passages=9)[0]
    best = found.answers[0]
    assert best.text == "with" and {place.document for place in best.places} == {"d0", "d1", "d2"}
    keys = [(place.document, place.start) for place in best.places]
    assert len(set(keys)) == len(keys)


def place(start: int, end: int, text: str, document: str = "d") -> Place:
    return Place(document, "t", None, start, end, "", text, "", text, 1, 1.0, 1.0, start)


def candidate(text: str, logit: float, retrieval: float, start: int = 0, null_odds: float = -9.0) -> Candidate:
    return Candidate(text, place(start, start + len(text), text), Features(logit, 0.0, retrieval), null_odds)


ONLY_LOGIT = Combination(1.0, 0.0, 0.0)


def test_ranking_merges_by_the_metric_and_measures_the_evidence() -> None:
    candidates = [candidate("The key", 3.0, 1.0), candidate("key", 5.0, 2.0, 4), candidate("shed", 4.0, 0.0, 50)]
    first, second = ranked(candidates, ONLY_LOGIT, None)
    assert (first.text, first.score, len(first.candidates)) == ("key", 5.0, 2)
    assert first.evidence == Evidence(pytest.approx(1.0), 1.0, 1.0, 5.0, -9.0, 2.0, pytest.approx(np.log(2)))
    assert second.evidence == Evidence(pytest.approx(-1.0), -1.0, 0.0, 4.0, -9.0, 0.0, 0.0)
    assert ranked(candidates, Combination(0.0, 0.0, 1.0), None)[0].score == 2.0


def test_no_answer_comes_first_when_the_best_ones_passage_says_so() -> None:
    candidates = [candidate("key", 5.0, 0.0, null_odds=-1.0), candidate("shed", 4.0, 0.0, 9, null_odds=8.0)]
    assert [one.text for one in ranked(candidates, ONLY_LOGIT, None)] == ["key", "shed"]
    assert [one.text for one in ranked(candidates, ONLY_LOGIT, 0.0)] == ["key", "shed"]
    nothing, key, _ = ranked(candidates, ONLY_LOGIT, -3.0)
    assert (nothing.text, nothing.evidence) == ("", Evidence(first=1.0, declined=1.0, declined_odds=2.0))
    assert (key.text, key.evidence.first) == ("key", 0.0)


def test_a_model_that_may_decline_does(answerer: Callable) -> None:
    documents = [document(0, "Porto was with us.")]
    sure = answerer({"with": 5.0}, null_allowed=True)
    assert DocumentAnswerer(sure, Index.of(documents)).answer(["Porto?"])[0].answers[0].text == "with"
    unsure = answerer({"with": 5.0}, null=6.0, null_allowed=True)
    found = DocumentAnswerer(unsure, Index.of(documents)).answer(["Porto?"])[0]
    assert found.answers[0] == DocumentAnswer("", pytest.approx(found.answers[1].score), None, ())
    assert not DocumentAnswerer(answerer({"with": 5.0}), Index.of(documents)).can_decline


def test_a_question_that_shares_no_word_reads_a_short_text_and_no_large_one(answerer: Callable) -> None:
    reader = answerer({"with": 5.0})
    short = DocumentAnswerer(reader, Index.of([document(0, "Porto was with us.")])).answer(["Wo?"])[0]
    assert short.answers[0].text == "with" and short.words == ()
    assert short.passages_read == short.passages
    large = DocumentAnswerer(reader, Index.of([document(n, "With us.") for n in range(20)])).answer(["Wo?"])[0]
    assert large.answers == (DocumentAnswer("", 0.0, None, ()),) and large.passages_read == 0
    with pytest.raises(UserError, match="holds no text"):
        DocumentAnswerer(reader, Index.of([document(0, "x")])).answer([" "])


def test_the_words_that_found_something() -> None:
    texts = ["Ein Café am Fluss.", "钥匙挂在门旁。"]
    assert words_found("Which cafe, FLUSS? 钥匙在哪里", texts) == ("cafe", "FLUSS", "钥匙")


@pytest.fixture
def model_folder(tmp_path: Path, make_model: Callable, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "model", make_model(), tokenizer, QATask(SETTINGS).model_config())
    return tmp_path / "model"


def squad(path: Path, articles: int, questions: int) -> Path:
    """Questions about invented articles; every seventh has no answer."""
    data = []
    for article in range(articles):
        paragraphs = []
        for number in range(questions):
            context = f"Thing {article}x{number} was with number {number} of them. {FILLER}"
            answer = {"text": f"number {number}", "answer_start": context.index("number")}
            entry = {"id": f"{article}-{number}", "question": f"What of {article}x{number}?", "answers": [answer]}
            entry["is_impossible"] = number % 7 == 6
            if entry["is_impossible"]:
                entry["answers"] = []
            paragraphs.append({"context": context, "qas": [entry]})
        data.append({"title": f"A_{article}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"data": data}))
    return path


def test_calibrating_writes_what_asking_then_uses(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = squad(tmp_path / "dev.json", articles=6, questions=10)
    run_calibrate(CalibrateConfig(model_folder, file, questions=50, passages=2, plot=tmp_path / "plots", device="cpu"))
    out = capsys.readouterr().out
    assert "50 questions of dev.json over the question's own article, 2 passages read" in out
    assert "over the file's 6 articles together" in out and "calibration error" in out
    assert {one.name for one in (tmp_path / "plots").iterdir()} == {"calibration_text.png", "calibration_documents.png"}
    for search in ("text", "documents"):
        one = load_calibration(model_folder, search)
        assert one is not None and one.held_out.questions == 50 and one.passages == 2
        assert sum(part.questions for part in one.bins) == 50
    (tmp_path / "a.txt").write_text(f"{FILLER}\nThing 1x1 was with number 1 of them. {FILLER}\n{FILLER}")
    run_ask(AskConfig(str(model_folder), ("What of 1x1?",), context=(tmp_path / "a.txt",), device="cpu"))
    out = capsys.readouterr().out
    assert "(sure 0." in out and "of held-out questions this sure, " in out and "read 1 of 6 passages" in out


def test_a_stored_calibration_is_checked_on_other_questions_and_stays(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted_on, others = squad(tmp_path / "a.json", articles=6, questions=10), squad(tmp_path / "b.json", 7, 9)
    options = CalibrateConfig(model_folder, fitted_on, questions=50, passages=2, device="cpu")
    with pytest.raises(UserError, match=r"has no confidence for text to check; fit one first, without --check"):
        run_calibrate(dataclasses.replace(options, check=True))
    run_calibrate(options)
    kept = (model_folder / "calibration.json").read_text()
    with pytest.raises(UserError, match=r"fitted with 2 passages a question: --passages 2"):
        run_calibrate(dataclasses.replace(options, check=True, passages=3))

    capsys.readouterr()
    checking = dataclasses.replace(options, file=others, check=True, plot=tmp_path / "plots")
    run_calibrate(checking)
    said = capsys.readouterr().out
    assert "50 questions of b.json over the question's own article" in said and "would still show" in said
    assert (model_folder / "calibration.json").read_text() == kept and "calibration.json" not in said
    assert {one.name for one in (tmp_path / "plots").iterdir()} == {"calibration_text.png", "calibration_documents.png"}

    # a model that is sure of everything shows it
    content = json.loads(kept)
    for search in ("text", "documents"):
        for name in ("exact", "f1"):
            content[search][name]["bias"] = 50.0
    (model_folder / "calibration.json").write_text(json.dumps(content))
    run_calibrate(dataclasses.replace(checking, plot=None))
    sure = [line for line in capsys.readouterr().out.splitlines() if "exact match:" in line]
    assert len(sure) == 2
    for line in sure:
        right, error = (float(part) for part in re.findall(r"([\d.]+) % right, calibration error ([\d.]+)", line)[0])
        assert error == pytest.approx(1 - right / 100, abs=2e-3)


def test_a_calibration_comes_before_its_pictures(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that could not be drawn threw away what all questions had taught."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("finetune.retrieval.calibrate.draw_reliability", fail)
    file = squad(tmp_path / "dev.json", articles=6, questions=10)
    run_calibrate(CalibrateConfig(model_folder, file, questions=50, passages=2, plot=tmp_path / "plots", device="cpu"))
    said = capsys.readouterr()
    assert load_calibration(model_folder, "text") is not None
    assert said.err.count("No space left on device; the calibration is not affected") == 2
    assert "wrote" in said.out and "calibration_text.png" not in said.out


@pytest.mark.parametrize("place", ["model", "plot"])
def test_a_calibration_that_cannot_be_written_is_refused_first(
    place: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found out after all questions had been asked."""

    def never(*_: object) -> None:
        raise AssertionError("it asks")

    monkeypatch.setattr("finetune.retrieval.calibrate.ask_all", never)
    file = squad(tmp_path / "dev.json", articles=6, questions=10)
    (tmp_path / "plots").touch()
    if place == "model":
        honest = Path.open

        def refuse(path: Path, mode: str = "r", *rest: object) -> object:
            if "w" in mode and path.parent == model_folder:
                raise PermissionError(13, "Permission denied", str(path))
            return honest(path, mode, *rest)  # type: ignore[call-overload]

        monkeypatch.setattr(Path, "open", refuse)
    plot = tmp_path / "plots" if place == "plot" else None
    with pytest.raises(UserError, match="--plot" if plot else "MODEL .*cannot be written"):
        run_calibrate(CalibrateConfig(model_folder, file, questions=50, passages=2, plot=plot, device="cpu"))


def test_a_confidence_that_was_learnt_is_that_of_new_data() -> None:
    """Drawn so that the chance to be right is known: the mean confidence agrees with it, and the order is right."""
    rng = np.random.default_rng(0)
    asked = []
    for number in range(600):
        gap = rng.normal() * 2
        right = rng.random() < 1 / (1 + np.exp(-gap))
        candidates = [candidate("key", 5.0 + gap, 1.0), candidate("shed", 5.0, 1.0, 50)]
        asked.append(Asked(number % 12, candidates, ("key",) if right else ("shed",)))
    fitted = fit(asked, None)
    assert fitted.combination.logit == pytest.approx(1.0, abs=0.25)
    metrics = cross_validate(asked, None).metrics()
    assert metrics["exact_ece"] < 0.06 and 0.6 < metrics["exact_auroc"] < 0.9
    assert metrics["exact_right"] == pytest.approx(0.75, abs=0.08)


def test_the_surer_ones() -> None:
    from finetune.retrieval.answer_documents import DocumentAnswers

    answers = tuple(DocumentAnswer(text, 1.0, sure, ()) for text, sure in (("a", 0.8), ("b", 0.3), ("c", 0.1)))
    found = DocumentAnswers("q", answers, 5, 9, 1.0, ())
    assert [one.text for one in surer_than(found, 0.3).answers] == ["a", "b"]
    assert [one.text for one in surer_than(found, 0.9).answers] == [""]
