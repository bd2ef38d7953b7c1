"""A very small model folder, and a run without what is slow and beside the point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.data.train_tokenizer import train_wordpiece
from spanbert.checkpoint.model_folder import save_model
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_wordpiece(["the quick brown fox jumps over the lazy dog"] * 3, vocab_size=60)


@pytest.fixture(scope="session")
def shape(tokenizer: Tokenizer) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        sbo_position_size=8,
    )


@pytest.fixture(scope="session")
def model_folder(tokenizer: Tokenizer, shape: EncoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, SpanBertForPretraining(shape), tokenizer)
    return folder


@pytest.fixture(autouse=True)
def no_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanbert.training.run_folder.open_trackers", lambda *_, **__: [])
