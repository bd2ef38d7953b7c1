"""Fixtures for tests of question answering: sample files, a tokenizer that knows them, a tiny model.

A plugin that the ``conftest.py`` of the folders that want it take their fixtures from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.tasks.qa.encode import encode_with_texts
from finetune.tasks.qa.features import TextQuestionSet, WindowConfig
from finetune.tasks.qa.records import read_questions
from spanbert.checkpoint.model_folder import build_model
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of sample files, described in its README."""
    return DATA


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Some whole words of the sample texts, and every character: so some words are one token and some are many."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(DATA.glob("qa_*.json*")))
    text += (DATA / "wikinews_sentences.txt").read_text(encoding="utf-8")
    characters = sorted({character for character in text if not character.isspace()})
    words = sorted({word for word in re.findall(r"\w+", text) if len(word) in (3, 4, 5)})
    tokens = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters), *(w for w in words if w not in characters)]
    return Tokenizer({token: number for number, token in enumerate(dict.fromkeys(tokens))})


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def question_set(tokenizer: Tokenizer) -> Callable[..., TextQuestionSet]:
    """question_set(file name, window=…, stride=…, max_question=…) with texts kept."""

    def build(name: str, window: int = 64, stride: int = 16, max_question: int = 24) -> TextQuestionSet:
        found = read_questions(DATA / name, "evaluate")
        config = WindowConfig(window, stride, max_question)
        return encode_with_texts(found.paragraphs, tokenizer, config, found.report.malformed)

    return build


def tiny_model(tokenizer: Tokenizer, seed: int = 0, dropout: float = 0.1) -> SpanBertForQuestionAnswering:
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return build_model(SpanBertForQuestionAnswering, shape, seed)


@pytest.fixture
def make_model(tokenizer: Tokenizer) -> Callable[..., SpanBertForQuestionAnswering]:
    """make_model(seed=…, dropout=…): 2 layers of width 32 for the sample tokenizer."""
    return lambda **options: tiny_model(tokenizer, **options)
