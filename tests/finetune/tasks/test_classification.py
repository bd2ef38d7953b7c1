"""Texts and their labels: four formats, windows of long texts, the metrics, and training to prediction."""

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.tasks.classification.commands import (
    EvaluateClassifyConfig,
    FinetuneClassifyConfig,
    PredictClassifyConfig,
    run_evaluate,
    run_finetune,
    run_predict,
)
from finetune.tasks.classification.features import TextSet, encode_texts
from finetune.tasks.classification.metrics import classification_metrics
from finetune.tasks.classification.records import Columns, TextFile, read_texts
from finetune.tasks.classification.task import ClassifySettings, ClassifyTask
from spanbert.checkpoint.model_folder import save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

COLUMNS = Columns("sentence", "mood")
ROWS = [('from that "day", on', "good"), ("bad to the end", "bad"), ("the end", "good")]
CONTENTS = {
    "t.tsv": "mood\tsentence\n" + "".join(f"{label}\t{text}\n" for text, label in ROWS),
    "t.csv": "sentence,mood\r\n"
    + "".join('"{}",{}\r\n'.format(text.replace('"', '""'), label) for text, label in ROWS),
    "t.jsonl": "".join(json.dumps({"sentence": text, "mood": label, "n": 1}) + "\n" for text, label in ROWS),
    "t.txt": "".join(f"{label} {text}\n" for text, label in ROWS),
}


def pairs(file: TextFile) -> list[tuple[str, str | None]]:
    return [(text.text, text.label) for text in file.texts]


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("compressed", [False, True])
def test_all_formats_say_the_same(tmp_path: Path, name: str, compressed: bool) -> None:
    path = tmp_path / (f"{name}.gz" if compressed else name)
    content = CONTENTS[name].encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert pairs(read_texts(path, "evaluate", COLUMNS)) == ROWS
    if name != "t.txt":
        assert pairs(read_texts(path, "predict", COLUMNS)) == [(text, None) for text, _ in ROWS]


def test_plain_lines_to_predict_are_texts_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("good morning\n\nbad day\n")
    assert [(text.line, text.text) for text in read_texts(path, "predict", COLUMNS).texts] == [
        (1, "good morning"),
        (3, "bad day"),
    ]


