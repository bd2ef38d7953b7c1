"""A small corpus and the shape of a very small encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.data.prepare import PrepareConfig, run_prepare
from pretrain.data.train_tokenizer import train_wordpiece
from spanbert.model.config import EncoderConfig
from spanbert.tokenizer.wordpiece import Tokenizer

DATA = Path(__file__).parents[2] / "data"
BLOCK = 48


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred blocks in documents of four sentences, a quarter of them held out."""
    folder = tmp_path_factory.mktemp("corpus")
    sentences = (DATA / "wikinews_sentences.txt").read_text(encoding="utf-8").splitlines()
    train_wordpiece(sentences, vocab_size=400).save(folder / "tokenizer")
    documents = ["\n".join(sentences[start : start + 4]) for start in range(0, len(sentences), 4)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    options = {"tokenizer": folder / "tokenizer", "output": folder / "prepared", "block_length": BLOCK}
    run_prepare(PrepareConfig(inputs=(str(folder / "text.txt"),), processes=1, validation_share=0.25, **options))
    return folder / "prepared"


@pytest.fixture(scope="module")
def shape(corpus: Path) -> EncoderConfig:
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    return EncoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64,
        max_position_embeddings=BLOCK, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
