"""Training a vocabulary: deterministic, on a seeded sample, with every frequent character in it."""

import dataclasses
import random
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
    first, read, taken = sample_documents(corpus, 0.2, seed=0)
    assert read == {0: 1_000_000} and taken == {0: 200_000} and len(first) == 200
    assert first == sorted(first) and first == sample_documents(corpus, 0.2, seed=0).texts
    assert first != sample_documents(corpus, 0.2, seed=1).texts
    assert abs(np.mean([int(text[:4]) for text in first]) - 499.5) < 4 * 288.7 / 200**0.5
    assert sample_documents(corpus, 0, seed=0).texts == [document.text for document in corpus]


def three_scripts() -> list[Document]:
    """4,000 English documents, 400 Russian ones and 40 Chinese ones, 100 bytes each, in one input each."""
    texts = ["x" * 100] * 4000 + ["ж" * 50] * 400 + ["中" * 33 + "."] * 40
    return [Document(i, 0, text, 0, (i >= 4000) + (i >= 4400)) for i, text in enumerate(texts)]


@pytest.mark.parametrize("limit_mb", [0.01, 0])
@pytest.mark.parametrize("smoothing", [0.7, 0.3, 0.0])
def test_smoothed_shares_of_three_languages(smoothing, limit_mb):
    """The shares are p^smoothing, whether the limit or the smallest input decides how large the sample is; no text twice."""
    texts, read, taken = sample_documents(three_scripts(), limit_mb, 0, smoothing)
    assert read == {0: 400_000, 1: 40_000, 2: 4_000}
    expected = np.array([100.0, 10.0, 1.0]) ** smoothing
    total = sum(taken.values())
    shares = np.array([taken[number] for number in range(3)]) / total
    assert np.abs(shares - expected / expected.sum()).max() < 3 * 100 / total  # an input's last document may not fit
    scarce = 4_000 * expected.sum() / expected[2]
    assert total == pytest.approx(min(limit_mb * 1e6 or np.inf, scarce), abs=300)
    assert texts.count("中" * 33 + ".") * 100 == taken[2] <= read[2]


def test_smoothing_keeps_a_small_languages_characters(tmp_path, capsys):
    """A hundredth of the text in Chinese and in Russian: the sample of the text as it is had hardly any of it."""
    chance = random.Random(0)
    alphabets = {"en": "abcdefghij", "ru": "бвгджзклмн", "zh": "中文人大小山水日月火"}
    for (name, letters), number in zip(alphabets.items(), (3000, 30, 30), strict=True):
        documents = ["".join(chance.choice(letters) for _ in range(90)) for _ in range(number)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    inputs = tuple(str(tmp_path / f"{name}.txt") for name in alphabets)
    known = {}
    for smoothing in (1.0, 0.3):
        config = TrainTokenizerConfig(inputs, tmp_path / "tok", 120, sample_mb=0.004, smoothing=smoothing)
        run_train_tokenizer(config)
        tokenizer = Tokenizer.load(tmp_path / "tok")
        known[smoothing] = {
            name: sum(tokenizer.id(letter) is not None for letter in letters) for name, letters in alphabets.items()
        }
    assert known[0.3] == dict.fromkeys(alphabets, 10)
    assert known[1.0]["en"] == 10 and known[1.0]["ru"] + known[1.0]["zh"] < 20
    rows = [line for line in capsys.readouterr().out.splitlines() if "zh.txt: " in line]
    of_all = f"({30 * 90 * 3 / (3000 * 90 + 30 * 90 * (2 + 3)):.1%})"  # bytes of UTF-8
    assert len(rows) == 2 and rows[0] != rows[1] and all(row.endswith(of_all) for row in rows)


def test_smoothing_wants_several_inputs_with_text(tmp_path):
    (tmp_path / "one.txt").write_text("\n \n")
    (tmp_path / "two.txt").write_text("")
    inputs = tuple(str(tmp_path / name) for name in ("one.txt", "two.txt"))
    with pytest.raises(UserError, match="and there is one: name a file or folder for each language"):
        run_train_tokenizer(TrainTokenizerConfig(inputs[:1], tmp_path / "tok", smoothing=0.7))
    with pytest.raises(UserError, match="no text found"):
        run_train_tokenizer(TrainTokenizerConfig(inputs, tmp_path / "tok", smoothing=0.7))
    with pytest.raises(UserError, match=r"smoothing is 1\.5: expected 0 to 1"):
        run_train_tokenizer(TrainTokenizerConfig(inputs, tmp_path / "tok", smoothing=1.5))


def test_every_frequent_character_is_in_the_vocabulary():
    tokenizer = train_wordpiece(["abc äöü 中文 don't.", "déjà 日本"] * 5, 100, character_coverage=1.0)
    for text in ("cab", "üäö", "文中日本", "éj à", "tnod", "'."):
        assert tokenizer.unk_id not in tokenizer.encode(text).ids
    assert tokenizer.id("##文") is None and tokenizer.id("##.") is None, "these never continue a word"