def test_labels_are_in_the_order_of_numbers_then_words(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("".join(f"{label} text\n" for label in ("10", "b", "2", "a", "2")))
    assert read_texts(path, "train", COLUMNS).labels() == ["2", "10", "a", "b"]


def test_training_skips_counts_and_names_malformed_records(tmp_path: Path) -> None:
    """One byte of Latin-1, as in TREC's training file, costs its line and not the file."""
    path = tmp_path / "t.jsonl"
    lines = [
        b'{"sentence": "fine", "mood": 1}', b"{broken", b'{"sentence": "no label"}', b'{"sentence": " ", "mood": 1}',
        b'{"sentence": "list", "mood": [1]}', b'{"sentence": "caf\xe9", "mood": 0}', b'{"sentence": "\\ud800", "mood": 0}',
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    found = read_texts(path, "train", COLUMNS)
    assert pairs(found) == [("fine", "1")]
    assert found.report.skipped == {
        "line is not valid JSON": 1,
        'missing field "mood"': 1,
        'empty field "sentence"': 1,
        'field "mood" of the wrong type': 1,
        "not UTF-8": 1,
        "lone surrogate": 1,
    }
    assert "skipped 6 malformed records" in found.summary()
    with pytest.raises(UserError, match=r"t\.jsonl: line 2: line is not valid JSON: .*; correct the record"):
        read_texts(path, "evaluate", COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "text\tlabel\na\tb\n", 'no column "sentence", only text, label; name the columns with --text'),
        ("t.tsv", "sentence\tmood\na\n", "line 2: another number of columns: 1, the first line has 2"),
        ("t.csv", 'sentence,mood\n"a,b\n', "not a CSV file"),
        ("t.txt", "", "no usable texts"),
        ("t.txt", "label\n", "line 1: no text"),
        ("t.txt", "other text\n", "line 1: unknown label: 'other'; the model knows bad, good"),
    ],
)
def test_mistakes_in_files_are_one_sentence(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_texts(tmp_path / name, "evaluate", COLUMNS, ("bad", "good"))


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([{"sentence": text, "mood": label} for text, label in ROWS]),
        json.dumps([{"sentence": text, "mood": label} for text, label in ROWS], indent=1),
        json.dumps({"data": [{"sentence": text, "mood": label} for text, label in ROWS]}),
        "".join(json.dumps({"sentence": text, "mood": label}, indent=1) for text, label in ROWS),
    ],
)
def test_a_list_of_rows_is_no_plain_text(tmp_path: Path, content: str) -> None:
    """A JSON list was read as lines of `label text`, its first label being `[{"sentence":`."""
    (tmp_path / "t.json").write_text("\n" + content)
    assert pairs(read_texts(tmp_path / "t.json", "evaluate", COLUMNS)) == ROWS
    (tmp_path / "t.txt").write_text("[applause] thank you\n")
    assert pairs(read_texts(tmp_path / "t.txt", "predict", COLUMNS)) == [("[applause] thank you", None)]


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_joined_tables_repeat_their_first_line(tmp_path: Path, name: str) -> None:
    """It was a text "sentence" labelled "mood"."""
    (tmp_path / name).write_text(CONTENTS[name] * 2)
    assert pairs(read_texts(tmp_path / name, "evaluate", COLUMNS)) == ROWS * 2


def test_a_long_text_in_a_csv_is_read(tmp_path: Path) -> None:
    text = "word " * 50_000 + "end"
    (tmp_path / "t.csv").write_text(f"sentence,mood\n{text},good\n")
    assert pairs(read_texts(tmp_path / "t.csv", "evaluate", COLUMNS)) == [(text, "good")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"sentence": "a"}', 'line 1: missing field "mood"; labels are needed'),
        ("t.jsonl", b'{"sentence": "a", "mood": null}', 'line 1: missing field "mood"; labels are needed'),
        ("t.jsonl", b'{"sentence": "a", "mood": 1.5}', '"mood" of the wrong type: a number, expected a string or a'),
        ("t.jsonl", b'{"sentence": "a", "mood": "\\ud800"}', 'line 1: lone surrogate: in "mood"'),
        ("t.jsonl", b'{"sentence": "a", "mood": "x"}\n3', "line 2: record is not an object: a number"),
        ("t.jsonl", b'{"sentence": "a", "mood": "x"}\nnull', "line 2: record is not an object: null"),
        (
            "t.jsonl",
            b'{"sentence": "a", "mood": "x"}\n' + b"[" * 99_999,
            "line 2: line is not valid JSON: it is nested",
        ),
        ("t.jsonl", b'{"sentence": "a", "mood": ' + b"1" * 5000 + b"}", "line 1: not valid JSON: Exceeds the limit"),
        ("t.json", b'[{"sentence": "a", "mood": "x"}, {"mood": "x"}]', 'row 2: missing field "sentence"'),
        ("t.tsv", b"sentence\tmood\na\tb\xff\n", 'line 2: not UTF-8: in "mood"'),
        ("t.tsv", b"sentence\tmood\na\t\n", "line 2: empty class: the label is blank"),
        ("t.tsv", b"sentence\tmood\xff\na\tb\n", r'no column "mood", only sentence, mood\\udcff;'),
        ("t.tsv", b"sentence\tmood\tmood\na\tb\tc\n", 'more than one column "mood"'),
    ],
)
def test_malformed_rows_are_named_by_line_and_field(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_texts(tmp_path / name, "evaluate", COLUMNS)
    str(caught.value).encode()


def test_a_label_of_very_many_digits_is_a_word(tmp_path: Path) -> None:
    """Python refuses to read it as a number, with an exception of its own."""
    path = tmp_path / "t.txt"
    path.write_text(f"{'1' * 5000} text\n9 text\na text\n")
    assert read_texts(path, "train", COLUMNS).labels() == ["9", "1" * 5000, "a"]


def test_losses_are_said_with_field_and_place_when_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"sentence": "a"}\n' * 3)
    with pytest.raises(
        UserError, match=r'no usable texts. 0 texts; .* 3 × missing field "mood" \(first: line 1\); labels'
    ):
        read_texts(path, "train", COLUMNS)
    assert len(read_texts(path, "predict", COLUMNS).texts) == 3


