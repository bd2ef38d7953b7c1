from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from finetune.tasks.qa.features import QuestionSet, WindowConfig, build_question_set
from finetune.tasks.qa.records import MalformedRecord, Paragraph, Question
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import Tokenizer

SETTINGS = [(64, 16, 24), (48, 7, 20), (60, 32, 24), (400, 100, 64)]


def build(tokenizer: Tokenizer, context: str, *questions: Question, window: WindowConfig) -> QuestionSet:
    def fail(where: str, error: MalformedRecord) -> None:
        raise AssertionError(f"{where}: {error}")

    paragraph = Paragraph("article", 0, context, questions)
    return build_question_set([paragraph], tokenizer, window, keep_text=True, malformed=fail)


@pytest.mark.parametrize(("window", "stride", "max_question"), SETTINGS)
def test_windows_have_berts_layout_and_cover_every_piece(
    question_set: Callable[..., QuestionSet], tokenizer: Tokenizer, window: int, stride: int, max_question: int
) -> None:
    questions = question_set("qa_v2.json", window, stride, max_question)
    assert questions.contexts is not None
    packed = questions.packed(np.arange(questions.windows))
    assert packed.max_seqlen <= window
    seen: dict[int, set[int]] = {}
    for w in range(questions.windows):
        begin, end = packed.cu_seqlens[w : w + 2]
        ids, types = packed.input_ids_T[begin:end].tolist(), packed.token_type_ids_T[begin:end].tolist()
        question = int(questions.window_question[w])
        context = tokenizer.encode(questions.contexts[questions.context_of_Q[question]]).ids.tolist()
        first, count = int(questions.window_first[w]), int(questions.window_count[w])
        middle = len(ids) - count - 1
        words = questions.question_pieces[questions.question_bounds[question] :][: middle - 2].tolist()
        assert ids == [tokenizer.cls_id, *words, tokenizer.sep_id, *context[first : first + count], tokenizer.sep_id]
        assert types == [0] * middle + [1] * (count + 1)
        assert first == stride * len([v for v in range(w) if questions.window_question[v] == question])
        seen.setdefault(question, set()).update(range(first, first + count))
        assert count == len(context) - first or len(ids) == window  # full, or at the context's end
    for question, pieces in seen.items():
        context = questions.contexts[questions.context_of_Q[question]]
        assert pieces == set(range(len(tokenizer.encode(context).ids)))
    if window < 64:
        assert questions.windows > len(questions) * 1.5  # the case is one of several windows


def test_a_context_that_just_fits_has_one_window(tokenizer: Tokenizer) -> None:
    context, question = "x" * 20, Question("q", "y" * 5, (), ())
    assert build(tokenizer, context, question, window=WindowConfig(28, 4, 5)).windows == 1
    several = build(tokenizer, context, question, window=WindowConfig(27, 4, 5))
    assert several.window_first.tolist() == [0, 4]
    assert several.window_count.tolist() == [19, 16]


@pytest.mark.parametrize(("window", "stride", "max_question"), SETTINGS)
def test_labels_point_at_the_first_gold_answer_or_at_cls(
    question_set: Callable[..., QuestionSet], tokenizer: Tokenizer, window: int, stride: int, max_question: int
) -> None:
    questions = question_set("qa_v2.json", window, stride, max_question)
    assert questions.golds is not None
    labels = questions.labels()
    inside, outside = 0, 0
    for w in range(questions.windows):
        question = int(questions.window_question[w])
        ids = questions.packed([w]).input_ids_T
        first, last = labels[w]
        answer, (low, high) = questions.answer_Q2[question], (questions.window_first[w], questions.window_count[w])
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
    """Every span of one to three pieces of a context of 20, so that some end, or begin, just outside a window."""
    spans = [(first, first + length) for length in (1, 2, 3) for first in range(21 - length)]
    items = [Question(str(i), "yyyyy", ("x" * (b - a),), ((a, b),)) for i, (a, b) in enumerate(spans)]
    questions = build(tokenizer, "x" * 20, *items, window=WindowConfig(20, 4, 5))
    assert questions.windows == 3 * len(spans)
    for w, (first, last) in enumerate(questions.labels().tolist()):
        start, end = spans[questions.window_question[w]]
        low = int(questions.window_first[w])
        inside = low <= start and end <= low + int(questions.window_count[w])
        assert (first, last) == ((start - low + 7, end - 1 - low + 7) if inside else (0, 0))


