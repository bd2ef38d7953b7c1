"""Training a vocabulary: deterministic, on a seeded sample, with every frequent character in it."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from pretrain.data.corpus import Document
from pretrain.data.train_tokenizer import TrainTokenizerConfig, run_train_tokenizer, sample_documents, train_wordpiece
from spanbert.errors import UserError
from spanbert.tokenizer import wordpiece
from spanbert.tokenizer.wordpiece import Tokenizer


def test_tokenizer_command(corpus_file, tmp_path, capsys):
    config = TrainTokenizerConfig(inputs=(str(corpus_file),), output=tmp_path / "tok", vocab_size=150, sample_mb=0.02)
    run_train_tokenizer(config)
    printed = capsys.readouterr().out
    assert "of 60 documents" in printed and "sample limit 0.02 MB" in printed
    tokenizer = Tokenizer.load(tmp_path / "tok")
    assert tokenizer.special_ids.tolist() == [0, 1, 2, 3, 4] and tokenizer.vocab_size <= 150
    with pytest.raises(UserError, match="vocab_size is 3: expected 10 to"):
        run_train_tokenizer(TrainTokenizerConfig(inputs=(str(corpus_file),), output=tmp_path / "x", vocab_size=3))
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(UserError, match="no text found"):
        run_train_tokenizer(TrainTokenizerConfig(inputs=(str(empty),), output=tmp_path / "x"))


def test_a_models_vocabulary_is_never_replaced(corpus_file, tmp_path):
    """--output MODEL overwrote the vocabulary that the weights beside it belong to."""
    config = TrainTokenizerConfig(inputs=(str(corpus_file),), output=tmp_path / "model", vocab_size=150)
    run_train_tokenizer(config)
    run_train_tokenizer(config)  # a tokenizer alone is replaced
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with pytest.raises(UserError, match=r"holds model\.safetensors, which is no part of a tokenizer"):
        run_train_tokenizer(config)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    with pytest.raises(UserError, match="is a file"):
        run_train_tokenizer(TrainTokenizerConfig(inputs=(str(corpus_file),), output=corpus_file))


def test_a_tokenizers_files_come_together(corpus_file, tmp_path, monkeypatch):
    """Interrupted between its files, a folder held the vocabulary of one tokenizer and the settings of another."""
    config = TrainTokenizerConfig(inputs=(str(corpus_file),), output=tmp_path / "tok", vocab_size=150)
    run_train_tokenizer(config)
    before = Tokenizer.load(tmp_path / "tok").fingerprint
    write, written = wordpiece.write_atomic, []

    def interrupt(path, content):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(wordpiece, "write_atomic", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_train_tokenizer(dataclasses.replace(config, lowercase=True, vocab_size=120))
    assert written and Tokenizer.load(tmp_path / "tok").fingerprint == before
    assert sorted(path.name for path in tmp_path.iterdir() if path != corpus_file) == ["tok"]


def test_training_is_deterministic_in_new_processes(corpus_file, tmp_path):
    """The library numbers "##x" pieces by a randomised hash map: two processes used to give two vocabularies."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom pretrain.data.train_tokenizer import train_wordpiece\n"
        "text = Path(sys.argv[1]).read_text()\nprint(train_wordpiece(text.split('\\n\\n'), 150).fingerprint)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program, str(corpus_file)], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert len({run.stdout.split()[-1] for run in runs}) == 1


def test_sample_is_seeded_uniform_and_bounded():
    corpus = [Document(i, 0, f"{i:04d}" + "x" * 996, 0) for i in range(1000)]
    first, seen = sample_documents(corpus, 0.2, seed=0)
    assert seen == 1_000_000 and len(first) == 200
    assert first == sorted(first) and first == sample_documents(corpus, 0.2, seed=0)[0]
    assert first != sample_documents(corpus, 0.2, seed=1)[0]
    assert abs(np.mean([int(text[:4]) for text in first]) - 499.5) < 4 * 288.7 / 200**0.5
    assert sample_documents(corpus, 0, seed=0)[0] == [document.text for document in corpus]


def test_every_frequent_character_is_in_the_vocabulary():
    tokenizer = train_wordpiece(["abc äöü 中文 don't.", "déjà 日本"] * 5, 100, character_coverage=1.0)
    for text in ("cab", "üäö", "文中日本", "éj à", "tnod", "'."):
        assert tokenizer.unk_id not in tokenizer.encode(text).ids
    assert tokenizer.id("##文") is None and tokenizer.id("##.") is None, "these never continue a word"
