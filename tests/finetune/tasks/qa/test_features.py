from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from finetune.records import MalformedRecord
from finetune.tasks.qa.encode import encode_questions, encode_with_texts
from finetune.tasks.qa.features import TextQuestionSet, WindowConfig
from finetune.tasks.qa.records import Paragraph, Question, read_questions
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import Tokenizer

SETTINGS = [(64, 16, 24), (48, 7, 20), (60, 32, 24), (400, 100, 64)]


def build(tokenizer: Tokenizer, context: str, *questions: Question, window: WindowConfig) -> TextQuestionSet:
    def fail(where: str, error: MalformedRecord) -> None:
        raise AssertionError(f"{where}: {error}")

    paragraph = Paragraph("article", 0, context, questions)
    return encode_with_texts([paragraph], tokenizer, window, fail)


@pytest.mark.parametrize(("window", "stride", "max_question"), SETTINGS)
def test_windows_have_berts_layout_and_cover_every_token(
    question_set: Callable[..., TextQuestionSet], tokenizer: Tokenizer, window: int, stride: int, max_question: int
) -> None:
    questions = question_set("qa_v2.json", window, stride, max_question)
    packed = questions.packed(np.arange(len(questions.lengths)))
    assert packed.max_seqlen <= window
    seen: dict[int, set[int]] = {}
    for w in range(len(questions.windows)):
        begin, end = packed.cu_seqlens[w : w + 2]
        ids, types = packed.input_ids_T[begin:end].tolist(), packed.token_type_ids_T[begin:end].tolist()
        question = int(questions.windows.question_W[w])
        context = tokenizer.encode(questions.context_texts[questions.questions.context_Q[question]]).ids.tolist()
        first, count = int(questions.windows.first_W[w]), int(questions.windows.count_W[w])
        middle = len(ids) - count - 1
        words = questions.questions.texts.tokens[questions.questions.texts.bounds[question] :][: middle - 2].tolist()
        assert ids == [tokenizer.cls_id, *words, tokenizer.sep_id, *context[first : first + count], tokenizer.sep_id]
        assert types == [0] * middle + [1] * (count + 1)
        assert first == stride * len([v for v in range(w) if questions.windows.question_W[v] == question])
        seen.setdefault(question, set()).update(range(first, first + count))
        assert count == len(context) - first or len(ids) == window  # full, or at the context's end
    for question, tokens in seen.items():
        context = questions.context_texts[questions.questions.context_Q[question]]
        assert tokens == set(range(len(tokenizer.encode(context).ids)))
    if window < 64:
        assert len(questions.windows) > questions.examples * 1.5  # the case is one of several windows


def test_a_context_that_just_fits_has_one_window(tokenizer: Tokenizer) -> None:
    context, question = "x" * 20, Question("q", "y" * 5, (), ())
    assert len(build(tokenizer, context, question, window=WindowConfig(28, 4, 5)).windows) == 1
    several = build(tokenizer, context, question, window=WindowConfig(27, 4, 5))
    assert several.windows.first_W.tolist() == [0, 4]
    assert several.windows.count_W.tolist() == [19, 16]


@pytest.mark.parametrize(("window", "stride", "max_question"), SETTINGS)
def test_labels_point_at_the_first_gold_answer_or_at_cls(
    question_set: Callable[..., TextQuestionSet], tokenizer: Tokenizer, window: int, stride: int, max_question: int
) -> None:
    questions = question_set("qa_v2.json", window, stride, max_question)
    labels = questions.labels_W2
    inside, outside = 0, 0
    for w in range(len(questions.windows)):
        question = int(questions.windows.question_W[w])
        ids = questions.packed([w]).input_ids_T
        first, last = labels[w]
        answer, (low, high) = (
            questions.questions.answer_Q2[question],
            (questions.windows.first_W[w], questions.windows.count_W[w]),
        )
        whole = len(questions.golds[question]) > 0 and low <= answer[0] and answer[1] < low + high
        if whole:
            assert tokenizer.decode(ids[first : last + 1]) == tokenizer.decode(
                tokenizer.encode(questions.golds[question][0]).ids
            )
            assert questions.packed([w]).token_type_ids_T[first] == 1
            inside += 1
        else:
            assert (first, last) == (0, 0)
            outside += 1
    assert inside >= 8
    assert outside >= 2


def test_an_answer_at_a_windows_edge_counts_only_when_all_of_it_is_inside(tokenizer: Tokenizer) -> None:
    """Every span of one to three tokens of a context of 20, so that some end, or begin, just outside a window."""
    spans = [(first, first + length) for length in (1, 2, 3) for first in range(21 - length)]
    items = [Question(str(i), "yyyyy", ("x" * (b - a),), ((a, b),)) for i, (a, b) in enumerate(spans)]
    questions = build(tokenizer, "x" * 20, *items, window=WindowConfig(20, 4, 5))
    assert len(questions.windows) == 3 * len(spans)
    for w, (first, last) in enumerate(questions.labels_W2.tolist()):
        start, end = spans[questions.windows.question_W[w]]
        low = int(questions.windows.first_W[w])
        inside = low <= start and end <= low + int(questions.windows.count_W[w])
        assert (first, last) == ((start - low + 7, end - 1 - low + 7) if inside else (0, 0))


