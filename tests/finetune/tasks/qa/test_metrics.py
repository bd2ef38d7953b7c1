"""Values worked out by hand from the definitions of the official SQuAD 1.1 and 2.0 scripts."""

import math

import pytest

from finetune.tasks.qa.metrics import (
    best_threshold,
    exact_match,
    normalize_answer,
    qa_metrics,
    score_question,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("an apple a day, the end", "apple day end"),
        ("theatre and anthem", "theatre and anthem"),  # articles only as whole words
        ("U.S.", "us"),
        ("rock-a-bye", "rockabye"),  # punctuation goes before articles, so this "a" is no word
        ("“quoted”", "“quoted”"),  # only ASCII punctuation is removed
        ("the", ""),
        ("ÉCOLE", "école"),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_exact_match_ignores_case_articles_and_punctuation() -> None:
    assert exact_match("The Cat.", "cat") == 1.0
    assert exact_match("cats", "cat") == 0.0


@pytest.mark.parametrize("version_2", [False, True])
def test_f1_counts_words_with_multiplicity(version_2: bool) -> None:
    # predicted: new new york; gold: new york city. Shared: new (once), york. P = 2/3, R = 2/3.
    assert token_f1("new new york", "the New York City", version_2=version_2) == pytest.approx(2 / 3)
    # predicted: new new york; gold: new new city. Shared: new (twice). P = 2/3, R = 2/3.
    assert token_f1("new new york", "New New City", version_2=version_2) == pytest.approx(2 / 3)
    # predicted: cat sat; gold: cat sat on mat. P = 1, R = 1/2.
    assert token_f1("The cat sat", "a cat sat on the mat", version_2=version_2) == pytest.approx(2 / 3)
    assert token_f1("dog", "cat", version_2=version_2) == 0.0


def test_f1_of_empty_answers_differs_between_the_scripts() -> None:
    assert token_f1("the", "an", version_2=False) == 0.0
    assert token_f1("the", "an", version_2=True) == 1.0
    assert token_f1("", "cat", version_2=True) == 0.0
    assert token_f1("", "", version_2=True) == 1.0


def test_a_question_scores_its_best_gold_answer_separately_for_each_metric() -> None:
    # exact with the third gold; F1 with it too
    assert score_question("Byron", ["Lord George Byron", "Lord Byron", "byron"], version_2=False) == (1.0, 1.0)
    # no exact match; the best F1 is with the second: P = 1/2, R = 1
    exact, f1 = score_question("old Byron", ["Lord George Byron", "byron"], version_2=False)
    assert (exact, f1) == (0.0, pytest.approx(2 / 3))


def test_version_2_drops_golds_that_normalise_to_nothing() -> None:
    assert score_question("the", ["the", "cat"], version_2=False) == (1.0, 0.0)
    assert score_question("the", ["the", "cat"], version_2=True) == (0.0, 0.0)
    assert score_question("", ["the"], version_2=True) == (1.0, 1.0)


def test_version_1_metrics_average_over_all_questions_and_missing_ones_score_0() -> None:
    golds = {"a": ["cat"], "b": ["black dog"], "c": ["bird"]}
    metrics = qa_metrics(golds, {"a": "The cat", "b": "dog", "stranger": "x"}, version_2=False)
    assert metrics["exact"] == pytest.approx(100 / 3)
    assert metrics["f1"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert (metrics["total"], metrics["missing"]) == (3, 1)
    assert not any(name.startswith(("HasAns", "NoAns", "best")) for name in metrics)


def test_version_2_splits_by_answerability() -> None:
    golds = {"a": ["black cat"], "b": ["dog"], "n1": [], "n2": [], "n3": []}
    predictions = {"a": "cat", "b": "", "n1": "", "n2": "something", "n3": ""}
    metrics = qa_metrics(golds, predictions, version_2=True)
    assert metrics["HasAns_exact"] == 0.0
    assert metrics["HasAns_f1"] == pytest.approx(100 * (2 / 3) / 2)
    assert metrics["NoAns_exact"] == metrics["NoAns_f1"] == pytest.approx(200 / 3)
    assert (metrics["HasAns_total"], metrics["NoAns_total"], metrics["total"]) == (2, 3, 5)
    assert metrics["f1"] == pytest.approx(100 * (2 / 3 + 2) / 5)


def test_best_threshold_on_a_case_worked_by_hand() -> None:
    # in order of odds:   −2: right (+1)   −1: unanswerable (−1)   0: 0.75   1: 0.5   2: unanswerable (−1)
    # running sum from 2 (both unanswerable ones unanswered):  3, 2, 2.75, 3.25, 2.25: best after odds 1
    value, threshold = best_threshold(
        [True, False, True, True, False], [1.0, 0.0, 0.75, 0.5, 0.0], [True] * 5, [-2.0, -1.0, 0.0, 1.0, 2.0]
    )
    assert value == pytest.approx(3.25 / 5)
    assert threshold == 1.0


def test_best_threshold_does_not_depend_on_the_order_of_questions() -> None:
    rows = [(True, 1.0, True, -2.0), (False, 0.0, True, -1.0), (True, 0.75, True, 0.0), (True, 0.5, True, 1.0)]
    forward, backward = (best_threshold(*zip(*order, strict=True)) for order in (rows, rows[::-1]))
    assert forward == backward


def test_best_threshold_when_answering_nothing_is_best_answers_nothing() -> None:
    """The official script says τ = 0 here, which would answer both questions."""
    value, threshold = best_threshold([False, False], [0.0, 0.0], [True, True], [-5.0, -3.0])
    assert value == 1.0
    assert threshold < -5.0
    assert math.isfinite(threshold)


def test_best_threshold_cannot_part_questions_of_equal_odds() -> None:
    """Between equals there is no threshold: the script's best there, 1 + 1, is a score that no τ gives."""
    value, threshold = best_threshold([True, False], [1.0, 0.0], [True, True], [0.5, 0.5])
    assert value == 0.5
    assert threshold < 0.5


def test_the_threshold_found_reproduces_the_best_f1() -> None:
    golds = {str(i): ["cat"] if i % 3 else [] for i in range(30)}
    spans = {key: ("cat", "black cat", "dog")[int(key) % 4 % 3] for key in golds}
    odds = {key: ((int(key) * 7) % 30 - 15) / 4 for key in golds}
    found = qa_metrics(golds, spans, version_2=True, null_odds=odds, best_spans=spans)
    for name in ("exact", "f1"):
        threshold = found[f"best_{name}_threshold"]
        applied = {key: "" if odds[key] > threshold else text for key, text in spans.items()}
        assert qa_metrics(golds, applied, version_2=True)[name] == pytest.approx(found[f"best_{name}"])
        for other in [*odds.values(), -99.0]:
            tried = {key: "" if odds[key] > other else text for key, text in spans.items()}
            assert qa_metrics(golds, tried, version_2=True)[name] <= found[f"best_{name}"] + 1e-9