def text_set(tokenizer: Tokenizer, tmp_path: Path, words: list[int], window: int) -> TextSet:
    """Texts of so many words of one token each."""
    path = tmp_path / "w.txt"
    path.write_text(
        "".join(f"{n % 2} {'from that ' * (count // 2)}{'end' * (count % 2)}\n" for n, count in enumerate(words))
    )
    return encode_texts(read_texts(path, "train", COLUMNS), tokenizer, window, ("0", "1"))


def test_windows_of_a_long_text_are_full_evenly_laid_and_cover_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = text_set(tokenizer, tmp_path, [3, 8, 9, 16, 17, 40], 10)
    assert texts.texts.lengths.tolist() == [3, 8, 9, 16, 17, 40]
    assert np.diff(texts.bounds).tolist() == [1, 1, 2, 2, 3, 5]
    packed = texts.packed(np.arange(texts.bounds[-1]))
    assert np.diff(packed.cu_seqlens).tolist() == texts.lengths.tolist() == [5] + [10] * 13
    for text in range(texts.examples):
        seen = set()
        for window in range(texts.bounds[text], texts.bounds[text + 1]):
            begin, end = packed.cu_seqlens[window : window + 2]
            first = int(texts.first_W2[window, 0])
            assert packed.input_ids_T[begin + 1 : end - 1].tolist() == texts.texts[text][first : first + 8].tolist()
            seen |= set(range(first, first + end - begin - 2))
        assert seen == set(range(texts.texts.lengths[text]))
        assert texts.labels(np.arange(texts.bounds[text], texts.bounds[text + 1])).tolist() == [text % 2] * len(
            range(texts.bounds[text], texts.bounds[text + 1])
        )
    assert texts.notes == ["4 texts longer than 10 tokens, seen in 12 windows whose logits are averaged"]
    part = texts.select(np.array([5, 0]))
    assert part.bounds.tolist() == [0, 5, 6]
    assert part.label_E.tolist() == [1, 0]


def test_logits_of_windows_are_averaged() -> None:
    task = ClassifyTask(ClassifySettings(labels=("a", "b", "c")))
    predicted = task.decode(None, 0, [np.array([1.0, 0.0, 2.0]), np.array([3.0, 1.0, -4.0])])  # type: ignore[arg-type]
    assert predicted.label == 0
    expected = torch.softmax(torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64), 0)
    assert predicted.probabilities == pytest.approx(expected.tolist())