def test_the_labelled_occurrence_is_trained_on_not_another_of_the_same_text(
    question_set: Callable[..., QuestionSet],
) -> None:
    """`fox-1` is answered by the second "Zürich" of its context."""
    questions = question_set("qa_v1.json", 400, 100, 64)
    assert questions.contexts is not None
    assert questions.context_offsets is not None
    index = questions.ids.index("fox-1")
    start = questions.context_offsets[questions.answer_Q2[index, 0], 0]
    text = questions.contexts[0]
    assert start == text.index("Zürich", text.index("Zürich") + 1)


def test_an_answer_inside_a_piece_is_labelled_by_the_piece_that_holds_it(tokenizer: Tokenizer) -> None:
    context = "from that from"  # three pieces
    assert len(tokenizer.encode(context).ids) == 3
    question = Question("q", "x", ("ha",), ((6, 8),))
    questions = build(tokenizer, context, question, window=WindowConfig(32, 8, 8))
    assert questions.answer_Q2.tolist() == [[1, 1]]


@pytest.mark.parametrize(("window", "stride", "max_question"), SETTINGS)
def test_a_piece_is_owned_by_the_window_with_most_context_on_its_lesser_side(
    question_set: Callable[..., QuestionSet], window: int, stride: int, max_question: int
) -> None:
    """Against the definition, piece by piece."""
    questions = question_set("qa_v1.json", window, stride, max_question)
    owned_first, owned_last = questions.owned_ranges
    for question in range(len(questions)):
        windows = np.flatnonzero(questions.window_question == question)
        context = questions.context_of_Q[question]
        for piece in range(questions.context_bounds[context + 1] - questions.context_bounds[context]):

            def least_side(w: int, piece: int = piece) -> int:
                left = piece - questions.window_first[w]
                return min(left, questions.window_count[w] - 1 - left)  # negative outside the window

            owners = [w for w in windows if owned_first[w] <= piece <= owned_last[w]]
            assert len(owners) == 1
            assert least_side(owners[0]) == max(map(least_side, windows)) >= 0


def test_long_questions_are_cut_and_counted(question_set: Callable[..., QuestionSet]) -> None:
    full, cut = question_set("qa_v1.json", 400, 100, 64), question_set("qa_v1.json", 400, 100, 15)
    assert full.truncated == 0
    too_long = full.question_lengths_Q > 15
    assert 0 < too_long.sum() < len(full)
    assert cut.truncated == too_long.sum()
    assert cut.question_lengths_Q.tolist() == np.minimum(full.question_lengths_Q, 15).tolist()


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


def test_select_gives_the_same_questions_in_the_order_asked(question_set: Callable[..., QuestionSet]) -> None:
    questions = question_set("qa_v2.json")
    order = np.array([9, 0, 4])
    part = questions.select(order)
    assert part.ids == [questions.ids[i] for i in order]
    labels, part_labels = questions.labels(), part.labels()
    for place, question in enumerate(order):
        old, new = np.flatnonzero(questions.window_question == question), np.flatnonzero(part.window_question == place)
        assert len(old) == len(new) > 0
        assert questions.packed(old).input_ids_T.tolist() == part.packed(new).input_ids_T.tolist()
        assert labels[old].tolist() == part_labels[new].tolist()
        assert part.golds is not None
        assert part.golds[place] == questions.golds[question]  # type: ignore[index]


def test_texts_without_any_piece_are_reported(tokenizer: Tokenizer) -> None:
    blank = "\u200b\u0001"  # format and control characters: BERT's normaliser removes them
    assert not len(tokenizer.encode(blank).ids)
    told: list[str] = []
    context = f"from {blank} to"
    paragraphs = [
        Paragraph("A", 0, blank, (Question("lost", "why", (), ()),)),
        Paragraph("A", 1, context, (Question("mute", blank, (), ()), Question("air", "why", (blank,), ((5, 7),)))),
        Paragraph("A", 2, context, (Question("fine", "why", ("to",), ((8, 10),)),)),
    ]
    questions = build_question_set(
        paragraphs, tokenizer, WindowConfig(), keep_text=True, malformed=lambda where, error: told.append(where)
    )
    assert questions.ids == ["fine"]
    assert told == ['article "A", paragraph 0', *(f'article "A", paragraph 1, id {i}' for i in ("mute", "air"))]
    assert questions.contexts[questions.context_of_Q[0]] == context  # type: ignore[index]


def test_a_set_without_texts_trains_the_same(question_set: Callable[..., QuestionSet]) -> None:
    questions = question_set("qa_v1.json")
    bare = replace(questions, contexts=None, context_offsets=None, golds=None)
    order = np.arange(len(questions))[::-1]
    assert bare.select(order).labels().tolist() == questions.select(order).labels().tolist()
