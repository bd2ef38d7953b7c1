"""Broken files of named entities and of relations end in right examples or in one sentence."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.records import Purpose
from finetune.task import Task
from finetune.tasks.ner.task import NerSettings, NerTask
from finetune.tasks.relation.task import RelationSettings, RelationTask
from spanbert.errors import UserError
from spanbert.terminal import JSON_ESCAPES
from spanbert.tokenizer.wordpiece import Tokenizer
from tests.fuzz.cases import SEED, fuzz
from tests.fuzz.mutations import dump, mutate_bytes, mutate_text, mutate_value
from tests.qa_samples import tokenizer

__all__ = ["tokenizer"]

FAST_CASES = 30
PURPOSES: tuple[Purpose, ...] = ("train", "evaluate", "predict")

ROWS = ["The DT O", "Tate NNP B-ORG", "Modern NNP I-ORG", "opened VBD O", ". . O", "", "José NNP B-PER", "sang VBD O"]
CONLLU = ["# global.columns = ID FORM NER", "# sent_id = 7", "# text = At Zürich", "1\tAt\tO", "2\tZürich\tS-LOC", "",
          "1-2\tdu\t_", "1\tof\tB-X", "2\tit\tE-X"]  # fmt: skip
SEMEVAL = ['1\t"The <e1>mill</e1> made the <e2>flour</e2>."', "Cause-Effect(e1,e2)", "Comment: none", "",
           '2\t"A <e2>canal</e2> in <e1>Zürich</e1>"', "Other"]  # fmt: skip
TACRED = [
    {"id": f"t{n}", "token": ["José", "sang", "at", "the", "Tate"], "subj_start": 0, "subj_end": 0, "obj_start": 3,
     "obj_end": 4, "subj_type": "PERSON", "obj_type": kind, "relation": relation}
    for n, (kind, relation) in enumerate((("ORGANIZATION", "sings_at"), ("CITY", "no_relation")))
]  # fmt: skip
PAIRS = [
    {
        "id": n,
        "text": "José sang at the Tate.",
        "subject": [0, 4, "PER"],
        "object": [17, 21, "ORG"],
        "relation": relation,
    }
    for n, relation in enumerate(("sings_at", "other"))
]
TOKENS: list[Any] = [
    {"id": "a", "tokens": ["Tate", "Modern", "opened"], "tags": ["B-ORG", "I-ORG", "O"]},
    {"text": "José sang.", "spans": [[0, 4, "PER"]]},
    {"text": "José sang.", "entities": [{"start": 0, "end": 4, "label": "PER"}]},
]
LINES = {"ner.conll": ROWS, "ner.conllu": CONLLU, "relation.semeval": SEMEVAL}
RECORDS = {
    "ner.jsonl": TOKENS,
    "relation.tacred.json": TACRED,
    "relation.tacred.jsonl": TACRED,
    "relation.jsonl": PAIRS,
}


def maker(name: str) -> Callable[[random.Random], bytes]:
    def make(draw: random.Random) -> bytes:
        value: Any = LINES.get(name) or RECORDS[name]
        for _ in range(draw.choice((0, 1, 1, 2, 3))):
            value = mutate_value(draw, value)
        values = value if isinstance(value, list) else [value]
        if name in LINES:
            text = "\n".join(str(line) for line in values) + "\n"
        else:
            text = dump(draw, value) if name.endswith("json") else "\n".join(json.dumps(record) for record in values)
        for _ in range(draw.choice((0, 0, 1, 2))):
            text = mutate_text(draw, text)
        content = text.encode("utf-8", "surrogatepass")
        return mutate_bytes(draw, content) if draw.random() < 0.3 else content

    return make


def task_of(name: str, number: int) -> Task:
    """Untrained, for training; else one that knows the labels of the good file."""
    if name.startswith("ner"):
        types = ("ORG", "PER", "LOC", "X")
        labels = () if number % 3 == 0 else ("O", *(f"{letter}-{kind}" for kind in types for letter in "BI"))
        return NerTask(NerSettings(window=12, overlap=3, labels=labels))
    encoding = ("mask", "markers", "typed")[number // 3 % 3]
    kinds = ("", "PER", "ORG", "PERSON", "ORGANIZATION", "CITY")
    relations = ("sings_at", "other", "no_relation", "Cause-Effect(e1,e2)", "Other")
    settings = RelationSettings(window=16, encoding=encoding)
    if number % 3:
        settings = RelationSettings(16, encoding, kinds, kinds, relations)
    return RelationTask(settings)


def reader(name: str, path: Path, tokenizer: Tokenizer) -> Callable[[bytes], str]:
    number = 0

    def read(content: bytes) -> str:
        """Read, learn the labels, encode, decode. Whatever is read can be labelled, predicted, scored and written."""
        nonlocal number
        number += 1
        path.write_bytes(content)
        purpose = PURPOSES[number % 3]
        task = task_of(name, number)
        records = task.read(path, purpose)
        if purpose == "train":
            task = task.learned_from(records)
        json.dumps(task.model_config(), ensure_ascii=False).encode()
        features = task.encode(records, tokenizer.with_tokens(task.new_tokens()), purpose)
        windows = np.arange(int(features.bounds[-1]))
        assert len(features.bounds) == features.examples + 1
        assert (np.asarray(features.lengths) <= task.settings.window).all()
        if features.examples:
            packed = features.packed(windows)
            labels = features.labels(windows)
            assert len(labels) == (packed.cu_seqlens[-1] if name.startswith("ner") else len(windows))
            if not name.startswith("ner"):  # both places are in their sequence
                assert (packed.cu_seqlens[:-1, None] <= packed.at_B2).all()
                assert (packed.at_B2 < packed.cu_seqlens[1:, None]).all()
        draw = np.random.default_rng(number)
        count = task.head()["num_labels"]
        predictions = []
        for example in range(features.examples):
            first, stop = features.bounds[example : example + 2]
            shapes = [(n, count) if name.startswith("ner") else (count,) for n in features.lengths[first:stop]]
            logits = [draw.normal(size=shape).astype(np.float32) for shape in shapes]
            predictions.append(task.decode(features, example, logits))
            json.dumps(task.record(features, example, predictions[-1]), ensure_ascii=False).encode(errors=JSON_ESCAPES)
        if purpose != "predict" and features.examples:
            metrics = task.score(features, predictions)
            task.describe(metrics).encode()
            for written in task.files(features, predictions).values():
                written.encode(errors=JSON_ESCAPES)  # as it is written: an id may be of any kind
        records.summary().encode()
        lost = sum(records.report.skipped.values())
        return ("read in part" if lost else "read whole") if features.examples else "nothing left"

    return read


@pytest.mark.parametrize("name", [*LINES, *RECORDS])
def test_broken_records_end_in_examples_or_in_a_sentence(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    outcomes = fuzz(name, FAST_CASES, maker(name), reader(name, tmp_path / name, tokenizer), printable=True)
    assert outcomes["refused"], "the mutations break nothing"
    assert outcomes["read whole"] or outcomes["read in part"], "the mutations leave nothing to read"


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LINES, *RECORDS])
def test_many_broken_records(name: str, seconds: float, tokenizer: Tokenizer, tmp_path: Path) -> None:
    fuzz(name, None, maker(name), reader(name, tmp_path / name, tokenizer), SEED + 1, seconds=seconds, printable=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ner.jsonl", '{"id": ' + "9" * 5000 + ', "tokens": ["a"], "tags": ["O"]}\n'),
        ("relation.jsonl", '{"id": ' + "9" * 5000 + "}\n"),
        ("relation.json", '[{"id": ' + "9" * 5000 + "}]"),
        ("relation.json", "[" * 100_000),
        ("ner.jsonl", '{"text": "José sang", "spans": [[0, 4, "\\ud800"]]}\n'),
        ("relation.jsonl", json.dumps(PAIRS[0] | {"relation": "\ud800"}) + "\n"),
        ("relation.jsonl", json.dumps(PAIRS[0] | {"subject": [0, 4, "\ud800"]}) + "\n"),
    ],
)
def test_numbers_without_end_and_half_characters_are_refused(
    name: str, content: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A number of more digits than Python reads was a traceback; a class that no file can hold was learnt."""
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"no usable|not JSON that can be read"):
        task_of(name, 0).read(tmp_path / name, "train")
