"""A short version of benchmarks/finetuning/qa_parity.py, and that it would notice a difference."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from finetune.tasks.qa.features import TextQuestionSet
from spanbert.checkpoint.model_folder import save_model
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The benchmark is a script beside the packages, so it is loaded by its path."""
    path = Path(__file__).parents[2] / "benchmarks" / "finetuning" / "qa_parity.py"
    spec = importlib.util.spec_from_file_location("qa_parity", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["qa_parity"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start(tmp_path: Path, make_model: Callable[..., SpanBertForQuestionAnswering], tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "start", make_model(), tokenizer)
    return tmp_path / "start"


def test_five_steps_give_the_losses_of_transformers(
    benchmark: ModuleType, start: Path, tokenizer: Tokenizer, question_set: Callable[..., TextQuestionSet]
) -> None:
    questions = question_set("qa_v2.json", 64, 16, 24)
    pairs = benchmark.compare(start, tokenizer, questions, steps=5, batch_size=6, lr=1e-3, seed=1)
    assert len(pairs) == 5
    assert benchmark.worst(pairs) < 2e-5
    assert len({round(pair.ours, 3) for pair in pairs}) == 5


def test_another_weight_decay_would_be_noticed(
    benchmark: ModuleType,
    start: Path,
    tokenizer: Tokenizer,
    question_set: Callable[..., TextQuestionSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only as sharp as the differences it sees: decay 2 instead of 0.01 on one side."""
    questions = question_set("qa_v2.json", 64, 16, 24)
    original = benchmark.adamw
    monkeypatch.setattr(benchmark, "adamw", lambda model, lr, weight_decay: original(model, lr, weight_decay=2.0))
    pairs = benchmark.compare(start, tokenizer, questions, steps=5, batch_size=6, lr=1e-3, seed=1)
    assert benchmark.worst(pairs) > 1e-4


def test_evaluation_agrees_with_transformers_window_by_window(
    benchmark: ModuleType, start: Path, tokenizer: Tokenizer, question_set: Callable[..., TextQuestionSet]
) -> None:
    questions = question_set("qa_v1.json", 64, 16, 24)
    ours, theirs = benchmark.load_both(start, tokenizer, 0)
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
