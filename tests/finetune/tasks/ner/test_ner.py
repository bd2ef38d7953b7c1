"""Sentences and their entities: every format, words and offsets, and training to prediction."""

import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForTokenClassification

from finetune.tasks.ner.commands import (
    EvaluateNerConfig,
    FinetuneNerConfig,
    PredictNerConfig,
    names_of,
    run_evaluate,
    run_finetune,
    run_predict,
)
from finetune.tasks.ner.features import IGNORED
from finetune.tasks.ner.records import Span, read_sentences
from finetune.tasks.ner.schemes import Entity
from finetune.tasks.ner.task import NerSettings, NerTask
from finetune.tasks.ner.words import place_words, split_words
from spanbert.checkpoint.model_folder import build_model, save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering, SpanBertForTokenClassification
from spanbert.model.packing import unpack
from spanbert.tokenizer.wordpiece import Tokenizer
from tests.sentence_samples import sentence_set

#: The same two sentences everywhere: (word, tag)
SAID = [
    [("Ann", "B-PER"), ("Lee", "I-PER"), ("left", "O"), ("Rome", "B-LOC"), (".", "O")],
    [("#", "O"), ("Lee", "B-PER"), ("Ann", "B-PER")],
]
TEXTS = ["Ann Lee left Rome .", "# Lee Ann"]
SPANS = [(Span(0, 7, "PER"), Span(13, 17, "LOC")), (Span(2, 5, "PER"), Span(6, 9, "PER"))]


def columns(line: Callable[[int, str, str], str], head: str = "") -> str:
    return head + "\n".join("".join(line(n, *pair) + "\n" for n, pair in enumerate(words, 1)) for words in SAID)


