"""A short version of the comparison with transformers, and that it would notice a difference."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.finetuning import qa_parity
from finetune.tasks.qa.features import TextQuestionSet
from spanbert.checkpoint.model_folder import save_model
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer


@pytest.fixture
def start(tmp_path: Path, make_model: Callable[..., SpanBertForQuestionAnswering], tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "start", make_model(), tokenizer)
    return tmp_path / "start"


def test_five_steps_give_the_losses_of_transformers(
    start: Path, tokenizer: Tokenizer, question_set: Callable[..., TextQuestionSet]
) -> None:
    questions = question_set("qa_v2.json", 64, 16, 24)
    pairs = qa_parity.compare(start, tokenizer, questions, steps=5, batch_size=6, lr=1e-3, seed=1)
    assert len(pairs) == 5
    assert qa_parity.worst(pairs) < 2e-5
    assert len({round(pair.ours, 3) for pair in pairs}) == 5


def test_another_weight_decay_would_be_noticed(
    start: Path,
    tokenizer: Tokenizer,
    question_set: Callable[..., TextQuestionSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only as sharp as the differences it sees: decay 2 instead of 0.01 on one side."""
    questions = question_set("qa_v2.json", 64, 16, 24)
    original = qa_parity.adamw
    monkeypatch.setattr(qa_parity, "adamw", lambda model, lr, weight_decay: original(model, lr, weight_decay=2.0))
    pairs = qa_parity.compare(start, tokenizer, questions, steps=5, batch_size=6, lr=1e-3, seed=1)
    assert qa_parity.worst(pairs) > 1e-4


def test_evaluation_agrees_with_transformers_window_by_window(
    start: Path, tokenizer: Tokenizer, question_set: Callable[..., TextQuestionSet]
) -> None:
    questions = question_set("qa_v1.json", 64, 16, 24)
    ours, theirs = qa_parity.load_both(start, tokenizer, 0)
    packed = questions.packed(range(len(questions.windows)))
    with torch.no_grad():
        start_T, end_T = ours(packed.tensors())
        for window in range(len(questions.windows)):
            alone = questions.packed([window])
            begin, end = packed.cu_seqlens[window : window + 2]
            output = theirs(
                input_ids=torch.from_numpy(alone.input_ids_T)[None],
                token_type_ids=torch.from_numpy(alone.token_type_ids_T)[None],
            )
            assert (start_T[begin:end] - output.start_logits[0]).abs().max() < 1e-5
            assert (end_T[begin:end] - output.end_logits[0]).abs().max() < 1e-5
