"""A small prepared corpus of real text and a very small model, made once for all pretraining tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.data.prepare import PrepareConfig, run_prepare
from pretrain.data.train_tokenizer import train_wordpiece
from spanbert.checkpoint.model_folder import save_model
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import Tokenizer

SENTENCES = Path(__file__).parents[1] / "data" / "wikinews_sentences.txt"
BLOCK = 32


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 blocks of up to 32 tokens in documents of one to five sentences, a quarter of them held out."""
    folder = tmp_path_factory.mktemp("corpus")
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    train_wordpiece(sentences, vocab_size=400).save(folder / "tokenizer")
    documents, start, size = [], 0, 1
    while start < len(sentences):
        documents.append("\n".join(sentences[start : start + size]))
        start, size = start + size, size % 5 + 1
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    run_prepare(
        PrepareConfig(
            inputs=(str(folder / "text.txt"),),
            tokenizer=folder / "tokenizer",
            output=folder / "prepared",
            block_length=BLOCK,
            processes=1,
            validation_share=0.25,
        )
    )
    return folder / "prepared"


@pytest.fixture(scope="session")
def tiny_model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 2 layers of 32, dropout by the run."""
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    torch.manual_seed(7)
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=BLOCK,
        sbo_position_size=8,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, SpanBertForPretraining(shape), tokenizer)
    return folder


@pytest.fixture
def config(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., PretrainConfig]:
    """Options of a run of a few quick steps, any of them replaced; without what is slow and beside the point."""
    monkeypatch.setattr("spanbert.device.measured_peak_flops", lambda *_: 1e12)
    monkeypatch.setattr("spanbert.training.run_folder.open_trackers", lambda *_, **__: [])
    monkeypatch.setattr("pretrain.saving.plot_curves", lambda *_: False)

    def make(**changes: object) -> PretrainConfig:
        options: dict[str, object] = {
            "data": corpus,
            "output": tmp_path / "run",
            "init_from": tiny_model,
            "steps": 12,
            "batch_size": 8,
            "micro_batch_size": 2,
            "lr": 1e-3,
            "warmup": 0.25,
            "log_every": 3,
            "eval_every": 6,
            "eval_sequences": 16,
            "save_every": 4,
            "device": "cpu",
            "precision": "fp32",
            "seed": 3,
        }
        return PretrainConfig(**{**options, **changes})  # type: ignore[arg-type]

    return make