def test_metrics_worked_by_hand() -> None:
    # two labels: TP 3, FN 1, FP 2, TN 4 → MCC = (3·4 − 2·1) / √(5·4·6·5)
    gold = np.array([1] * 4 + [0] * 6)
    predicted = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    metrics = classification_metrics(gold, predicted, 2)
    assert metrics["accuracy"] == pytest.approx(70)
    assert metrics["matthews"] == pytest.approx(100 * 10 / 600**0.5)
    assert metrics["macro_f1"] == pytest.approx(50 * (6 / 9 + 8 / 11))
    # three labels, one of which occurs nowhere: it takes no part in the mean
    assert classification_metrics(np.array([0, 1]), np.array([0, 1]), 3)["macro_f1"] == 100
    assert classification_metrics(np.array([0, 1]), np.array([0, 0]), 3)["matthews"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_matthews_is_the_correlation_of_indicators(seed: int) -> None:
    """R_K by its definition: the covariance of one-hot golds and predictions over the root of their variances."""
    draw = np.random.default_rng(seed)
    gold, predicted = draw.integers(0, 4, 50), draw.integers(0, 4, 50)
    predicted[:25] = gold[:25]
    x, y = np.eye(4)[gold], np.eye(4)[predicted]
    x, y = x - x.mean(0), y - y.mean(0)
    expected = (x * y).sum() / ((x * x).sum() * (y * y).sum()) ** 0.5
    assert classification_metrics(gold, predicted, 4)["matthews"] == pytest.approx(100 * expected)


@pytest.fixture
def config(
    tmp_path: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneClassifyConfig:
    """A tiny model, and texts whose label is whether they hold "that"."""
    save_model(tmp_path / "start", make_model(), tokenizer)
    words = ["from", "end", "the", "was"]
    draw = np.random.default_rng(0)
    lines = ["sentence\tmood\n"]
    for n in range(40):
        text = [words[k] for k in draw.integers(0, 4, draw.integers(2, 9))]
        if n % 2:
            text[int(draw.integers(len(text)))] = "that"
        lines.append(f"{' '.join(text)}\t{'good' if n % 2 else 'bad'}\n")
    (tmp_path / "train.tsv").write_text("".join(lines))
    return FinetuneClassifyConfig(
        tmp_path / "train.tsv",
        tmp_path / "run",
        str(tmp_path / "start"),
        dev=tmp_path / "train.tsv",
        text="sentence",
        label="mood",
        window=8,
        epochs=12,
        batch_size=8,
        lr=3e-3,
        dropout=0.0,
        device="cpu",
    )


def test_a_tiny_classifier_learns_is_scored_and_predicts(
    config: FinetuneClassifyConfig, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_finetune(config)
    printed = capsys.readouterr().out
    assert "texts longer than 8 tokens" in printed
    stored = json.loads((config.output / "model" / "config.json").read_text())
    assert stored["id2label"] == {"0": "bad", "1": "good"}
    assert stored["architectures"] == ["BertForSequenceClassification"]
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert metrics["accuracy"] > 95
    assert metrics["texts_in_parts"] > 0
    lines = [json.loads(line) for line in (config.output / "predictions.jsonl").read_text().splitlines()]
    assert sum(line["gold"] == line["label"] for line in lines) == metrics["accuracy"] * 40 / 100

    # the columns are remembered; evaluation alone gives the same numbers
    run_evaluate(EvaluateClassifyConfig(config.output, config.train, output=tmp_path / "scores", device="cpu"))
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert again | {"seconds": 0} == metrics | {"seconds": 0}
    capsys.readouterr()

    # from standard input, a text a line
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from that end\nfrom the end\n")))
    run_predict(PredictClassifyConfig(config.output, Path("-"), device="cpu"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["line"], line["text"], line["label"]) for line in lines] == [
        (1, "from that end", "good"),
        (2, "from the end", "bad"),
    ]
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1)


def test_one_label_is_nothing_to_learn(config: FinetuneClassifyConfig) -> None:
    config.train.write_text("sentence\tmood\na\tgood\nb\tgood\n")
    with pytest.raises(UserError, match="all texts are labelled 'good'"):
        run_finetune(config)
    assert not config.output.exists()


def test_a_model_of_transformers_keeps_its_labels() -> None:
    task = ClassifyTask.of_model({"id2label": {"1": "pos", "0": "neg", "10": "x"}}, 128, "here")
    assert task.settings.labels == ("neg", "pos", "x")
    assert task.settings.window == 128
    with pytest.raises(UserError, match="id2label"):
        ClassifyTask.of_model({}, 128, "here")
