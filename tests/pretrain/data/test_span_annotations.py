"""Linguistic spans beside a corpus: from characters of a document to tokens of a block."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from pretrain.data import shards
from pretrain.data.prepare import run_prepare
from pretrain.data.shards import token_spans
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import Tokenizer


def test_spans_become_whole_word_token_spans():
    #        0    1    2     3    4   5     tokens; words: 0-1, 2, 3-5
    offsets = np.array([[0, 3], [3, 5], [6, 9], [10, 12], [12, 14], [14, 15]])
    starts = np.array([True, False, True, True, False, False])

    def convert(*spans):
        return token_spans(list(spans), offsets, starts).tolist()

    assert convert((0, 5)) == [[0, 2]]
    assert convert((1, 2)) == [[0, 2]], "part of a word: all of it"
    assert convert((5, 6)) == [], "the blank between two words"
    assert convert((6, 13)) == [[2, 6]]
    assert convert((5, 9), (0, 5)) == [[0, 2], [2, 3]], "sorted"
    assert convert((0, 9), (6, 15)) == [[0, 3]], "overlapping: the earlier stays"
    assert convert((6, 9), (6, 15)) == [[2, 6]], "with the same start: the longer stays"
    assert convert((14, 99)) == [[3, 6]]
    assert convert((20, 30)) == [] and convert() == []
    assert token_spans([(0, 5)], np.zeros((0, 2)), np.zeros(0, dtype=bool)).shape == (0, 2)


def entity_spans(text: str) -> list[list[int]]:
    """Every "human, beings" and "人权" of a text."""
    found = []
    for phrase in ("dignity", "naïve", "人权"):
        at = text.find(phrase)
        while at >= 0:
            found.append([at, at + len(phrase)])
            at = text.find(phrase, at + 1)
    return sorted(found)


def write_sidecar(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps(entity_spans(text)) + "\n" for text in documents))
    return path


def test_span_sidecar_reaches_the_blocks(configure, tmp_path, tokenizer_folder, monkeypatch, documents):
    monkeypatch.setattr(shards, "PART_CHARACTERS", 50)
    sidecar = write_sidecar(tmp_path / "spans.jsonl", documents)
    config = configure(spans=sidecar)
    run_prepare(config)
    tokenizer = Tokenizer.load(tokenizer_folder)
    kept = 0
    for split in ("train", "validation"):
        for row in datasets.load_from_disk(str(config.output / split)):
            for start, end in row["spans"]:
                ids = row["input_ids"][start:end]
                phrase = "".join(tokenizer.token(i).removeprefix("##") for i in ids)
                assert phrase in ("dignity", "naïve", "人权"), phrase
                kept += 1
    report = json.loads((config.output / "prepare.json").read_text())["report"]
    total = sum(len(entity_spans(text)) for text in documents)
    assert report["spans"] == kept and report["spans"] + report["dropped_spans"] == total
    assert 0 < report["dropped_spans"] < 0.2 * total


def test_span_sidecar_beside_parts_and_empty_documents(configure, tmp_path, monkeypatch, documents):
    monkeypatch.setattr("pretrain.data.corpus.PART_BYTES", 700)
    texts = ["", documents[0], "", *documents[1:], ""]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = configure(inputs=(str(path),), spans=write_sidecar(tmp_path / "spans.jsonl", texts), block_length=4096)
    run_prepare(config)
    report = json.loads((config.output / "prepare.json").read_text())["report"]
    total = sum(len(entity_spans(text)) for text in texts)
    assert report["dropped_spans"] == 0 and 0.97 * total <= report["spans"] <= total


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: lines[:-1], r"spans.jsonl ends at line 59, but document 60"),
        (lambda lines: [*lines, "[]"], "more lines than the input has documents"),
        (lambda lines: ["{}", *lines[1:]], r"spans.jsonl:1: expected"),
        (lambda lines: [lines[0], "[[3, 2]]", *lines[2:]], r"spans.jsonl:2: expected"),
        (lambda lines: [lines[0], "[[3, 4.5]]", *lines[2:]], r"spans.jsonl:2: expected"),
        (lambda lines: [lines[0], "nonsense", *lines[2:]], r"spans.jsonl:2: expected"),
    ],
)
def test_a_bad_sidecar_names_its_line(change, message, configure, tmp_path, documents):
    sidecar = write_sidecar(tmp_path / "spans.jsonl", documents)
    sidecar.write_text("\n".join(change(sidecar.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=message):
        run_prepare(configure(spans=sidecar))


def test_a_missing_sidecar(configure, tmp_path):
    with pytest.raises(UserError, match=r"absent\.jsonl is no file"):
        run_prepare(configure(spans=tmp_path / "absent.jsonl"))
