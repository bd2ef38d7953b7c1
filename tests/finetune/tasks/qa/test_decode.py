from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from finetune.tasks.qa.decode import (
    Candidate,
    DecodeConfig,
    Decoded,
    best_pairs,
    decode_question,
)
from finetune.tasks.qa.features import TextQuestionSet

Logits = list[np.ndarray]


def random_logits(questions: TextQuestionSet, seed: int) -> Logits:
    draw = np.random.default_rng(seed)
    return [draw.normal(size=(2, length)).astype(np.float32) for length in questions.lengths]


def decode(questions: TextQuestionSet, logits: Logits, null_allowed: bool = False, **options: int) -> list[Decoded]:
    config = DecodeConfig(**options)
    return [
        decode_question(questions, q, logits[first:stop], config, null_allowed=null_allowed)
        for q, (first, stop) in enumerate(pairwise(questions.bounds))
    ]


@pytest.mark.parametrize("case", range(30))
def test_best_pairs_are_the_best_of_all_pairs(case: int) -> None:
    draw = np.random.default_rng(case)
    starts = int(draw.integers(1, 20))
    ends = starts + int(draw.integers(0, 10))
    max_answer, n_best = int(draw.integers(1, 12)), int(draw.integers(1, 30))
    start = draw.integers(-3, 4, starts).astype(np.float32)  # few values: many ties
    end = draw.integers(-3, 4, ends).astype(np.float32)
    pairs = [(-float(start[i] + end[j]), i, j) for i in range(starts) for j in range(i, min(ends, i + max_answer))]
    expected = sorted(pairs)[:n_best]
    begins, lasts, scores = best_pairs(start, end, max_answer, n_best)
    assert list(zip((-scores).tolist(), begins.tolist(), lasts.tolist(), strict=True)) == expected


@pytest.mark.parametrize(("window", "stride"), [(48, 7), (400, 100)])
def test_candidates_are_the_best_allowed_spans_by_the_definition(
    question_set: Callable[..., TextQuestionSet], window: int, stride: int
) -> None:
    """Every (window, start, end) by brute force: the start's own window, end after it in the same window, ≤ 6 tokens."""
    questions = question_set("qa_v2.json", window, stride, 20)
    logits = random_logits(questions, 5)
    for question, decoded in enumerate(decode(questions, logits, n_best=8, max_answer=6)):
        windows = np.flatnonzero(questions.windows.question_W == question)
        context = int(questions.questions.context_Q[question])
        text, base = questions.context_texts[context], questions.contexts.bounds[context]
        offsets = questions.offsets[base : questions.contexts.bounds[context + 1]]
        spans = []
        for token in range(len(offsets)):
            side = {}
            for w in windows:
                left = token - questions.windows.first_W[w]
                side[w] = min(left, questions.windows.count_W[w] - 1 - left)
            owner = max(side, key=lambda w: (side[w], -w))
            shift = questions.questions.texts.lengths[question] + 2 - questions.windows.first_W[owner]
            for last in range(
                token, min(token + 6, questions.windows.first_W[owner] + questions.windows.count_W[owner])
            ):
                score = float(logits[owner][0][token + shift] + logits[owner][1][last + shift])
                spans.append((-score, offsets[token, 0], offsets[last, 1]))
        best: dict[str, tuple[float, int, int]] = {}
        for minus, start, end in sorted(spans):
            best.setdefault(text[start:end], (-minus, int(start), int(end)))
        expected = list(best.items())[:8]
        assert [(c.text, (c.score, c.start, c.end)) for c in decoded.candidates] == expected
        assert decoded.id == questions.questions.ids[question]


def test_answers_are_the_original_characters(question_set: Callable[..., TextQuestionSet]) -> None:
    """Spaces, capitals and characters of four bytes survive: the text is cut from the context, never detokenized."""
    questions = question_set("qa_v1.json", 400, 100, 64)
    logits = [np.zeros((2, n), np.float32) for n in questions.lengths]
    index = questions.questions.ids.index("fox-1")
    first, last = questions.questions.answer_Q2[index] + questions.questions.texts.lengths[index] + 2
    logits[index][0][first - 5], logits[index][1][last] = 9.0, 9.0
    answer = decode(questions, logits)[index].candidates[0]
    assert answer.text == questions.context_texts[0][answer.start : answer.end]
    assert answer.text.endswith("Zürich")
    fox = questions.context_texts[0].index("\U0001f98a")
    emoji = int(np.flatnonzero(questions.offsets[:, 0] == fox)[0])
    place = emoji + questions.questions.texts.lengths[index] + 2
    logits[index][0][place], logits[index][1][place + 1] = 50.0, 50.0
    assert decode(questions, logits)[index].candidates[0].text == "\U0001f98a ran"


def test_question_and_special_tokens_are_never_answers(question_set: Callable[..., TextQuestionSet]) -> None:
    questions = question_set("qa_v1.json", 48, 7, 20)
    logits = random_logits(questions, 1)
    for window, (start, end) in enumerate(logits):
        skip = questions.questions.texts.lengths[questions.windows.question_W[window]] + 2
        start[:skip] = end[:skip] = 100.0
        start[-1] = end[-1] = 100.0
    for decoded in decode(questions, logits, n_best=50):
        assert decoded.candidates[0].score < 50
        assert decoded.null_score == 200.0


def test_the_null_score_is_the_least_over_windows(question_set: Callable[..., TextQuestionSet]) -> None:
    questions = question_set("qa_v1.json", 48, 7, 20)
    logits = random_logits(questions, 2)
    for decoded, (first, stop) in zip(decode(questions, logits), pairwise(questions.bounds), strict=True):
        scores = [float(logits[w][0][0]) + float(logits[w][1][0]) for w in range(first, stop)]
        assert decoded.null_score == min(scores)
        assert decoded.null_odds == min(scores) - decoded.candidates[0].score


def test_no_answer_is_given_only_above_the_threshold() -> None:
    decoded = Decoded("q", (Candidate("cat", 0, 3, 1.0, 1.0),), null_score=3.0)
    assert decoded.answer(None) == "cat"
    assert decoded.answer(2.0) == "cat"  # null odds equal to τ: answered, as the official script does
    assert decoded.answer(1.9) == ""


@pytest.mark.parametrize("null_allowed", [False, True])
def test_probabilities_are_a_softmax_of_scores(
    question_set: Callable[..., TextQuestionSet], null_allowed: bool
) -> None:
    questions = question_set("qa_v1.json", 48, 7, 20)
    for decoded in decode(questions, random_logits(questions, 3), null_allowed=null_allowed, n_best=4):
        scores = np.array([c.score for c in decoded.candidates] + [decoded.null_score] * null_allowed)
        expected = np.exp(scores) / np.exp(scores).sum()
        assert [c.probability for c in decoded.candidates] == pytest.approx(expected[:4].tolist())
        assert (sum(c.probability for c in decoded.candidates) < 1 - 1e-9) == null_allowed


def test_a_text_that_occurs_twice_is_listed_once(question_set: Callable[..., TextQuestionSet]) -> None:
    questions = question_set("qa_v1.json", 400, 100, 64)
    logits = [np.zeros((2, n), np.float32) for n in questions.lengths]
    for decoded in decode(questions, logits, n_best=20):
        texts = [candidate.text for candidate in decoded.candidates]
        assert len(texts) == len(set(texts))
