"""The comparison of ways to choose among passages: what is refitted on a question's own article would be no measurement."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.finetuning.passages import FOLDS, READER_ALONE, Asked, refitted
from finetune.retrieval.combine import DEFAULT_COMBINATION, Features


def asked(article: str, right_by: str, seed: int) -> Asked:
    """A question with five candidates, the right one of which has the highest logit, or the highest BM25."""
    values_CF = np.random.default_rng(seed).normal(size=(5, 3))
    right = int(values_CF[:, {"logit": 0, "retrieval": 2}[right_by]].argmax())
    candidates: list[Any] = [
        SimpleNamespace(text="gold" if number == right else f"wrong {number}", features=Features(*row), null_odds=0.0)
        for number, row in enumerate(values_CF.tolist())
    ]
    return Asked(article, ("gold",), candidates)


def test_weights_are_fitted_on_other_articles_alone() -> None:
    """One article is answered by BM25, the others by the reader: its own questions do not say so."""
    questions = [asked(f"article {n % 10}", "retrieval" if n % 10 == 3 else "logit", n) for n in range(200)]
    weights = refitted(questions)
    folds = {one.article: weight for one, weight in zip(questions, weights, strict=True)}
    assert len(set(folds.values())) == FOLDS
    assert folds["article 3"].logit > folds["article 0"].logit > 0
    assert abs(folds["article 3"].retrieval) < folds["article 0"].retrieval
    changed = [asked("article 3", "logit", n) if one.article == "article 3" else one for n, one in enumerate(questions)]
    assert refitted(changed)[3] == folds["article 3"]


@pytest.mark.parametrize(("combination", "answer"), [(READER_ALONE, "reader's"), (DEFAULT_COMBINATION, "found first")])
def test_the_reader_alone_does_not_look_at_the_search(combination: Any, answer: str) -> None:
    candidates: list[Any] = [
        SimpleNamespace(text="reader's", features=Features(9.0, 1.0, 1.0), null_odds=0.0),
        SimpleNamespace(text="found first", features=Features(7.0, 1.0, 9.0), null_odds=5.0),
    ]
    one = Asked("article", ("gold",), candidates)
    assert one.answer(combination, None) == answer
    assert one.answer(combination, 4.0) == ("" if answer == "found first" else answer)
    assert Asked("article", ("gold",), []).answer(combination, 4.0) == ""
