"""What the bundled reader is trained on, and what is held out of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.release.reader_data import ReaderDataConfig, run
from spanbert.errors import UserError


def article(title: str, questions: int, *, context: str = "A short text.", guessed: int = 0) -> dict:
    qas = [
        {"id": f"{title}-{n}", "question": "Why?", "answers": [{"text": "A", "answer_start": 0}]}
        for n in range(questions)
    ]
    lost = {"question": "How?", "answers": [], "is_impossible": True}
    qas += [{"id": f"{title}-guessed-{n}", **lost, "mapping_agrees": False} for n in range(guessed)]
    qas += [{"id": f"{title}-sure", **lost, "mapping_agrees": True}]
    return {"title": title, "paragraphs": [{"context": context, "qas": qas}]}


def ids_of(path: Path) -> list[str]:
    data = json.loads(gzip.decompress(path.read_bytes()))["data"]
    return [question["id"] for one in data for p in one["paragraphs"] for question in p["qas"]]


@pytest.fixture
def config(tmp_path: Path) -> ReaderDataConfig:
    articles = [article(f"a{n}", 5, guessed=2) for n in range(10)] + [article("long", 5, context="x" * 50)]
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}))
    (tmp_path / "qed.json").write_text(json.dumps({"data": [article("qed", 3)]}))
    files = {"squad": tmp_path / "squad.json", "also": (tmp_path / "qed.json",), "output": tmp_path / "mix"}
    return ReaderDataConfig(**files, questions=30, held_out_articles=3, max_characters=40)


def test_held_out_articles_are_whole_and_training_never_sees_them(config: ReaderDataConfig) -> None:
    run(config)
    train, held_out = (ids_of(config.output / name) for name in ("train.json.gz", "held-out.json.gz"))
    titles = {one.split("-")[0] for one in held_out}
    assert len(titles) == 3
    assert len(held_out) == 3 * 6, "all questions of theirs, but the guessed ones"
    assert not titles & {one.split("-")[0] for one in train}
    assert len(train) == len(set(train)) == 30
    assert not [one for one in train + held_out if "guessed" in one]
    assert "long" not in {one.split("-")[0] for one in train}
    assert "mapping_agrees" not in gzip.decompress((config.output / "held-out.json.gz").read_bytes()).decode()


def test_the_files_depend_on_inputs_and_seed_alone(config: ReaderDataConfig) -> None:
    run(config)
    first = (config.output / "train.json.gz").read_bytes()
    run(config)
    assert (config.output / "train.json.gz").read_bytes() == first


def test_a_file_of_another_form_is_refused(config: ReaderDataConfig) -> None:
    config.squad.write_text('{"rows": []}')
    with pytest.raises(UserError, match='there is no "data"'):
        run(config)
