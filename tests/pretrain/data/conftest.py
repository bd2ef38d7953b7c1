"""Made-up documents, a tokenizer that cuts their words, and a preparation of them in small pieces."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.data.prepare import PrepareConfig
from pretrain.data.train_tokenizer import train_wordpiece

# Accents, Chinese, punctuation within and after words, a number, and a text that looks like a special token.
WORDS = [
    "born",
    "free",
    "equal",
    "dignity",
    "rights",
    "reason",
    "conscience",
    "spirit",
    "naïve",
    "Füße",
    "人权",
    "[SEP]",
    "human,",
    "beings.",
    "don't",
    "1948",
]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """60 documents: a title, and up to 400 words."""
    chance = random.Random(0)
    return [
        f"Title {i}.\n" + " ".join(chance.choice(WORDS) for _ in range(chance.randrange(1, 400))) for i in range(60)
    ]


@pytest.fixture(scope="session")
def tokenizer_folder(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    # Trained on the text backwards: all its characters, but few of its words, so that most words are several pieces.
    train_wordpiece([text[::-1] for text in documents], 200, character_coverage=1.0).save(folder)
    return folder


@pytest.fixture
def corpus_file(documents: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture
def configure(
    tmp_path: Path, tokenizer_folder: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., PrepareConfig]:
    """configure(**changes): blocks of 32 from `corpus_file`, in shards so small that there are many."""
    monkeypatch.setattr("pretrain.data.prepare.SHARD_CHARACTERS", 5000)

    def make(**changes) -> PrepareConfig:
        given = {
            "inputs": (str(corpus_file),),
            "tokenizer": tokenizer_folder,
            "output": tmp_path / "out",
            "block_length": 32,
        }
        return PrepareConfig(**(given | {"processes": 1, "validation_share": 0.1} | changes))

    return make
