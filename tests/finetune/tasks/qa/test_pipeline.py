"""`spanbert.pipeline`: inputs and results as documented, scores written out by hand."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import spanbert
from finetune.predict import Machine
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.pipeline import Options, QuestionAnsweringPipeline, device_name, word_edges
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.batch import pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer

CONTEXT = "Ada wrote notes. Luigi described the engine in French! The end"
QUESTION = "Who described it?"


@pytest.fixture
def qa(make_model: Callable, tokenizer: Tokenizer) -> QuestionAnsweringPipeline:
    settings = QASettings(window=64, stride=16, max_question=24)
    model = make_model()
    with torch.no_grad():  # logits far enough apart that the order of answers is no matter of rounding
        for parameter in model.parameters():
            parameter.mul_(3)
    return QuestionAnsweringPipeline(QuestionAnswerer(model, tokenizer, settings, Machine(torch.device("cpu"), "fp32")))


def by_hand(
    qa: QuestionAnsweringPipeline, longest: int, context: np.ndarray | None = None
) -> tuple[dict[tuple[int, int], float], float]:
    """Every span of a window's tokens (first and last) with its score, and that of no answer; CONTEXT unless given."""
    tokenizer = qa.answerer.tokenizer
    question = tokenizer.encode_ids(QUESTION)
    context = tokenizer.encode_ids(CONTEXT) if context is None else context
    packed = pack_sequences([(question, context)], tokenizer.cls_id, tokenizer.sep_id)
    with torch.inference_mode():
        start, end = (one.double().numpy() for one in qa.answerer.model(packed.tensors()))
    first = len(question) + 2
    allowed = [0, *range(first, first + len(context))]
    start, end = (np.exp(one[allowed]) / np.exp(one[allowed]).sum() for one in (start, end))
    size = len(context)
    spans = {(a, b): start[a + 1] * end[b + 1] for a in range(size) for b in range(a, min(a + longest, size))}
    return spans, start[0] * end[0]


def test_scores_are_products_of_two_softmaxes(qa: QuestionAnsweringPipeline) -> None:
    spans, _ = by_hand(qa, 15)
    offsets = qa.answerer.tokenizer.encode(CONTEXT).offsets
    expected = sorted(((score, a, b) for (a, b), score in spans.items()), reverse=True)[:6]
    found = qa(question=QUESTION, context=CONTEXT, top_k=6, align_to_words=False)
    assert [(one["start"], one["end"]) for one in found] == [(offsets[a, 0], offsets[b, 1]) for _, a, b in expected]
    np.testing.assert_allclose([one["score"] for one in found], [score for score, _, _ in expected], rtol=1e-5)
    assert all(CONTEXT[one["start"] : one["end"]] == one["answer"] for one in found)
    assert set(found[0]) == {"score", "start", "end", "answer"}


def test_no_answer_takes_part_where_it_is_asked_for(qa: QuestionAnsweringPipeline) -> None:
    _, nothing = by_hand(qa, 15)
    found = qa(question=QUESTION, context=CONTEXT, top_k=10_000, handle_impossible_answer=True)
    (empty,) = [one for one in found if not one["answer"]]
    assert (empty["start"], empty["end"]) == (0, 0) and empty["score"] == pytest.approx(nothing, rel=1e-5)
    assert found.index(empty) == sum(one["score"] > nothing for one in found if one["answer"])
    assert all(one["answer"] for one in qa(question=QUESTION, context=CONTEXT, top_k=10_000))


def test_answers_are_whole_words_unless_told_otherwise(qa: QuestionAnsweringPipeline) -> None:
    words = {0, len(CONTEXT), *(n for n in range(1, len(CONTEXT)) if not CONTEXT[n - 1 : n + 1].isalnum())}
    aligned = qa(question=QUESTION, context=CONTEXT, top_k=50)
    assert all(one["start"] in words and one["end"] in words for one in aligned)
    assert len({(one["start"], one["end"]) for one in aligned}) == len(aligned)
    loose = qa(question=QUESTION, context=CONTEXT, top_k=50, align_to_words=False)
    assert not all(one["start"] in words and one["end"] in words for one in loose)


def test_no_answer_is_longer_than_allowed(qa: QuestionAnsweringPipeline) -> None:
    tokenizer = qa.answerer.tokenizer
    for one in qa(question=QUESTION, context=CONTEXT, top_k=200, max_answer_len=2, align_to_words=False):
        assert len(tokenizer.encode_ids(one["answer"])) <= 2


