"""`spanbert.pipeline`: inputs and results as documented, scores written out by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import spanbert
from finetune.predict import Machine
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.pipeline import QuestionAnsweringPipeline
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


def by_hand(qa: QuestionAnsweringPipeline, longest: int) -> tuple[dict[tuple[int, int], float], float]:
    """Every span of CONTEXT (first and last token) with its score, and that of no answer: all pairs, one window."""
    tokenizer = qa.answerer.tokenizer
    question, context = tokenizer.encode(QUESTION), tokenizer.encode(CONTEXT)
    packed = pack_sequences([(question.ids, context.ids)], tokenizer.cls_id, tokenizer.sep_id)
    with torch.inference_mode():
        start, end = (one.double().numpy() for one in qa.answerer.model(packed.tensors()))
    first = len(question.ids) + 2
    allowed = [0, *range(first, first + len(context.ids))]
    start, end = (np.exp(one[allowed]) / np.exp(one[allowed]).sum() for one in (start, end))
    size = len(context.ids)
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
    """The best answer of all windows is the best of the windows alone; and each place comes once."""
    text = " ".join(f"{CONTEXT} {n}" for n in range(12))
    options = {"max_seq_len": 64, "doc_stride": 20, "top_k": 40, "align_to_words": False}
    found = qa(question=QUESTION, context=text, **options)
    assert len(found) == 40 == len({(one["start"], one["end"]) for one in found})
    assert all(text[one["start"] : one["end"]] == one["answer"] for one in found)
    offsets = qa.answerer.tokenizer.encode(text).offsets
    room = 64 - 3 - len(qa.answerer.tokenizer.encode_ids(QUESTION))
    best = 0.0
    for first in range(0, len(offsets), room - 20):
        stretch = offsets[first : first + room]
        part = text[stretch[0, 0] : stretch[-1, 1]]
        if qa.answerer.tokenizer.encode(part).ids.size == len(stretch):
            best = max(best, qa(question=QUESTION, context=part, max_seq_len=64, doc_stride=20)["score"])
        if first + room >= len(offsets):
            break
    assert found[0]["score"] == pytest.approx(best, rel=1e-4)


def test_the_forms_of_input(qa: QuestionAnsweringPipeline) -> None:
    one = qa(question=QUESTION, context=CONTEXT)
    assert qa({"question": QUESTION, "context": CONTEXT}) == one
    other = qa(question="Ada?", context=CONTEXT)
    assert qa(question=[QUESTION, "Ada?"], context=CONTEXT) == [one, other]
    assert qa(question=[QUESTION, "Ada?"], context=[CONTEXT, CONTEXT]) == [one, other]
    assert qa([{"question": QUESTION, "context": CONTEXT}]) == [one]
    both = qa([{"question": QUESTION, "context": CONTEXT}, {"question": "Ada?", "context": CONTEXT}], top_k=2)
    assert [[len(answers), answers[0]] for answers in both] == [[2, one], [2, other]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"question": QUESTION},
        {"question": " ", "context": CONTEXT},
        {"question": ["a", "b"], "context": ["c"]},
        {"inputs": {"question": QUESTION}},
        {"inputs": {"question": "a", "context": "b"}, "question": "a"},
        {"question": "a", "context": "b", "top_k": 0},
        {"question": "a", "context": "b", "max_seq_len": 4096},
        {"question": "a", "context": "b", "max_seq_len": 64, "doc_stride": 60},
    ],
)
def test_arguments_that_make_no_sense_are_refused(qa: QuestionAnsweringPipeline, arguments: dict) -> None:
    with pytest.raises(ValueError):
        qa(**arguments)


def test_it_is_reached_from_the_package(tmp_path: Path, make_model: Callable, tokenizer: Tokenizer) -> None:
    settings = QASettings(window=64, stride=16, max_question=24)
    save_model(tmp_path / "model", make_model(), tokenizer, QATask(settings).model_config())
    qa = spanbert.pipeline("question-answering", model=tmp_path / "model", device=-1)
    answer = qa(question="Who?", context=CONTEXT)
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]
    with pytest.raises(UserError, match="no pipeline 'fill-mask'"):
        spanbert.pipeline("fill-mask")
