"""An encyclopedia of four articles: which questions are asked, what is found, and that one reading serves every setting."""

import dataclasses
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.finetuning import open_domain
from benchmarks.finetuning.encyclopedia import match_questions, read_articles, read_documents, write_documents
from benchmarks.finetuning.open_domain import OpenDomainConfig
from benchmarks.finetuning.open_domain_scores import (
    READER_ALONE,
    Found,
    Kept,
    Read,
    answer_rows,
    best_answer,
    confidence_rows,
    found_by,
    mean_and_error,
    recall_rows,
)
from finetune.retrieval.answer_documents import DocumentAnswerer
from finetune.retrieval.combine import Combination
from finetune.retrieval.confidence import Calibration, Evidence, HeldOut
from finetune.retrieval.documents import Document
from finetune.retrieval.index import Index
from finetune.retrieval.logistic import Logistic
from finetune.retrieval.reliability import Bin
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

FILLER = (
    "They were very much the same from here to there. " * 9
)  # 90 terms: a passage of its own with what stands before
PLACES = {"Foxes": "Lisbon", "Ash (tree)": "Oslo", "Hens": "Rome"}


def paragraph(title: str, number: int) -> str:
    return f"The {title} number {number} was in {PLACES[title]} with {number + 3} others. {FILLER}".strip()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The article "Hens" has nothing of the paragraphs that the questions are about."""
    articles = [
        "\n".join([title, "Names.", *(paragraph(title, number) for number in range(3))])
        for title in ("Foxes", "Ash (tree)")
    ]
    articles.append("Hens\nA list of hens.\nIt is short.")
    articles.append("Lisbon\nOthers went to Lisbon with a fox, and it was not far from there.")
    file = tmp_path / "corpus.txt.xz"
    file.write_bytes(lzma.compress("".join(f"{article}\n\n" for article in articles).encode()))
    return file


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    """Three paragraphs of each article with a question each; "Voles" are not in the corpus."""
    data = []
    for name, title in (("Foxes", "Foxes"), ("Ash_(tree)", "Ash (tree)"), ("Hens", "Hens"), ("Voles", "Hens")):
        paragraphs = []
        for number in range(3):
            context = paragraph(title, number)
            answer = {"text": PLACES[title], "answer_start": context.index(PLACES[title])}
            question = {
                "id": f"{name}-{number}",
                "question": f"Where was {title} number {number}?",
                "answers": [answer],
            }
            paragraphs.append({"context": context, "qas": [question]})
        data.append({"title": name, "paragraphs": paragraphs})
    file = tmp_path / "questions.json"
    file.write_text(json.dumps({"version": "1.1", "data": data}))
    return file


@pytest.fixture
def config(
    corpus: Path,
    squad: Path,
    tmp_path: Path,
    make_model: Callable[..., SpanBertForQuestionAnswering],
    tokenizer: Tokenizer,
) -> OpenDomainConfig:
    settings = QASettings(window=128, stride=32, max_question=24)
    save_model(tmp_path / "model", make_model(), tokenizer, QATask(settings).model_config())
    return OpenDomainConfig(corpus, squad, tmp_path / "out", tmp_path / "model", passages=(1, 3), read=4)


def test_a_corpus_becomes_documents(corpus: Path, tmp_path: Path) -> None:
    assert write_documents(corpus, tmp_path / "documents.jsonl") == 4
    documents = list(read_documents(tmp_path / "documents.jsonl"))
    assert [one.title for one in documents] == ["Foxes", "Ash (tree)", "Hens", "Lisbon"]
    assert documents[0].text.splitlines() == ["Names.", *(paragraph("Foxes", number) for number in range(3))]


def test_a_title_that_comes_twice_gets_a_number_and_one_without_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("\n\nA\nOne.\n\n\nA\nTwo.\nThree.")
    assert [(one.id, one.title, one.text) for one in read_articles(file)] == [
        ("A", "A", "One."),
        ("A (2)", "A", "Two.\nThree."),
    ]
    file.write_text("A\nOne.\n\nB\n\n")
    with pytest.raises(UserError, match="'B' has no text"):
        list(read_articles(file))
    broken = tmp_path / "corpus.txt.xz"
    broken.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"corpus\.txt\.xz: cannot be read"):
        list(read_articles(broken))


def test_only_questions_whose_paragraphs_stand_in_the_article_are_asked(corpus: Path, squad: Path) -> None:
    asked, matches = match_questions(squad, read_articles(corpus))
    assert {one.article for one in asked} == {"Foxes", "Ash (tree)"} and len(asked) == 6
    assert all(one.answer_stands and one.paragraph for one in asked)
    assert [(one.title, one.standing, one.kept) for one in matches] == [
        ("Foxes", 1.0, True),
        ("Ash (tree)", 1.0, True),
        ("Hens", 0.0, False),
        ("Voles", None, False),
    ]


def test_a_paragraph_that_was_rewritten_does_not_count(corpus: Path, squad: Path, tmp_path: Path) -> None:
    content = json.loads(squad.read_text())
    for place, one in enumerate(content["data"][0]["paragraphs"]):
        if place:  # one of three stands: less than half
            one["context"] = f"Written anew, other words stand in {PLACES['Foxes']} now. " * (place + 1)
    squad.write_text(json.dumps(content))
    _, matches = match_questions(squad, read_articles(corpus))
    assert matches[0].standing == pytest.approx(1 / 3) and not matches[0].kept


def test_where_answer_and_article_are_found() -> None:
    index = Index.of(
        [
            Document("a", "A", "Party of the partridge, where a party was."),
            Document("b", "B", "The arts! Where a painter had the ART and a party."),
            Document("c", "C", "Art."),
        ]
    )
    (asked, *_) = [
        dataclasses.replace(ASKED, text="where was a party", answers=("art",), article=title) for title in "B"
    ]
    ranks = [hit.document for hit in index.search(asked.text, 3)]
    assert ranks == [0, 1]
    assert found_by(index, asked, 3) == Found("q", 2, 2, 2)  # "party" holds "art", and is not it
    assert found_by(index, dataclasses.replace(asked, article="A"), 3) == Found("q", 2, 1, None)
    assert found_by(index, dataclasses.replace(asked, article="C"), 3) == Found("q", 2, None, None)
    assert found_by(index, asked, 1) == Found("q", None, None, None)
    assert found_by(index, dataclasses.replace(asked, answers=("the",)), 3).answer is None  # nothing is left of it


def test_recall_counts_first_ranks() -> None:
    asked = {name: dataclasses.replace(ASKED, id=name, article=name) for name in "123"}
    rows = recall_rows(asked, [Found("1", 1, 4, 5), Found("2", 5, None, None), Found("3", None, 1, None)], (1, 5))
    assert [[round(3 * row[name]["mean"]) for name in ("answer", "article", "both")] for row in rows] == [
        [1, 1, 0],
        [2, 2, 1],
    ]
    assert rows[0]["answer"]["error"] == pytest.approx((1 / 3 * 2 / 3 / 2) ** 0.5)


def test_the_standard_error_takes_an_article_for_one_case() -> None:
    """Ten questions of each article that are all alike say no more than one of each."""
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    one = mean_and_error(values, list("abcde"))
    assert one["error"] == pytest.approx(np.std(values, ddof=1) / 5**0.5)
    assert mean_and_error(np.repeat(values, 10).tolist(), np.repeat(list("abcde"), 10).tolist()) == pytest.approx(one)
    assert mean_and_error([1.0, 0.0], ["a", "a"]) == {"mean": 0.5, "error": 0.0}


ASKED = open_domain.Asked("q", "Who?", ("the Fox", "fox"), "A fox.", "A", True)


def kept(text: str, rank: int, logit: float, retrieval: float, null_odds: float = -9.0) -> Kept:
    return Kept(text, rank, "d", 0, logit, -null_odds, retrieval, null_odds)


def test_answers_are_compared_among_the_first_passages_alone() -> None:
    read = Read(
        "q", [kept("hen", 1, 2, 5), kept("vole", 2, 3, 1), kept("Fox!", 3, 9, 0, 4.0)], [kept("a fox", 1, 1, 0)], 1.0
    )
    other = Read("q", [], [kept("fox", 1, 1, 0, 2.0)], 1.0)
    ways = {"reader": READER_ALONE, "search": Combination(0.0, 0.0, 1.0)}
    rows = answer_rows({"q": ASKED}, [read, other], (1, 3), ways, 0.5)
    found = {
        (row["way"], row["passages"], mode): row[mode]["exact"]["mean"] for row in rows for mode in row if mode in MODES
    }
    assert found == {
        ("the right paragraph", 1, "forced"): 1.0,
        ("the right paragraph", 1, "declining"): 0.5,
        ("reader", 1, "forced"): 0.0,
        ("reader", 1, "declining"): 0.0,
        ("search", 1, "forced"): 0.0,
        ("search", 1, "declining"): 0.0,
        ("best", 1, "forced"): 0.0,
        ("reader", 3, "forced"): 0.5,
        ("reader", 3, "declining"): 0.0,  # its null odds are above the threshold
        ("search", 3, "forced"): 0.0,
        ("search", 3, "declining"): 0.0,
        ("best", 3, "forced"): 0.5,
    }


MODES = ("forced", "declining")


def test_confidence_is_compared_with_how_often_answers_are_right() -> None:
    """By a calibration that knows nothing but the reader's logit; what is declined takes no part."""
    size = len(Evidence().vector())
    by_logit = Logistic(0.0, tuple(float(n == 3) for n in range(size)), (0.0,) * size, (1.0,) * size)
    held_out = HeldOut("file", "", 4, "all", "2026-01-01")
    calibration = Calibration(READER_ALONE, by_logit, by_logit, (Bin(0.0, 1.0, 0.5, 0.5, 4),), 3, held_out, {})
    reads = [
        Read("q", [kept("fox", 1, 2, 5)], [], 1.0),
        Read("q", [kept("hen", 1, -1, 5), kept("fox", 2, 3, 5)], [], 1.0),
        Read("q", [kept("vole", 1, -2, 5)], [], 1.0),
        Read("q", [kept("vole", 1, 5, 5, 4.0)], [], 1.0),  # declined
        Read("q", [], [], 1.0),
    ]
    one, two = confidence_rows({"q": ASKED}, reads, (1, 2), {"own": calibration}, 0.5)
    assert (one["answered"], one["right"], one["auroc"]) == (3, pytest.approx(1 / 3), 1.0)
    assert one["confidence"] == pytest.approx(np.mean([1 / (1 + np.exp(-x)) for x in (2, -1, -2)]))
    assert (two["answered"], two["right"]) == (3, pytest.approx(2 / 3))


