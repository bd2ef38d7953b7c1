import tracemalloc
import unicodedata
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
    whole_clusters,
)
from finetune.tasks.qa.encode import encode_with_texts
from finetune.tasks.qa.features import TextQuestionSet, WindowConfig
from finetune.tasks.qa.records import Paragraph, Question
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

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


@pytest.mark.parametrize("end", [5, 1_000_000_000])
def test_a_huge_longest_answer_takes_no_memory(end: int) -> None:
    """--max-answer 1000000000 asked for 4 GB, for a window of 400 tokens."""
    start_N, end_M = np.arange(3, dtype=np.float32), np.arange(5, dtype=np.float32)
    tracemalloc.start()
    found = best_pairs(start_N, end_M, end, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    assert [part.tolist() for part in found] == [part.tolist() for part in best_pairs(start_N, end_M, 5, 20)]
    assert len(found[0]) == 5 + 4 + 3


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("Jose\u0301 ran", (0, 4), "Jose\u0301"),
        ("Jose\u0301\u0327, ran", (0, 4), "Jose\u0301\u0327"),
        ("Jose\u0301 ran", (4, 5), "e\u0301"),  # a mark that is a token of its own
        ("to \u0301x", (4, 5), "x"),
        ("to \u0301x", (3, 5), "\u0301x"),
        ("\u0301x", (0, 2), "\u0301x"),
        ("हिन्दी भाषा", (0, 1), "हि"),
        ("हिन्दी भाषा", (5, 6), "दी"),
        ("ok \u2764\ufe0f!", (3, 4), "\u2764\ufe0f"),
        ("ok 👍🏽!", (3, 4), "👍🏽"),
        ("ok 👩\u200d🔬!", (3, 4), "👩\u200d🔬"),
        ("ok 👩\u200d🔬!", (5, 6), "👩\u200d🔬"),
        ("👩🏽\u200d🔬👩", (0, 1), "👩🏽\u200d🔬"),
        ("👩🔬", (0, 1), "👩"),
        ("می\u200cخواهم", (0, 2), "می"),
        ("café", (0, 4), "café"),
    ],
)
def test_an_answer_has_whole_characters(text: str, span: tuple[int, int], expected: str) -> None:
    start, end = whole_clusters(text, *span)
    assert text[start:end] == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_every_label_decodes_to_its_answer(tokenizer: Tokenizer, form: str, lowercase: bool) -> None:
    """Where accents are stripped, U+0301 of a decomposed "José" is in no token, so no answer could equal it."""
    vocabulary = {token: number for number, token in enumerate(tokenizer.tokens)}
    own = Tokenizer(vocabulary, lowercase=lowercase)
    context = unicodedata.normalize(form, "José and Zoë saw Genève; the café's crème brûlée, à Zürich.")
    golds = [
        unicodedata.normalize(form, text) for text in ("José", "Zoë", "Genève", "café", "à Zürich", "crème brûlée")
    ]
    places = [context.index(gold) for gold in golds]
    items = tuple(
        Question(str(n), "Who?", (gold,), ((place, place + len(gold)),))
        for n, (gold, place) in enumerate(zip(golds, places, strict=True))
    )
    questions = encode_with_texts(
        [Paragraph("A", 0, context, items)], own, WindowConfig(200, 50, 20), lambda where, error: pytest.fail(where)
    )
    for question, gold in enumerate(golds):
        start, end = np.zeros((2, questions.lengths[question]), np.float32)
        first, last = questions.labels_W2[question]
        start[first], end[last] = 9.0, 9.0
        decoded = decode_question(questions, question, [np.stack([start, end])], DecodeConfig(), null_allowed=False)
        best = decoded.candidates[0]
        assert (best.text, best.start, best.end) == (gold, places[question], places[question] + len(gold))


CHINESE = (
    "一八九八年創辦的京師大學堂，是北京大學的前身；𠮷野家ω-force，" * 2
    + "蔡元培於1917年任校長，主張「兼容並包」，café也在𠮷野家旁。"
)


@pytest.mark.parametrize("answer", ["一八九八年", "1917年", "「兼容並包」", "café", "𠮷野家旁", "蔡元培"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_a_chinese_answer_is_that_stretch_of_the_text(answer: str, lowercase: bool) -> None:
    """Without a space in sight, in several windows, after characters beyond the basic plane: not one character more or less."""
    characters = sorted(set(CHINESE) | {"e"})  # é without its accent
    tokens = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)]
    tokenizer = Tokenizer({token: number for number, token in enumerate(tokens)}, lowercase=lowercase)
    start = CHINESE.rindex(answer)
    span = (start, start + len(answer))
    paragraphs = [Paragraph("北大", 0, CHINESE, (Question("q", "何時？", (answer,), (span,)),))]
    questions = encode_with_texts(paragraphs, tokenizer, WindowConfig(32, 12, 8), lambda *_: pytest.fail("malformed"))
    first, last = (int(token) for token in questions.questions.answer_Q2[0])
    skip = int(questions.questions.texts.lengths[0]) + 2  # [CLS] question [SEP]
    logits = [np.zeros((2, length), np.float32) for length in questions.lengths]
    windows = questions.windows
    for window, (begin, count) in enumerate(zip(windows.first_W.tolist(), windows.count_W.tolist(), strict=True)):
        for row, token in enumerate((first, last)):
            if begin <= token < begin + count:
                logits[window][row, skip + token - begin] = 10
    assert len(logits) > 2
    best = decode(questions, logits, max_answer=last - first + 1)[0].candidates[0]
    assert (best.text, best.start, best.end) == (answer, *span)
    if last > first:  # --max-answer counts tokens, which in Chinese are characters
        assert decode(questions, logits, max_answer=last - first)[0].candidates[0].text != answer
