"""Texts that are in both places are found, however they are cut into documents; others are not."""

from __future__ import annotations

import json
import lzma
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.release import contamination
from benchmarks.release.contamination import ContaminationConfig, WindowHashes, run, shares_found
from spanbert.errors import UserError


def prose(words: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefgh", k=draw.randrange(2, 7))) for _ in range(words))


COPIED, HALF, FRESH, SHORT = prose(60, 1), prose(60, 2), prose(60, 3), "only four words here"


def squad(path: Path, contexts: list[str]) -> Path:
    """One question on each context: what is its first word?"""
    paragraphs = []
    for number, context in enumerate(contexts):
        answer = {"text": context.split()[0], "answer_start": 0}
        qa = {"id": f"{path.stem}-{number}", "question": f"What begins text {number}?", "answers": [answer]}
        paragraphs.append({"context": context, "qas": [qa]})
    path.write_text(json.dumps({"data": [{"title": "Texts", "paragraphs": paragraphs}]}))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A dev file, a corpus that holds all of its first paragraph and 70 % of its second, and a training file."""
    corpus = tmp_path / "corpus.txt.xz"
    words = HALF.split()
    texts = [
        prose(500, 4),
        f"Title\n{prose(30, 5)}\n{COPIED.upper().replace(' ', ', ')}.",
        " ".join(words[:42]),
        FRESH[:50],
    ]
    with lzma.open(corpus, "wt") as handle:
        handle.write("\n\n".join(texts))
    return {
        "dev": squad(tmp_path / "dev.json", [COPIED, HALF, FRESH, SHORT]),
        "corpus": corpus,
        "train": squad(tmp_path / "train.json", [prose(80, 6), prose(80, 7)]),
        "leaking": squad(tmp_path / "leaking.json", [prose(80, 8), f"{prose(5, 9)} {FRESH}"]),
    }


def test_windows_are_counted_exactly_as_by_brute_force() -> None:
    paragraphs = [prose(40, seed) for seed in range(5)]
    texts = [paragraphs[0][10:], f"{prose(9, 77)} {paragraphs[1]}", prose(200, 78), "", "one"]
    found, windows = shares_found(paragraphs, texts, 4)

    def grams(text: str) -> list[tuple[str, ...]]:
        words = text.split()
        return [tuple(words[i : i + 4]) for i in range(len(words) - 3)]

    there = {gram for text in texts for gram in grams(text)}
    assert windows.tolist() == [37] * 5
    assert found.tolist() == [sum(gram in there for gram in grams(p)) for p in paragraphs]


def test_a_window_does_not_reach_over_the_end_of_a_document() -> None:
    found, _ = shares_found(["a b c d e f"], ["a b c", "d e f"], 4)
    assert found.tolist() == [0]


def test_hashes_do_not_depend_on_the_memory_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = prose(300, 10)
    expected = WindowHashes(5).of(text)
    monkeypatch.setattr(contamination, "MOST_WORDS", 10)
    forgetful = WindowHashes(5)
    for _ in range(3):
        assert np.array_equal(forgetful.of(text), expected)


def test_case_and_punctuation_do_not_hide_a_copy_and_scores_are_given_apart(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    predictions = tmp_path / "predictions.json"
    right = {f"dev-{number}": text.split()[0] for number, text in enumerate([COPIED, HALF])}
    predictions.write_text(json.dumps({**right, "dev-2": "wrong", "dev-3": "only"}))
    config = ContaminationConfig(
        files["dev"],
        corpus=(str(files["corpus"]),),
        train=(files["train"],),
        predictions=predictions,
        json=tmp_path / "out.json",
    )
    result = run(config)
    assert json.loads((tmp_path / "out.json").read_text()) == result
    corpus = result["corpus"]
    assert (corpus["paragraphs"], corpus["paragraphs_seen"], corpus["paragraphs_whole"]) == (4, 2, 1)
    assert (corpus["paragraphs_too_short"], corpus["documents"]) == (1, 4)
    assert corpus["windows_found"] == 48 + 30
    assert result["scores"]["seen"] == {"exact": 100.0, "f1": 100.0, "total": 2, "missing": 0}
    assert result["scores"]["unseen"] == {"exact": 50.0, "f1": 50.0, "total": 2, "missing": 0}
    assert result["train"][0]["paragraphs_seen"] == 0
    assert "2 of 4 paragraphs" in capsys.readouterr().out


@pytest.mark.parametrize(("train", "status"), [("train", 0), ("leaking", 1)])
def test_a_dev_paragraph_in_the_training_file_is_an_error(
    files: dict[str, Path], train: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["contamination", str(files["dev"]), "--train", str(files[train])])
    assert contamination.main() == status


def test_questions_asked_in_both_files_are_named(files: dict[str, Path]) -> None:
    result = run(ContaminationConfig(files["dev"], train=(files["train"],)))
    assert result["train"][0]["questions_repeated"] == ["What begins text 0?", "What begins text 1?"]


def test_nothing_to_compare_with_is_a_mistake(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="--corpus, --train or both"):
        run(ContaminationConfig(files["dev"]))