def test_one_reading_serves_every_number_of_passages(config: OpenDomainConfig) -> None:
    """As if each had been asked for alone."""
    results = open_domain.run(config)
    assert results["questions"]["asked"] == 6 and results["index"]["documents"] == 4
    assert results["recall"][-1]["questions"] == 6 and results["read"] == 4
    assert results["recall"][-1]["both"]["mean"] == 1.0
    assert config.model is not None
    answerer = DocumentAnswerer(QuestionAnswerer.load(config.model), Index.open(config.output / "index"))
    asked = {one["id"]: one for one in json.loads((config.output / "questions.json").read_text())["asked"]}
    reads = [Read.from_json(json.loads(line)) for line in (config.output / "readings.jsonl").read_text().splitlines()]
    assert len(reads) == 4 and {one.rank for one in reads[0].kept} == {1, 2, 3}
    for passages in config.passages:
        for read in reads:
            alone = answerer.answer([asked[read.id]["text"]], passages=passages)[0].answers[0]
            first = [one for one in read.kept if one.rank <= passages]
            assert best_answer(first, answerer.combination, answerer.answerer.settings.threshold) == alone.text
    text = (config.output / "results.md").read_text()
    assert "6 questions of 2 of 4 articles" in text and "| 3 | default weights |" in text


def test_a_stopped_command_goes_on_where_it_was(config: OpenDomainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_domain.run(config)
    readings = config.output / "readings.jsonl"
    lines = readings.read_text().splitlines(keepends=True)
    readings.write_text("".join(lines[:2]) + lines[2][:50])  # stopped while it wrote the third
    read: list[str] = []
    original = DocumentAnswerer.read
    monkeypatch.setattr(
        DocumentAnswerer, "read", lambda self, texts, passages: read.extend(texts) or original(self, texts, passages)
    )
    monkeypatch.setattr(open_domain, "run_costs", None)
    monkeypatch.setattr(open_domain, "found_by", None)
    again = open_domain.run(config)
    assert len(read) == 2
    assert [again[name] for name in ("answers", "recall", "index")] == [
        whole[name] for name in ("answers", "recall", "index")
    ]


def test_results_of_another_draw_are_not_mixed(config: OpenDomainConfig) -> None:
    open_domain.run(config)
    with pytest.raises(UserError, match="holds results of another seed; name a new --output"):
        open_domain.run(dataclasses.replace(config, seed=1))
    with pytest.raises(UserError, match="another passages"):
        open_domain.run(dataclasses.replace(config, passages=(1, 4)))
