"""Input that never ends, or is no file, is refused in one sentence, at a stated limit."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.retrieval.documents import Sources, read_documents
from finetune.tasks.classification.records import Columns, read_texts
from finetune.tasks.ner.records import read_sentences
from finetune.tasks.qa.commands import EvaluateQAConfig, run_evaluate
from finetune.tasks.qa.records import read_questions
from finetune.tasks.relation.records import read_pairs
from pretrain.data.corpus import Document
from pretrain.data.span_annotations import SpanSidecar
from spanbert.checkpoint.file_kinds import snapshot_of
from spanbert.errors import UserError

QUESTION = {"id": "1", "question": "Who?", "context": "Ann", "answers": {"text": ["Ann"], "answer_start": [0]}}
READERS = {
    "classify": (lambda path: read_texts(path, "predict", Columns()).texts, "a text\n"),
    "ner": (lambda path: read_sentences(path, "predict").sentences, "a text\n"),
    "relation": (lambda path: read_pairs(path, "predict").pairs, "<e1>Ann</e1> of <e2>Ulm</e2>\n"),
    "qa": (lambda path: list(read_questions(path, "predict").questions), json.dumps(QUESTION) + "\n"),
}  # fmt: skip


class Endless(io.RawIOBase):
    """What ``yes`` writes."""

    given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert self.given < 1 << 20, "reading does not end"
        buffer[:] = (b"y\n" * (len(buffer) // 2 + 1))[: len(buffer)]
        self.given += len(buffer)
        return len(buffer)


def stdin(monkeypatch: pytest.MonkeyPatch, raw: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(raw)))


@pytest.mark.parametrize("task", READERS)
def test_standard_input_has_a_limit(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, text = READERS[task]
    stdin(monkeypatch, io.BytesIO(text.encode()))
    assert len(read(Path("-"))) == 1
    monkeypatch.setattr("finetune.records.TEXT_BYTES", 1000)
    monkeypatch.setattr("spanbert.files.READ_BYTES", 100)
    stdin(monkeypatch, Endless())
    with pytest.raises(UserError, match=r"^standard input holds more than 1,000 bytes, the most that is read for"):
        read(Path("-"))


@pytest.mark.parametrize("task", READERS)
def test_labelled_files_are_files(task: str, tmp_path: Path) -> None:
    """Folders and pipes were said not to be there."""
    read, _ = READERS[task]
    os.mkfifo(tmp_path / "pipe")
    refused = {tmp_path: "a folder", tmp_path / "pipe": "a pipe or a device", Path("/dev/zero"): "a pipe or a device",
               tmp_path / "none": "no such file", tmp_path / ("x" * 300): "cannot be read"}  # fmt: skip
    for path, words in refused.items():
        with pytest.raises(UserError, match=rf"^{path}: {words}"):
            read(path)


def test_a_line_of_spans_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.data.span_annotations.LONGEST_LINE", 20)
    path = tmp_path / "spans.jsonl"
    path.write_text(f"[[0, 3], [4, 7]]\n[{'[0, 3], ' * 1000}[4, 7]]\n")
    sidecar = SpanSidecar(path)
    assert sidecar.take([Document(0, 0, "the fox", 0)]) == [[(0, 3), (4, 7)]]
    with pytest.raises(UserError, match=r"spans.jsonl:2: longer than 20 characters"):
        sidecar.take([Document(1, 0, "the dog", 0)])


def test_a_line_of_documents_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is too long is left out; those around it are read, under their own numbers."""
    monkeypatch.setattr("finetune.retrieval.documents.LARGEST_FILE", 40)
    lines = [json.dumps({"text": text}) for text in ("Oil it in May.", "word " * 100, "x" * 26, "Ring Marta.")]
    assert [len(line) for line in lines][2] == 38
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n" + lines[1])
    documents, skipped = read_documents([tmp_path])
    assert [(one.id, one.text) for one in documents] == [
        ("a.jsonl#1", "Oil it in May."), ("a.jsonl#3", "x" * 26), ("a.jsonl#4", "Ring Marta."),
    ]  # fmt: skip
    assert [str(one).split(", ")[1] for one in skipped] == ["line 2: longer than 0 MB", "line 5: longer than 0 MB"]


def test_what_is_no_file_is_no_document(tmp_path: Path) -> None:
    """A pipe in a folder was waited for, and never ended."""
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nothing")
    found = Sources.under([tmp_path])
    assert found.files == []
    assert [one.reason for one in found.skipped] == ["no file: a pipe, a device, or a link to nothing"] * 2
    with pytest.raises(UserError, match="neither a file nor a folder"):
        Sources.under([tmp_path / "pipe.txt"])


@pytest.mark.parametrize("content", [b"x" * 2000, None])
def test_the_name_of_a_version_is_short(content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "0a1b").mkdir(parents=True)
    (tmp_path / "refs").mkdir()
    main = tmp_path / "refs" / "main"
    main.write_bytes(b"\xff\x00" if content is None else content)
    if content is None:  # names nothing: the only version is meant
        assert snapshot_of(tmp_path) == tmp_path / "snapshots" / "0a1b"
        return
    with pytest.raises(
        UserError, match=r"main holds more than 1,024 bytes, the most that is read for a version's name"
    ):
        snapshot_of(tmp_path)


def test_scores_of_a_predictions_file_go_where_they_can(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """That the output cannot be written was said after the scores, and not at all where there was nothing to score."""
    labelled, predicted, taken = tmp_path / "gold.json", tmp_path / "predicted.json", tmp_path / "taken"
    labelled.write_text(json.dumps(QUESTION))
    predicted.write_text('{"1": "Ann"}')
    taken.write_text("")
    config: Callable[[Path, Path], EvaluateQAConfig] = lambda file, output: EvaluateQAConfig(  # noqa: E731
        labelled, predictions=file, output=output
    )
    with pytest.raises(UserError, match=rf"^--output {taken} is a file"):
        run_evaluate(config(predicted, taken))
    assert not capsys.readouterr().out
    run_evaluate(config(predicted, tmp_path / "scores"))
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["exact"] == 100
    os.mkfifo(tmp_path / "pipe")
    for wrong, words in ((tmp_path, "is a folder"), (Path("/dev/zero"), "is a device")):
        with pytest.raises(UserError, match=words):
            run_evaluate(config(wrong, tmp_path / "scores"))
