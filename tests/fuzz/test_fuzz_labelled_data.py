"""Broken labelled files end in right examples or in one sentence, never in a traceback, and never hang."""

import csv
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.records import Purpose
from finetune.tasks.classification.features import encode_texts
from finetune.tasks.classification.records import Columns, read_texts
from finetune.tasks.qa.encode import encode_questions, encode_with_texts
from finetune.tasks.qa.features import WindowConfig
from finetune.tasks.qa.records import read_questions
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.tokenizer.wordpiece import Tokenizer
from tests.fuzz.cases import SEED, fuzz
from tests.fuzz.mutations import dump, mutate_bytes, mutate_text, mutate_value
from tests.qa_samples import data, tokenizer

__all__ = ["data", "tokenizer"]

FAST_CASES = 30

PURPOSES: tuple[Purpose, ...] = ("train", "evaluate", "predict")
CONTEXT = "The old mill was built by the river. The canal was opened in 1901 by José in Zürich."
ROWS = [
    {"id": f"r{n}", "title": "Mill", "context": CONTEXT, "question": "When?", "answers": answers}
    for n, answers in enumerate([{"text": ["1901"], "answer_start": [61]}, {"text": [], "answer_start": []}])
]
TEXTS = [{"text": f"from that day {n}", "label": label} for n, label in enumerate(("good", "bad", "good", 3))]


def table(delimiter: str) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    writer.writerow(TEXTS[0])
    writer.writerows(row.values() for row in TEXTS)
    return stream.getvalue()


def good_values(name: str, folder: Path) -> list[Any]:
    """The JSON documents of a good file."""
    if name in ("qa_v1.json", "qa_v2.json"):
        return [json.loads((folder / name).read_text(encoding="utf-8"))]
    if name == "qa_mrqa.jsonl":
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return {"flat.jsonl": ROWS, "flat.json": [{"data": ROWS}], "texts.jsonl": TEXTS, "texts.json": [TEXTS]}[name]


def maker(name: str, folder: Path) -> Callable[[random.Random], bytes]:
    """Draws one broken file: up to three changes of values, of text and of bytes."""
    plain = {"texts.tsv": table("\t"), "texts.csv": table(","), "texts.txt": "good from that day\nbad the end\n"}.get(
        name
    )
    values = [] if plain is not None else good_values(name, folder)

    def make(draw: random.Random) -> bytes:
        documents = values
        for _ in range(draw.randrange(4) if plain is None else 0):
            documents = mutate_value(draw, documents)
            documents = documents if isinstance(documents, list) else [documents]
        text = plain if plain is not None else "\n".join(dump(draw, document) for document in documents)
        for _ in range(draw.choice((0, 0, 1, 2)) if plain is None else draw.randrange(4)):
            text = mutate_text(draw, text)
        content = text.encode("utf-8", "surrogatepass")
        return mutate_bytes(draw, content) if draw.random() < 0.3 else content

    return make


def read_qa(path: Path, purpose: Purpose, tokenizer: Tokenizer) -> tuple[int, int]:
    """Examples and malformed records. What is read must be right: spans are the answers, labels are tokens of windows."""
    found = read_questions(path, purpose)
    for paragraph in found.paragraphs:
        for question in paragraph.questions:
            assert all(0 <= start < end <= len(paragraph.context) for start, end in question.spans)
            question.id.encode()
            if (
                not path.name.startswith("qa_mrqa")
                and purpose != "predict"
                and "detected_answers" not in path.read_text("utf-8", "replace")
            ):
                assert [paragraph.context[start:end] for start, end in question.spans] == list(question.answers)
    encode = encode_questions if purpose == "train" else encode_with_texts
    features = encode(found.paragraphs, tokenizer, WindowConfig(48, 7, 20), found.report.malformed)
    if features.examples:
        labels, lengths = features.labels_W2, features.lengths
        assert (labels >= 0).all()
        assert (labels[:, 1] < lengths).all()
        assert (labels[:, 0] <= labels[:, 1]).all()
        features.packed(np.arange(len(lengths)))
    if purpose == "predict" and features.examples:
        task = QATask(QASettings(48, 7, 20))
        for question in range(features.examples):
            first, stop = features.bounds[question : question + 2]
            logits = [np.zeros((2, n), np.float32) for n in features.lengths[first:stop]]
            json.dumps(
                task.record(features, question, task.decode(features, question, logits)), ensure_ascii=False
            ).encode()
    found.summary().encode()
    return features.examples, sum(found.report.skipped.values())


def read_classification(path: Path, purpose: Purpose, tokenizer: Tokenizer) -> tuple[int, int]:
    """The same for texts: whatever is read can be written."""
    found = read_texts(path, purpose, Columns())
    labels = tuple(found.labels())
    features = encode_texts(found, tokenizer, 16, labels)
    json.dumps([[record.text, record.label] for record in features.records], ensure_ascii=False).encode()
    features.packed(np.arange(int(features.bounds[-1])))
    found.summary().encode()
    return features.examples, sum(found.report.skipped.values())


FORMATS = (
    "qa_v1.json", "qa_v2.json", "qa_mrqa.jsonl", "flat.jsonl", "flat.json",
    "texts.jsonl", "texts.json", "texts.tsv", "texts.csv", "texts.txt",
)  # fmt: skip


def fuzz_format(
    name: str, cases: int | None, seed: int, data: Path, tokenizer: Tokenizer, folder: Path, seconds: float = math.inf
) -> None:
    path = folder / name
    read_one = read_classification if name.startswith("texts") else read_qa
    number = 0

    def read(content: bytes) -> str:
        nonlocal number
        number += 1
        path.write_bytes(content)
        examples, skipped = read_one(path, PURPOSES[number % 3], tokenizer)
        return ("read in part" if skipped else "read whole") if examples else "nothing left"

    outcomes = fuzz(name, cases, maker(name, data), read, seed, seconds=seconds, printable=True)
    assert outcomes["refused"], "the mutations break nothing"
    assert outcomes["read whole"] or outcomes["read in part"], "the mutations leave nothing to read"


@pytest.mark.parametrize("name", FORMATS)
def test_broken_files_end_in_examples_or_in_a_sentence(
    name: str, data: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    fuzz_format(name, FAST_CASES, SEED, data, tokenizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_broken_files(name: str, seconds: float, data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    fuzz_format(name, None, SEED + 1, data, tokenizer, tmp_path, seconds)