def test_a_long_context_is_read_in_windows_that_share_tokens(qa: QuestionAnsweringPipeline) -> None:
    """A text's score is the sum of those that it has wherever it stands, in every window; windows share 20 tokens."""
    text = " ".join(f"{CONTEXT} {n}" for n in range(12))
    found = qa(question=QUESTION, context=text, max_seq_len=64, doc_stride=20, top_k=100_000, align_to_words=False)
    assert all(text[one["start"] : one["end"]] == one["answer"] for one in found)
    encoded = qa.answerer.tokenizer.encode(text)
    room = 64 - 3 - len(qa.answerer.tokenizer.encode_ids(QUESTION))
    expected: Counter[str] = Counter()
    windows = 0
    for first in range(0, len(encoded.ids), room - 20):
        windows += 1
        for (a, b), score in by_hand(qa, 15, encoded.ids[first : first + room])[0].items():
            expected[text[encoded.offsets[first + a, 0] : encoded.offsets[first + b, 1]].lower()] += score
        if first + room >= len(encoded.ids):
            break
    assert windows > 5
    assert {one["answer"].lower(): one["score"] for one in found} == pytest.approx(expected, rel=1e-4)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)


def test_the_forms_of_input(qa: QuestionAnsweringPipeline) -> None:
    one = qa(question=QUESTION, context=CONTEXT)
    assert qa({"question": QUESTION, "context": CONTEXT}) == one
    other = qa(question="Ada?", context=CONTEXT)
    assert qa(question=[QUESTION, "Ada?"], context=CONTEXT) == [one, other]
    assert qa(question=[QUESTION, "Ada?"], context=[CONTEXT, CONTEXT]) == [one, other]
    assert qa([{"question": QUESTION, "context": CONTEXT}]) == one == qa(question=[QUESTION], context=CONTEXT)
    assert qa(QUESTION, CONTEXT) == one == qa(SimpleNamespace(question_text=QUESTION, context_text=CONTEXT))
    assert qa({"question": [QUESTION, "Ada?"], "context": CONTEXT}) == [one, other]
    assert qa(question=(text for text in (QUESTION, "Ada?")), context=CONTEXT) == [one, other]
    both = qa([{"question": QUESTION, "context": CONTEXT}, {"question": "Ada?", "context": CONTEXT}], top_k=2)
    assert both == [qa(question=text, context=CONTEXT, top_k=2) for text in (QUESTION, "Ada?")]
    assert [len(answers) for answers in both] == [2, 2]
    assert qa([]) == []


def near(found: list, expected: list) -> bool:
    """The same answers; scores may differ by what another order of additions makes."""
    scores = [[one.pop("score") for one in map(dict, side)] for side in (found, expected)]
    return scores[0] == pytest.approx(scores[1], rel=1e-4) and [one["answer"] for one in found] == [
        one["answer"] for one in expected
    ]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 100])
def test_questions_read_together_are_answered_as_one_by_one(
    qa: QuestionAnsweringPipeline, batch_size: int | None
) -> None:
    """Short and long questions and contexts, some with several windows, whose steps depend on the question's length."""
    contexts = [CONTEXT, " ".join(f"{CONTEXT} {n}" for n in range(9)), "Ada", CONTEXT, CONTEXT]
    questions = [QUESTION, "Ada?", f"{QUESTION} {QUESTION}", "What is the end of it?", QUESTION]
    options: dict[str, Any] = {"max_seq_len": 80, "doc_stride": 12, "handle_impossible_answer": True}
    alone = [qa(question=q, context=c, **options) for q, c in zip(questions, contexts, strict=True)]
    assert near(qa(question=questions, context=contexts, batch_size=batch_size, **options), alone)


def test_a_generator_is_asked_for_a_question_when_its_answer_is_wanted(qa: QuestionAnsweringPipeline) -> None:
    asked = []

    def questions() -> Iterator[dict[str, str]]:
        for text in (QUESTION, "Ada?", "Luigi?"):
            asked.append(text)
            yield {"question": text, "context": CONTEXT}
        asked.append("")
        yield {"question": "", "context": CONTEXT}

    answers = qa(questions())
    assert asked == []
    assert next(answers) == qa(question=QUESTION, context=CONTEXT) and asked == [QUESTION]
    next(answers), next(answers)
    with pytest.raises(ValueError, match="the question of input 3 is empty"):
        next(answers)
    asked.clear()
    by_twos = qa(questions(), batch_size=2, top_k=3)
    assert len(next(by_twos)) == 3 and asked == [QUESTION, "Ada?"]