def test_the_labelled_occurrence_is_trained_on_not_another_of_the_same_text(
    question_set: Callable[..., TextQuestionSet],
) -> None:
    """`fox-1` is answered by the second "Zürich" of its context."""
    questions = question_set("qa_v1.json", 400, 100, 64)
    index = questions.questions.ids.index("fox-1")
    start = questions.offsets[questions.questions.answer_Q2[index, 0], 0]
    text = questions.context_texts[0]
    assert start == text.index("Zürich", text.index("Zürich") + 1)


def test_an_answer_inside_a_token_is_labelled_by_the_token_that_holds_it(tokenizer: Tokenizer) -> None:
    context = "from that from"  # three tokens
    assert len(tokenizer.encode(context).ids) == 3
    question = Question("q", "x", ("ha",), ((6, 8),))
    questions = build(tokenizer, context, question, window=WindowConfig(32, 8, 8))
    assert questions.questions.answer_Q2.tolist() == [[1, 1]]


@pytest.mark.parametrize(("window", "stride", "max_question"), SETTINGS)
def test_a_token_is_owned_by_the_window_with_most_context_on_its_lesser_side(
    question_set: Callable[..., TextQuestionSet], window: int, stride: int, max_question: int
) -> None:
    """Against the definition, token by token."""
    questions = question_set("qa_v1.json", window, stride, max_question)
    owned_first, owned_last = questions.windows.owned
    for question in range(questions.examples):
        windows = np.flatnonzero(questions.windows.question_W == question)
        context = questions.questions.context_Q[question]
        for token in range(questions.contexts.bounds[context + 1] - questions.contexts.bounds[context]):

            def least_side(w: int, token: int = token) -> int:
                left = token - questions.windows.first_W[w]
                return min(left, questions.windows.count_W[w] - 1 - left)  # negative outside the window

            owners = [w for w in windows if owned_first[w] <= token <= owned_last[w]]
            assert len(owners) == 1
            assert least_side(owners[0]) == max(map(least_side, windows)) >= 0


def test_long_questions_are_cut_and_counted(question_set: Callable[..., TextQuestionSet]) -> None:
    full, cut = question_set("qa_v1.json", 400, 100, 64), question_set("qa_v1.json", 400, 100, 15)
    assert full.questions.cut_Q.sum() == 0
    too_long = full.questions.texts.lengths > 15
    assert 0 < too_long.sum() < full.examples
    assert cut.questions.cut_Q.sum() == too_long.sum()
    assert cut.questions.texts.lengths.tolist() == np.minimum(full.questions.texts.lengths, 15).tolist()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (WindowConfig(384, 317, 64), "stride 317 must be below 317"),
        (WindowConfig(384, 500, 64), "must be below 317"),
        (WindowConfig(513, 128, 64), "longer than the model's 512 positions"),
        (WindowConfig(384, 0, 64), "at least 1"),
        (WindowConfig(64, 1, 64), "must be below"),
    ],
)
def test_window_settings_that_would_lose_text_are_refused(config: WindowConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.check(512)


def test_window_settings_at_the_limit_are_fine() -> None:
    WindowConfig(384, 316, 64).check(512)
    WindowConfig(512, 128, 64).check(512)


def test_select_gives_the_same_questions_in_the_order_asked(question_set: Callable[..., TextQuestionSet]) -> None:
    questions = question_set("qa_v2.json")
    order = np.array([9, 0, 4])
    part = questions.select(order)
    assert part.questions.ids == [questions.questions.ids[i] for i in order]
    labels, part_labels = questions.labels_W2, part.labels_W2
    for place, question in enumerate(order):
        old, new = (
            np.flatnonzero(questions.windows.question_W == question),
            np.flatnonzero(part.windows.question_W == place),
        )
        assert len(old) == len(new) > 0
        assert questions.packed(old).input_ids_T.tolist() == part.packed(new).input_ids_T.tolist()
        assert labels[old].tolist() == part_labels[new].tolist()
        assert part.golds[place] == questions.golds[question]


def test_texts_without_any_token_are_reported(tokenizer: Tokenizer) -> None:
    blank = "\u200b\u0001"  # format and control characters: BERT's normaliser removes them
    assert not len(tokenizer.encode(blank).ids)
    told: list[str] = []
    context = f"from {blank} to"
    paragraphs = [
        Paragraph("A", 0, blank, (Question("lost", "why", (), ()),)),
        Paragraph("A", 1, context, (Question("mute", blank, (), ()), Question("air", "why", (blank,), ((5, 7),)))),
        Paragraph("A", 2, context, (Question("fine", "why", ("to",), ((8, 10),)),)),
    ]
    questions = encode_with_texts(paragraphs, tokenizer, WindowConfig(), lambda where, error: told.append(where))
    assert questions.questions.ids == ["fine"]
    assert told == ['article "A", paragraph 0', *(f'article "A", paragraph 1, id {i}' for i in ("mute", "air"))]
    assert questions.context_texts[questions.questions.context_Q[0]] == context


def test_a_set_without_texts_trains_the_same(
    question_set: Callable[..., TextQuestionSet], tokenizer: Tokenizer, data: Path
) -> None:
    full = question_set("qa_v1.json")
    found = read_questions(data / "qa_v1.json", "train")
    bare = encode_questions(found.paragraphs, tokenizer, full.config, found.report.malformed)
    assert not isinstance(bare, TextQuestionSet)
    order = np.arange(full.examples)[::-1]
    left, right = bare.select(order), full.select(order)
    windows = np.arange(len(left.windows))
    assert left.labels(windows).tolist() == right.labels(windows).tolist()
    assert left.packed(windows).input_ids_T.tolist() == right.packed(windows).input_ids_T.tolist()