CONTENTS = {
    "two.conll": columns(lambda n, word, tag: f"{word} {tag}"),
    "tabs.conll": columns(lambda n, word, tag: f"{word}\t{tag}"),
    "2003.txt": columns(
        lambda n, word, tag: f"{word} NNP I-NP {tag}", "-DOCSTART- -X- -X- O\n\n"
    ),
    "numbered.iob2": columns(
        lambda n, word, tag: f"{n}\t{word}\t{tag}\t-\tann" if tag != "O" else f"{n}\t{word}\t{tag}",
        "# newdoc id = d\n# sent_id = d-1\n# text = Ann Lee left Rome .\n",
    ),
    "plus.conllup": columns(
        lambda n, word, tag: f"{n}\t{word}\t{tag}\tB-X\t_", "# global.columns = ID FORM NER CHUNK MISC\n"
    ),
    "crlf.conll": columns(lambda n, word, tag: f"{word}\t{tag}").replace("\n", "\r\n"),
    "bioes.conll": "Ann B-PER\nLee E-PER\nleft O\nRome S-LOC\n. O\n\n# O\nLee S-PER\nAnn S-PER\n",
    "iob1.conll": "Ann I-PER\nLee I-PER\nleft O\nRome I-LOC\n. O\n\n# O\nLee I-PER\nAnn B-PER\n",
    "tokens.jsonl": "".join(
        json.dumps({"tokens": [w for w, _ in words], "ner_tags": [t for _, t in words]}) + "\n" for words in SAID
    ),
    "lists.jsonl": "".join(
        json.dumps({"text": text, "label": spans}) + "\n" for text, spans in zip(TEXTS, SPANS)
    ),
    "objects.jsonl": "".join(
        json.dumps({"text": text, "spans": [{"start": a, "end": b, "label": c} for a, b, c in spans]}) + "\n"
        for text, spans in zip(TEXTS, SPANS)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_all_formats_say_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENTS[name].encode())
    found = read_sentences(path, "evaluate", "NER" if name == "plus.conllup" else None)
    assert [one.text for one in found.sentences] == TEXTS
    assert [one.spans for one in found.sentences] == SPANS
    assert [one.text[a:b] for one in found.sentences for a, b in one.words] == [w for words in SAID for w, _ in words]
    assert [len(one.entities or ()) for one in found.sentences] == [2, 2]
    unlabelled = read_sentences(path, "predict")
    assert [one.text for one in unlabelled.sentences] == TEXTS
    assert [one.entities for one in unlabelled.sentences] == [None, None]
    if name == "numbered.iob2":
        assert [one.id for one in found.sentences] == ["d-1", ""]
        assert found.notes == ["tags in column 3, IOB2"]


def test_the_original_text_is_kept_where_the_words_stand_in_it() -> None:
    assert place_words(["do", "n't", "!"], "don't !") == ("don't !", [(0, 2), (2, 5), (6, 7)])
    assert place_words(["do", "not"], "don't") == ("do not", [(0, 2), (3, 6)])
    assert place_words(["do"], "do it") == ("do", [(0, 2)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mr. O'Neil's U.S. tour (1,000.5 km)", "Mr . O ' Neil 's U.S. tour ( 1,000.5 km )"),
        ("See https://a.b/c?d=1. Mail x.y@z.org, @me #tag!", "See https://a.b/c?d=1 . Mail x.y@z.org , @me #tag !"),
        ("北京是city", "北 京 是 city"),
        ("हिन्दी cafe\u0301s 12:30", "हिन्दी cafe\u0301s 12:30"),
        ("we'll\u00a0go—now", "we 'll go — now"),
    ],
)
def test_words_of_raw_text(text: str, words: str) -> None:
    assert [text[a:b] for a, b in split_words(text)] == words.split()


def test_every_character_is_in_one_word(data: Path) -> None:
    for text in (data / "wikinews_sentences.txt").read_text(encoding="utf-8").splitlines():
        spans = split_words(text)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert "".join(text[a:b] for a, b in spans) == "".join(text.split())


LONG = "Ann O\n" * 20
BROKEN = [
    ("t.conll", f"{LONG}Rome\n", r"line 21: too few columns: 1, expected 2; correct the record"),
    ("t.conll", f"{LONG}Rome X-LOC\n", r"line 21: unknown tag scheme: 'X-LOC'"),
    ("t.conll", f"{LONG}Rome B-\n", "line 21: empty class: the tag 'B-' names no type"),
    ("t.conll", "Ann B_PER\nLee O\n", "line 1: unknown tag scheme: 'B_PER' in the last column"),
    ("t.conll", "Ann\nLee\n", "line 1: too few columns"),
    ("t.conll", "Ann O\nLee B-PER\n\nLee I-PER\n", "line 4: an entity across a sentence's end: this one begins with I-PER"),
    ("t.conll", "Ann B-PER\n. O\nLee B-CAR\n", "line 1: unknown type: 'CAR'; the model knows LOC, PER"),
    ("t.conll", "\tO\n", "line 1: empty word"),
    ("t.conll", "", "no usable sentence"),
    ("t.jsonl", '{"text": "Ann", "label": [[0, 4, "PER"]]}\n', "line 1: a span outside the text: 0 to 4 of 3"),
    ("t.jsonl", '{"text": "Ann Lee", "label": [[0, 7, "PER"], [4, 7, "PER"]]}\n', "line 1: entities that overlap: PER at 4"),
    ("t.jsonl", '{"text": "Ann", "label": [[0, 3, " "]]}\n', "line 1: empty class"),
    ("t.jsonl", '{"text": "Ann", "label": [["a", 3, "PER"]]}\n', "line 1: field of the wrong type"),
    ("t.jsonl", '{"text": "Ann"}\n', 'line 1: missing field:? "spans"'),
    ("t.jsonl", '{"tokens": ["Ann"], "tags": ["O", "O"]}\n', "line 1: another number of tags: 2 for 1"),
    ("t.jsonl", '{"tokens": ["Ann"], "ner_tags": [3]}\n', 'line 1: tags without names: "ner_tags" holds numbers; name them .* --tag-names O,B-PER,I-PER'),
    ("t.jsonl", '{"tokens": ["Ann"], "ner_tags": [true]}\n', 'line 1: tags without names: "ner_tags" must hold names .* not true'),
    ("t.jsonl", "{broken\n", "line 1: line is not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_mistakes_in_files_are_one_sentence(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_sentences(tmp_path / name, "evaluate", None, frozenset({"PER", "LOC"}))


def test_numbers_are_read_by_the_names_of_the_tags(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"tokens": ["Ann", "Lee", "in", "Rome"], "ner_tags": [1, 2, 0, 3]}\n{"tokens": ["Rome"], "tags": ["B-LOC"]}\n'
    )
    names = names_of("O, B-PER,I-PER,B-LOC")
    found = read_sentences(tmp_path / "t.jsonl", "evaluate", tag_names=names)
    assert [one.entities for one in found.sentences] == [
        (Entity(0, 2, "PER"), Entity(3, 4, "LOC")),
        (Entity(0, 1, "LOC"),),
    ]
    for few in (names[:3], names[:2]):
        with pytest.raises(UserError, match=r"line 1: a tag number without a name: [23] in .* has [32] names"):
            read_sentences(tmp_path / "t.jsonl", "evaluate", tag_names=few)
    (tmp_path / "t.jsonl").write_text('{"tokens": ["Ann"], "ner_tags": [-1]}\n')
    with pytest.raises(UserError, match="a tag number without a name: -1"):
        read_sentences(tmp_path / "t.jsonl", "evaluate", tag_names=names)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("O,PER", "--tag-names O,PER: unknown tag scheme"),
        ("O,,B-PER", "unknown tag scheme: ''"),
        ("O,B-PER,O", "O is there twice"),
    ],
)
def test_tag_names_of_no_scheme_are_refused(option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names_of(option)


def test_a_model_keeps_the_names_of_the_tags(tmp_path: Path) -> None:
    settings = FinetuneNerConfig(Path("t"), Path("o"), "random", tag_names="O,B-PER,I-PER").task().settings
    task = NerTask.of_model(NerTask(settings).model_config(), 512, "config.json")
    (tmp_path / "t.jsonl").write_text('{"tokens": ["Ann", "left"], "ner_tags": [1, 0]}\n')
    assert task.read(tmp_path / "t.jsonl", "evaluate").types() == ["PER"]


def test_a_tag_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text(CONTENTS["two.conll"])
    with pytest.raises(UserError, match='has no column "NER": it has 2 and names no columns'):
        read_sentences(tmp_path / "t.conll", "evaluate", "NER")


def test_training_skips_counts_and_names_malformed_sentences(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text(f"Ann B-PER\n\nRome\n\nLee B-\nleft O\n\n{LONG}")
    found = read_sentences(tmp_path / "t.conll", "train")
    assert [one.text[:3] for one in found.sentences] == ["Ann", "Ann"]
    assert found.report.skipped == {"too few columns": 1, "empty class": 1}
    assert "skipped 2 malformed records" in found.summary()


def test_entities_without_b_are_read_as_conlleval_does_and_counted(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("Ann B-PER\nleft O\nRome I-LOC\n")
    found = read_sentences(tmp_path / "t.conll", "evaluate")
    assert found.sentences[0].spans == (Span(0, 3, "PER"), Span(9, 13, "LOC"))
    assert found.notes[-1] == "1 entities begin without B-, read as conlleval reads them"


def test_a_span_inside_a_word_counts_as_the_file_has_it(tmp_path: Path) -> None:
    """It is learned as the whole word; the score compares characters, so that it is never found and never forgotten."""
    (tmp_path / "t.jsonl").write_text('{"text": "Rome2 x", "entities": [[0, 4, "LOC"]]}\n')
    found = read_sentences(tmp_path / "t.jsonl", "evaluate")
    assert found.sentences[0].spans == (Span(0, 4, "LOC"),)
    assert "begin or end inside a word" in found.notes[0]


# --- the task ----------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_transformers(
    tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering], losses_here_and_in_transformers: Any
) -> None:
    features = sentence_set(tokenizer, ["from that end", "zzyx the", "the end was from there " * 3], 16)
    task = NerTask(NerSettings(16, 4, labels=("O", "B-X", "I-X")))
    model = build_model(SpanBertForTokenClassification, make_model().config, 3, num_labels=3)
    torch.nn.init.normal_(model.classifier.weight, std=1.0, generator=torch.Generator().manual_seed(0))

    def labels(batch: Any, ours: torch.Tensor) -> torch.Tensor:
        return unpack(ours, batch.cu_seqlens, batch.max_seqlen, fill=IGNORED)

    here, there = losses_here_and_in_transformers(task, model, features, BertForTokenClassification, labels)
    assert here == pytest.approx(there, abs=1e-4)
    assert here > 0.5


@pytest.fixture
def config(
    tmp_path: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneNerConfig:
    """A tiny model, and sentences in which "that" is a DAY, with the "end" after it where there is one."""
    save_model(tmp_path / "start", make_model(), tokenizer)
    words, draw, lines = ["from", "end", "the", "was", "that"], np.random.default_rng(0), []
    for _ in range(60):
        before = ""
        for k in draw.integers(0, 5, draw.integers(2, 12)):
            tag = "B-DAY" if k == 4 else "I-DAY" if k == 1 and before == "that" else "O"
            before = words[k]
            lines.append(f"{before} {tag}\n")
        lines.append("\n")
    (tmp_path / "train.conll").write_text("".join(lines))
    return FinetuneNerConfig(
        tmp_path / "train.conll",
        tmp_path / "run",
        str(tmp_path / "start"),
        dev=tmp_path / "train.conll",
        window=10,
        overlap=2,
        epochs=16,
        batch_size=8,
        lr=4e-3,
        dropout=0.0,
        device="cpu",
    )


def test_context_is_stored_with_the_model_and_used(config: FinetuneNerConfig, tmp_path: Path) -> None:
    """What a sentence's words are depends on the sentence before it, which only a model with context can see."""
    lines, draw = [], np.random.default_rng(0)
    for _ in range(60):
        first = ("from", "was")[draw.integers(2)]
        lines.append(f"-DOCSTART- O\n\n{first} O\n\nthat {'B-DAY' if first == 'from' else 'O'}\n\n")
    config.train.write_text("".join(lines))
    scores = {}
    for context in (0, 3):
        run = dataclasses.replace(config, context=context, output=tmp_path / f"context-{context}", epochs=8)
        run_finetune(run)
        scores[context] = json.loads((run.output / "metrics.json").read_text())["f1"]
        assert json.loads((run.output / "model" / "config.json").read_text())["ner"]["context"] == context
    assert scores[0] < 80 < scores[3]


def test_a_tiny_model_learns_is_scored_and_predicts(
    config: FinetuneNerConfig, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_finetune(config)
    assert "sentences longer than 10 tokens" in capsys.readouterr().out
    stored = json.loads((config.output / "model" / "config.json").read_text())
    assert stored["id2label"] == {"0": "O", "1": "B-DAY", "2": "I-DAY"}
    assert stored["architectures"] == ["BertForTokenClassification"]
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert metrics["f1"] == metrics["f1/DAY"] > 95

    # predictions.conll scores the same by conlleval's rules; evaluation alone gives the same numbers
    rows = [line.split("\t") for line in (config.output / "predictions.conll").read_text().splitlines() if line]
    assert sum(gold.startswith("B-") for _, gold, _ in rows) == metrics["entities"]
    run_evaluate(EvaluateNerConfig(config.output, config.train, output=tmp_path / "scores", device="cpu"))
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert again | {"seconds": 0} == metrics | {"seconds": 0}
    capsys.readouterr()

    # raw text is split into words here, and gives the same entities at the same characters
    stored = [json.loads(line) for line in (config.output / "predictions.jsonl").read_text().splitlines()][:20]
    raw = "\n".join(record["text"] for record in stored).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    run_predict(PredictNerConfig(config.output, Path("-"), device="cpu"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["line"] for line in lines] == list(range(1, 21))
    for line, record in zip(lines, stored, strict=True):
        found = [(e["start"], e["end"], e["type"], e["text"]) for e in line["entities"]]
        assert found == [(e["start"], e["end"], e["type"], e["text"]) for e in record["entities"]]
        assert all(line["text"][start:end] == text for start, end, _, text in found)
        assert all(0 < e["probability"] <= 1 for e in line["entities"])
    assert any(e["text"] == "that end" for line in lines for e in line["entities"])


def test_a_run_resumes_bit_for_bit(config: FinetuneNerConfig, resumes_bit_for_bit: Callable[..., None]) -> None:
    resumes_bit_for_bit(run_finetune, config)


def test_a_type_only_in_dev_is_told_before_training(config: FinetuneNerConfig, tmp_path: Path) -> None:
    (tmp_path / "dev.conll").write_text("from O\nthat B-NIGHT\n")
    config = FinetuneNerConfig(**{**vars(config), "dev": tmp_path / "dev.conll"})
    with pytest.raises(UserError, match=r"dev\.conll: line 1: unknown type: 'NIGHT'; the model knows DAY"):
        run_finetune(config)
    assert not config.output.exists()


def test_no_entity_is_nothing_to_learn(config: FinetuneNerConfig) -> None:
    config.train.write_text("from O\nthat O\n")
    with pytest.raises(UserError, match="no sentence has an entity"):
        run_finetune(config)


def test_a_model_of_transformers_keeps_its_tags() -> None:
    task = NerTask.of_model({"id2label": {"1": "B-PER", "0": "O", "2": "I-PER"}}, 128, "here")
    assert task.settings.labels == ("O", "B-PER", "I-PER")
    assert task.settings.window == 128
    with pytest.raises(UserError, match="id2label"):
        NerTask.of_model({"id2label": {"0": "LABEL_0"}}, 128, "here")


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [(2, 0, "--window"), (200, 9, "--window"), (12, 10, "--overlap"), (12, -1, "--overlap")],
)
def test_windows_must_fit(window: int, overlap: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        NerTask(NerSettings(window, overlap)).check(128)
    with pytest.raises(UserError, match="context -1: give 0 or more tokens"):
        NerTask(NerSettings(context=-1)).check(256)