def test_a_torch_data_set_is_read_to_its_length(qa: QuestionAnsweringPipeline) -> None:
    class Repeated(torch.utils.data.Dataset):
        """Has no end but its length."""

        def __len__(self) -> int:
            return 3

        def __getitem__(self, place: int) -> dict[str, str]:
            return {"question": QUESTION, "context": CONTEXT}

    assert list(qa(Repeated())) == [qa(question=QUESTION, context=CONTEXT)] * 3


def test_answers_of_the_same_text_are_one(qa: QuestionAnsweringPipeline) -> None:
    """Their scores are added up, whatever their case, and it stands where it scored best."""
    text = "Paris or PARIS or paris"
    loose = qa(question=QUESTION, context=text, top_k=10_000, align_to_words=False)
    assert len({one["answer"].lower() for one in loose}) == len(loose)
    aligned = qa(question=QUESTION, context=text, top_k=10_000)
    spans = {one["answer"].lower(): one["score"] for one in aligned}
    assert spans["paris"] > sum(one["score"] for one in loose if one["answer"].lower() == "paris")
    assert sum(spans.values()) == pytest.approx(sum(one["score"] for one in loose), rel=1e-6)


def test_options_given_to_the_pipeline_hold_for_its_calls(qa: QuestionAnsweringPipeline) -> None:
    set_up = QuestionAnsweringPipeline(qa.answerer, Options().given({"topk": 2, "align_to_words": None}), batch_size=1)
    assert set_up(question=QUESTION, context=CONTEXT) == qa(question=QUESTION, context=CONTEXT, top_k=2)
    assert set_up(question=QUESTION, context=CONTEXT, top_k=1) == qa(question=QUESTION, context=CONTEXT)
    assert set_up(question=QUESTION, context=CONTEXT, top_k=None, padding=True) == set_up(QUESTION, CONTEXT)


def test_words_have_edges() -> None:
    first, last = word_edges(np.array([True, False, False, True, True, False]))
    assert first.tolist() == [0, 0, 0, 3, 4, 4] and last.tolist() == [2, 2, 2, 3, 5, 5]


@pytest.mark.parametrize(
    ("device", "name"),
    [(None, "auto"), (-1, "cpu"), (0, "cuda:0"), (1, "cuda:1"), ("cpu", "cpu"), (torch.device("cuda", 1), "cuda:1")],
)
def test_devices_are_named_as_there(device: Any, name: str) -> None:
    assert device_name(device) == name


@pytest.mark.parametrize(
    "arguments",
    [
        {"question": QUESTION},
        {"question": " ", "context": CONTEXT},
        {"question": "\u0000", "context": CONTEXT},
        {"question": ["a", "b"], "context": ["c"]},
        {"question": "a", "context": ["c", "d"]},
        {"question": ["a", None], "context": CONTEXT},
        {"question": "a", "context": ""},
        {"question": "a", "context": "b", "top_k": 0},
        {"question": "a", "context": "b", "max_seq_len": 0},
        {"question": "a", "context": "b", "doc_stride": -1},
        {"question": "a", "context": CONTEXT, "max_seq_len": 24, "doc_stride": 23},
    ],
)
def test_arguments_that_make_no_sense_are_refused(qa: QuestionAnsweringPipeline, arguments: dict) -> None:
    with pytest.raises(ValueError):
        qa(**arguments)


@pytest.mark.parametrize(
    ("positional", "named", "error"),
    [
        (({"question": QUESTION},), {}, KeyError),
        (({"question": [QUESTION]},), {}, KeyError),
        (({"question": "a", "context": "b"},), {"question": "a"}, ValueError),
        (("a",), {}, ValueError),
        ((7,), {}, ValueError),
        (([7],), {}, ValueError),
        (("a", "b"), {"tok_k": 3}, TypeError),
    ],
)
def test_inputs_that_cannot_be_understood_are_refused(
    qa: QuestionAnsweringPipeline, positional: tuple, named: dict, error: type[Exception]
) -> None:
    with pytest.raises(error):
        qa(*positional, **named)


def test_it_is_reached_from_the_package(tmp_path: Path, make_model: Callable, tokenizer: Tokenizer) -> None:
    settings = QASettings(window=64, stride=16, max_question=24)
    save_model(tmp_path / "model", make_model(), tokenizer, QATask(settings).model_config())
    qa = spanbert.pipeline("question-answering", model=tmp_path / "model", device=torch.device("cpu"), top_k=2)
    answer, _ = qa(question="Who?", context=CONTEXT)
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]
    with pytest.raises(UserError, match="no pipeline 'fill-mask'"):
        spanbert.pipeline("fill-mask")
    with pytest.raises(TypeError, match="no option framework"):
        spanbert.pipeline("question-answering", model=tmp_path / "model", framework="pt")
