"""Classification beyond one label of one text: pairs, several labels, numbers, and what an evaluation leaves."""

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn import metrics as sklearn_metrics
from transformers import BertForSequenceClassification

from finetune.tasks.classification.commands import (
    EvaluateClassifyConfig,
    FinetuneClassifyConfig,
    PredictClassifyConfig,
    run_evaluate,
    run_finetune,
    run_predict,
)
from finetune.tasks.classification.confusion_plot import confusion_csv, confusion_png
from finetune.tasks.classification.features import TextSet, encode_texts
from finetune.tasks.classification.metrics import (
    classification_metrics,
    confusion,
    multi_label_metrics,
    regression_metrics,
)
from finetune.tasks.classification.records import Columns, read_texts
from finetune.tasks.classification.targets import Problem, labels_of
from finetune.tasks.classification.task import ClassifySettings, ClassifyTask
from spanbert.checkpoint.model_folder import build_model, save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering, SpanBertForSequenceClassification
from spanbert.tokenizer.wordpiece import Tokenizer

PAIRS = Columns("a", "label", "b")
MULTI: Problem = "multi"

# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", "a\tlabel\tb\nthe end\tyes\tfrom that\n"),
        ("t.csv", 'a,label,b\nthe end,yes,"from that"\n'),
        ("t.jsonl", '{"a": "the end", "b": "from that", "label": "yes"}\n'),
    ],
)
def test_pairs_of_all_formats(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    for purpose in ("evaluate", "predict"):
        (one,) = read_texts(tmp_path / name, purpose, PAIRS).texts  # type: ignore[arg-type]
        assert (one.text, one.other, one.label) == ("the end", "from that", "yes" if purpose == "evaluate" else None)


def test_labels_of_a_field() -> None:
    assert labels_of("b, a", "multi") == ("b", "a")
    assert labels_of("", "multi") == ()
    assert labels_of("b, a", "single") == ("b, a",)
    assert labels_of("-1.5e3", "regression") == ("-1.5e3",)


@pytest.mark.parametrize(
    ("name", "content", "problem", "message"),
    [
        ("t.csv", "a,label\nx,yes\n", "single", 'has no column "b", only a, label; name the columns with --text'),
        ("t.tsv", "a\tb\tlabel\nx\ty\tyes\nx\t\tyes\n", "single", 't.tsv: line 3: empty field:? "b"'),
        ("t.jsonl", '{"a": "x", "label": "yes"}\n', "single", 'line 1: missing field:? "b"'),
        ("t.txt", "yes x\n", "single", "hold no pairs: give a table or JSON lines"),
        ("t.tsv", "a\tb\tlabel\nx\ty\t\n", "single", 'line 2: empty (class|field "label")'),
        ("t.tsv", "a\tb\tlabel\nx\ty\tyes,,no\n", "multi", "line 2: empty class: a label of 'yes,,no' is blank"),
        ("t.tsv", "a\tb\tlabel\nx\ty\tyes,maybe\n", "multi", "line 2: unknown label: 'maybe'; the model knows no, yes"),
        ("t.tsv", "a\tb\tlabel\nx\ty\thigh\n", "regression", "line 2: label is no number: 'high'"),
        ("t.tsv", "a\tb\tlabel\nx\ty\tnan\n", "regression", "line 2: label is no number: 'nan'"),
        ("t.tsv", "a\tb\tlabel\nx\ty\t1e39\n", "regression", "line 2: label is no number: '1e39'"),
    ],
)
def test_mistakes_in_files_are_one_sentence(
    tmp_path: Path, name: str, content: str, problem: Problem, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_texts(tmp_path / name, "evaluate", PAIRS, ("no", "yes"), problem)


def test_a_line_to_predict_with_one_text_of_a_pair(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("x\ty\nx\n")
    with pytest.raises(UserError, match="line 2: one text of a pair: expected two with a tab between"):
        read_texts(tmp_path / "t.txt", "predict", PAIRS)


# --- windows of pairs --------------------------------------------------------------------------------------------


def pair_set(tmp_path: Path, tokenizer: Tokenizer, sizes: list[tuple[int, int]], window: int) -> TextSet:
    """Pairs of so many words of one token each."""
    words = ["from", "that", "end", "the", "was"]
    lines = ["a\tb\tlabel\n"]
    for n, size in enumerate(sizes):
        texts = [" ".join(words[(n + k) % 5] for k in range(count)) for count in size]
        lines.append("\t".join([*texts, str(n % 2)]) + "\n")
    (tmp_path / "t.tsv").write_text("".join(lines))
    return encode_texts(read_texts(tmp_path / "t.tsv", "train", PAIRS), tokenizer, window, ("0", "1"))


def test_windows_of_long_pairs_show_every_token_of_both(tmp_path: Path, tokenizer: Tokenizer) -> None:
    sizes = [(3, 4), (5, 5), (3, 30), (30, 3), (17, 26), (1, 1), (6, 5)]
    features = pair_set(tmp_path, tokenizer, sizes, 13)  # 10 tokens of the texts
    packed = features.packed(np.arange(len(features.lengths)))
    assert np.diff(packed.cu_seqlens).tolist() == features.lengths.tolist()
    assert features.lengths.max() == 13
    assert np.diff(features.bounds).tolist() == [1, 1, 5, 5, 6, 1, 2]
    for text, (first, second) in enumerate(sizes):
        seen: list[set[int]] = [set(), set()]
        for window in range(features.bounds[text], features.bounds[text + 1]):
            ids = packed.input_ids_T[packed.cu_seqlens[window] : packed.cu_seqlens[window + 1]]
            types = packed.token_type_ids_T[packed.cu_seqlens[window] : packed.cu_seqlens[window + 1]]
            a, b = features.room_E2[text]
            begin_a, begin_b = features.first_W2[window]
            assert ids[0] == tokenizer.cls_id and ids[a + 1] == ids[-1] == tokenizer.sep_id
            assert ids[1 : a + 1].tolist() == features.texts[text][begin_a : begin_a + a].tolist()
            assert ids[a + 2 : -1].tolist() == features.others[text][begin_b : begin_b + b].tolist()
            assert types.tolist() == [0] * (a + 2) + [1] * (b + 1)
            seen[0] |= set(range(begin_a, begin_a + a))
            seen[1] |= set(range(begin_b, begin_b + b))
        assert seen == [set(range(first)), set(range(second))]
    chosen = features.select(np.array([4, 0]))
    assert np.diff(chosen.bounds).tolist() == [6, 1]
    assert chosen.label_E.tolist() == [0, 0]


# --- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_scores_are_those_of_scikit_learn_and_scipy(seed: int) -> None:
    """10 × 150 random predictions of each kind."""
    draw = np.random.default_rng(seed)
    gold, predicted = draw.integers(0, 4, 150), draw.integers(0, 5, 150)
    predicted[:60] = gold[:60]
    ours = classification_metrics(gold, predicted, 6)
    assert ours["accuracy"] == pytest.approx(100 * sklearn_metrics.accuracy_score(gold, predicted))
    assert ours["macro_f1"] == pytest.approx(100 * sklearn_metrics.f1_score(gold, predicted, average="macro"))
    assert ours["matthews"] == pytest.approx(100 * sklearn_metrics.matthews_corrcoef(gold, predicted))
    assert confusion(gold, predicted, 6).tolist() == (
        sklearn_metrics.confusion_matrix(gold, predicted, labels=range(6)).tolist()
    )

    golds, found = draw.random((150, 5)) < 0.3, draw.random((150, 5)) < 0.4
    sets = multi_label_metrics(golds, found)
    assert sets["accuracy"] == pytest.approx(100 * sklearn_metrics.accuracy_score(golds, found))
    for average in ("micro", "macro"):
        assert sets[f"{average}_f1"] == pytest.approx(100 * sklearn_metrics.f1_score(golds, found, average=average))

    x = np.round(draw.normal(size=150), 1)  # with ties
    y = np.round(x + draw.normal(size=150), 1)
    numbers = regression_metrics(x, y)
    assert numbers["pearson"] == pytest.approx(100 * scipy.stats.pearsonr(x, y).statistic)
    assert numbers["spearman"] == pytest.approx(100 * scipy.stats.spearmanr(x, y).statistic)
    assert numbers["mse"] == pytest.approx(sklearn_metrics.mean_squared_error(x, y))


def test_a_correlation_with_a_constant_is_0() -> None:
    assert regression_metrics(np.array([1.0, 2.0]), np.array([3.0, 3.0]))["pearson"] == 0


def test_the_confusion_matrix_as_table_and_picture() -> None:
    table = np.array([[3, 1], [0, 2]])
    rows = list(csv.reader(io.StringIO(confusion_csv(table, ["a,b", "c"]))))
    assert rows == [["gold \\ predicted", "a,b", "c"], ["a,b", "3", "1"], ["c", "0", "2"]]
    picture = confusion_png(table, ["a,b", "c"])
    assert picture is not None and picture.startswith(b"\x89PNG")
    assert confusion_png(np.eye(61, dtype=np.int64), [str(n) for n in range(61)]) is None


# --- the task ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_the_loss_is_that_of_transformers(
    tmp_path: Path,
    tokenizer: Tokenizer,
    make_model: Callable[..., SpanBertForQuestionAnswering],
    losses_here_and_in_transformers: Any,
    problem: Problem,
) -> None:
    """Pairs in one batch; its mean over windows, and over windows and labels, is that of transformers' problem_type."""
    labels = {"single": ["y", "x", "y"], "multi": ["x,y", "", "z"], "regression": ["1.5", "-0.5", "3"]}[problem]
    texts = [("the end", "from that day"), ("that", "end"), ("was the end", "the")]
    (tmp_path / "t.tsv").write_text(
        "a\tb\tlabel\n" + "".join(f"{a}\t{b}\t{label}\n" for (a, b), label in zip(texts, labels))
    )
    task = ClassifyTask(ClassifySettings(64, PAIRS, problem=problem))
    records = task.read(tmp_path / "t.tsv", "train")
    task = task.learned_from(records)
    features = task.encode(records, tokenizer, "train")
    model = build_model(SpanBertForSequenceClassification, make_model().config, 3, **task.head())
    torch.nn.init.normal_(model.classifier.weight, std=1.0, generator=torch.Generator().manual_seed(0))
    here, there = losses_here_and_in_transformers(
        task, model, features, BertForSequenceClassification, lambda batch, ours: ours
    )
    assert here == pytest.approx(there, abs=1e-4)
    assert here > 0.3


@pytest.fixture
def config(
    tmp_path: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneClassifyConfig:
    """A tiny model, and texts with what can be learned of them in columns: which words they hold, how many "end"s."""
    save_model(tmp_path / "start", make_model(), tokenizer)
    words, draw = ["from", "the", "was", "that", "end"], np.random.default_rng(0)
    lines = ["a\tb\tlabel\tlabels\tnumber\n"]
    for _ in range(48):
        texts = [[words[k] for k in draw.integers(0, 5, draw.integers(1, 5))] for _ in range(2)]
        one = "yes" if "that" in texts[1] else "no"
        some = ",".join(name for name, word in (("T", "that"), ("E", "end")) if word in texts[0] + texts[1])
        number = sum(word == "end" for word in texts[0] + texts[1])
        lines.append("\t".join([" ".join(texts[0]), " ".join(texts[1]), one, some, str(number)]) + "\n")
    (tmp_path / "train.tsv").write_text("".join(lines))
    return FinetuneClassifyConfig(
        tmp_path / "train.tsv",
        tmp_path / "run",
        str(tmp_path / "start"),
        dev=tmp_path / "train.tsv",
        text="a",
        text_pair="b",
        window=16,
        epochs=20,
        batch_size=8,
        lr=4e-3,
        dropout=0.0,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("problem", "label", "metric", "least"),
    [("single", "label", "accuracy", 90), ("multi", "labels", "micro_f1", 90), ("regression", "number", "pearson", 85)],
)
def test_every_kind_learns_is_scored_and_predicts(
    config: FinetuneClassifyConfig,
    tmp_path: Path,
    problem: Problem,
    label: str,
    metric: str,
    least: float,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(config, problem=problem, label=label)
    assert config.task().main_metric == metric
    run_finetune(config)
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert metrics[metric] > least
    run_evaluate(EvaluateClassifyConfig(config.output, config.train, output=tmp_path / "scores", device="cpu"))
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert again | {"seconds": 0} == metrics | {"seconds": 0}
    assert (tmp_path / "scores" / "confusion.png").is_file() == (problem == "single")
    capsys.readouterr()

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from the\tthat end\nthe\twas\n")))
    run_predict(PredictClassifyConfig(config.output, Path("-"), device="cpu"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["a" if "a" in line else "text"], line["b"]) for line in lines] == [
        ("from the", "that end"),
        ("the", "was"),
    ]
    if problem == "multi":
        assert [line["labels"] for line in lines] == [
            [k for k, p in line["probabilities"].items() if p >= 0.5] for line in lines
        ]
    if problem == "regression":
        assert lines[0]["value"] > lines[1]["value"] + 0.3


@pytest.mark.parametrize(("problem", "label"), [("single", "label"), ("multi", "labels"), ("regression", "number")])
def test_a_run_resumes_bit_for_bit(
    config: FinetuneClassifyConfig, resumes_bit_for_bit: Callable[..., None], problem: Problem, label: str
) -> None:
    resumes_bit_for_bit(run_finetune, replace(config, problem=problem, label=label))


def test_a_label_only_in_dev_is_told_before_training(config: FinetuneClassifyConfig, tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("a\tb\tlabel\nx\ty\tperhaps\n")
    with pytest.raises(UserError, match=r"dev\.tsv: line 2: unknown label: 'perhaps'; the model knows no, yes"):
        run_finetune(replace(config, dev=tmp_path / "dev.tsv"))
    assert not config.output.exists()


def test_a_model_of_transformers_keeps_its_kind_of_problem() -> None:
    stored = {"id2label": {"0": "x", "1": "y"}, "problem_type": "multi_label_classification"}
    assert ClassifyTask.of_model(stored, 128, "here").settings.problem == "multi"
    stored = {"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}
    assert ClassifyTask.of_model(stored, 128, "here").head() == {"num_labels": 1}
