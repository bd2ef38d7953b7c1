"""Relations: three formats, three encodings and their tokens, the official scores, and training to prediction."""

import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import precision_recall_fscore_support
from transformers import BertModel

from finetune.tasks.relation.commands import (
    EvaluateRelationConfig,
    FinetuneRelationConfig,
    PredictRelationConfig,
    run_evaluate,
    run_finetune,
    run_predict,
)
from finetune.tasks.relation.features import PairSet, encode_pairs, new_tokens
from finetune.tasks.relation.metrics import relation_metrics
from finetune.tasks.relation.records import read_pairs
from finetune.tasks.relation.task import RelationSettings, RelationTask
from spanbert.checkpoint.model_folder import build_model, load_model, save_model
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering, SpanBertForRelation
from spanbert.tokenizer.wordpiece import Tokenizer

SEMEVAL = (
    '1\t"The <e1>end</e1> was from "the" <e2>day</e2>."\r\nMade-Of(e1,e2)\r\nComment: none\r\n\r\n'
    '2\t"<e1>that</e1> the <e2>end</e2>"\r\nOther\r\nComment:\r\n'
)
TEXTS = ['The end was from "the" day.', "that the end"]
TACRED = [
    {"id": "1", "token": ["The", "end", "was", "from", '"the"', "day."], "relation": "Made-Of(e1,e2)",
     "subj_start": 1, "subj_end": 1, "obj_start": 5, "obj_end": 5, "subj_type": "T", "obj_type": "DATE"},
    {"id": "2", "token": ["that", "the", "end"], "relation": "Other",
     "subj_start": 0, "subj_end": 0, "obj_start": 2, "obj_end": 2, "subj_type": "X", "obj_type": "T"},
]  # fmt: skip
LINES = [
    {"id": "1", "text": TEXTS[0], "subject": [4, 7], "object": [23, 26], "relation": "Made-Of(e1,e2)"},
    {"id": "2", "text": TEXTS[1], "subject": [0, 4], "object": [9, 12], "relation": "Other"},
]
CONTENTS = {
    "semeval.txt": SEMEVAL,
    "tacred.json": json.dumps(TACRED, indent=1),
    "tacred.jsonl": "".join(json.dumps(entry) + "\n" for entry in TACRED),
    "spans.jsonl": "".join(json.dumps(entry) + "\n" for entry in LINES),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_all_formats_say_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENTS[name].encode())
    for purpose in ("evaluate", "predict"):
        found = read_pairs(tmp_path / name, purpose)  # type: ignore[arg-type]
        assert [pair.id for pair in found.pairs] == ["1", "2"]
        assert [pair.text for pair in found.pairs] == TEXTS
        entities = [[pair.text[s.start : s.end] for s in (pair.subject, pair.object)] for pair in found.pairs]
        assert entities == [["end", "day." if "tacred" in name else "day"], ["that", "end"]]
        relations = ["Made-Of(e1,e2)", "Other"] if purpose == "evaluate" else [None, None]
        assert [pair.relation for pair in found.pairs] == relations
        assert [pair.object.type for pair in found.pairs] == (["DATE", "T"] if "tacred" in name else ["", ""])


def test_marked_lines_alone_can_be_predicted(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("an <e2>end</e2> of <e1>that</e1>\n\nthe <e1>end</e1> <e2>was</e2>\n")
    found = read_pairs(tmp_path / "t.txt", "predict")
    assert [(pair.id, pair.subject[:2], pair.object[:2]) for pair in found.pairs] == [
        ("1", (10, 14), (3, 6)),
        ("3", (4, 7), (8, 11)),
    ]


def spans(subject: list[Any], object: list[Any], relation: str = "Other") -> str:
    return json.dumps({"text": "that end", "subject": subject, "object": object, "relation": relation}) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\tthe <e1>end</e1> was\nOther\n", "line 1: entities not marked: expected <e1>"),
        ("1\t<e1>a</e1> <e2>b</e2>\n\n2\t<e1>a</e1> <e2>b</e2>\nOther\n", "line 1: no relation"),
        ("1\t<e1>a</e1> <e2>b</e2>\nMade-By\n", "line 1: unknown relation: 'Made-By'; the model knows Other"),
        ("1\t<e1></e1> <e2>b</e2>\nOther\n", "line 1: an entity outside the text"),
        (
            json.dumps([TACRED[1] | {"obj_end": 3}]),
            "record 1, id 2: an entity outside its tokens: obj: 2 to 3 of 3 tokens",
        ),
        (json.dumps([TACRED[1] | {"obj_start": 2, "obj_end": 1}]), "an entity outside its tokens: obj: 2 to 1"),
        (json.dumps([TACRED[1] | {"obj_start": 0}]), "record 1, id 2: entities that overlap"),
        (json.dumps([TACRED[1] | {"relation": ""}]), "record 1, id 2: empty class"),
        (json.dumps([{"id": "9"}]), 'record 1, id 9: missing field:? "relation"'),
        ("[\n{broken", "line 2: not valid JSON"),
        ("{broken\n", "line 1: line is not valid JSON"),
        (spans([0, 4], [5, 9]), "line 1: an entity outside the text: the object is 5 to 9 of 8 characters"),
        (spans([0, 4], [4, 5]), "line 1: empty entity: the object"),
        (spans([0, 4], ["5", 8]), 'line 1: field of the wrong type: "object"'),
        ("", "no usable pair"),
    ],
)
def test_mistakes_in_files_are_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path / "t.txt", "evaluate", ("Other",))


def test_training_skips_counts_and_names_malformed_records(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([TACRED[0], TACRED[1] | {"obj_end": 3}]))
    found = read_pairs(tmp_path / "t.json", "train")
    assert len(found.pairs) == 1
    assert found.report.skipped == {"an entity outside its tokens": 1}
    assert "skipped 1 malformed record" in found.summary()


# --- encodings ---------------------------------------------------------------------------------------------------


def pair_set(tmp_path: Path, tokenizer: Tokenizer, encoding: Any, window: int = 64) -> tuple[PairSet, Tokenizer]:
    (tmp_path / "t.json").write_text(json.dumps(TACRED))
    grown = tokenizer.with_tokens(new_tokens(encoding, [("T", "X"), ("DATE", "T")]))
    found = read_pairs(tmp_path / "t.json", "train")
    return encode_pairs(found, grown, encoding, window, ("Made-Of(e1,e2)", "Other")), grown


@pytest.mark.parametrize(
    ("encoding", "expected", "places"),
    [
        ("mask", "[CLS] [SUBJ-X] the [OBJ-T] [SEP]", (0, 0)),
        ("markers", "[CLS] [E1] that [/E1] the [E2] end [/E2] [SEP]", (1, 5)),
        ("typed", "[CLS] [E1:X] that [/E1:X] the [E2:T] end [/E2:T] [SEP]", (1, 5)),
    ],
)
def test_encodings(tmp_path: Path, tokenizer: Tokenizer, encoding: str, expected: str, places: tuple) -> None:
    features, grown = pair_set(tmp_path, tokenizer, encoding)
    batch = features.packed(np.array([1]))
    assert " ".join(grown.token(id) for id in batch.packed.input_ids_T) == expected
    assert batch.at_B2.tolist() == [list(places)]
    assert features.labels(np.array([1])).tolist() == [1]
    both = features.packed(np.array([1, 0]))  # the places are those of the whole batch
    assert both.at_B2[0].tolist() == list(places)
    assert both.at_B2[1].tolist() == [batch.packed.tokens + place for place in features.at_E2[0]]
    assert grown.vocab_size == tokenizer.vocab_size + {"mask": 4, "markers": 4, "typed": 8}[encoding]


def test_new_tokens_are_saved_found_again_and_never_made_from_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    grown = tokenizer.with_tokens(["[E1]", "[E1]", "[SUBJ-CITY NAME]"])
    assert grown.tokens == [*tokenizer.tokens, "[E1]", "[SUBJ-CITY NAME]"]
    assert grown.with_tokens(["[E1]"]) is grown
    text = "a [E1] b [SUBJ-CITY NAME]"
    assert grown.encode(text).ids.tolist() == tokenizer.encode(text).ids.tolist() == grown.encode_ids(text).tolist()
    grown.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == grown.fingerprint != tokenizer.fingerprint
    assert again.encode(text).ids.tolist() == grown.encode(text).ids.tolist()


def test_an_unknown_type_is_a_malformed_record(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "t.json").write_text(json.dumps(TACRED))
    grown = tokenizer.with_tokens(new_tokens("typed", [("T", "X"), ("T",)]))
    with pytest.raises(
        UserError, match=r"record 1, id 1: unknown type of entity: 'DATE': the model has no token \[E2:DATE\]"
    ):
        encode_pairs(read_pairs(tmp_path / "t.json", "evaluate"), grown, "typed", 64, ("Made-Of(e1,e2)", "Other"))


@pytest.mark.parametrize("seed", range(30))
def test_both_markers_are_seen_whatever_the_length(tmp_path: Path, tokenizer: Tokenizer, seed: int) -> None:
    """Of a long text: as many tokens as fit, in order, with both markers and their places."""
    draw = np.random.default_rng(seed)
    words = ["from"] * int(draw.integers(2, 120))
    first, second = sorted(draw.permutation(len(words))[:2].tolist())
    words[first], words[second] = "that", "end"
    entry = {"id": "1", "token": words, "relation": "Other"} | {
        "subj_start": second, "subj_end": second, "obj_start": first, "obj_end": first}  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps([entry]))
    grown = tokenizer.with_tokens(new_tokens("markers", [("",), ("",)]))
    features = encode_pairs(read_pairs(tmp_path / "t.json", "train"), grown, "markers", 30, ("Other",))
    batch = features.packed(np.array([0]))
    ids = batch.packed.input_ids_T
    tokens = [grown.token(id) for id in ids]
    ((subject, object),) = batch.at_B2
    assert (tokens[subject], tokens[subject + 1], tokens[object], tokens[object + 1]) == ("[E1]", "end", "[E2]", "that")
    assert len(ids) <= 30
    assert len(ids) >= min(len(words) + 6, 26)
    long, apart = len(words) + 6 > 30, any("left out" in note for note in features.notes)
    assert any("longer than 30 tokens" in note for note in features.notes) == long
    assert not apart or second - first > 12


# --- scores ------------------------------------------------------------------------------------------------------

LABELS = ["A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "B(e2,e1)", "Other"]


def semeval(golds: list[str], predictions: list[str]) -> float:
    """The official score by its definition, pair by pair: for each relation, right ones over those predicted and over those
    there are, in whatever direction; the mean of the F1 of both."""
    f1 = []
    for name in "AB":
        right = sum(g == p and g[0] == name for g, p in zip(golds, predictions))
        predicted, there = sum(p[0] == name for p in predictions), sum(g[0] == name for g in golds)
        precision, recall = (right / n if n else 0.0 for n in (predicted, there))
        f1.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return 100 * sum(f1) / 2


def tacred(golds: list[str], predictions: list[str]) -> tuple[float, float, float]:
    right = Counter(g for g, p in zip(golds, predictions) if g == p and g != "no_relation").total()
    guessed = Counter(p for p in predictions if p != "no_relation").total()
    there = Counter(g for g in golds if g != "no_relation").total()
    precision, recall = right / guessed if guessed else 1.0, right / there if there else 0.0
    return 100 * precision, 100 * recall, 200 * precision * recall / (precision + recall) if precision + recall else 0.0


def scores(golds: list[str], predictions: list[str], labels: list[str]) -> dict[str, float]:
    return relation_metrics(*(np.array([labels.index(one) for one in side]) for side in (golds, predictions)), labels)


def test_semevals_score_by_hand_tells_its_variants_apart() -> None:
    golds = ["A(e1,e2)", "A(e1,e2)", "B(e1,e2)", "Other", "Other"]
    found = ["A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "B(e1,e2)", "Other"]
    # A: 1 right of 2 predicted and 2 there; B: 1 right of 2 predicted and 1 there
    metrics = scores(golds, found, LABELS)
    assert metrics["f1/A"] == pytest.approx(50)
    assert metrics["f1/B"] == pytest.approx(100 * 2 / 3)
    assert metrics["macro_f1"] == pytest.approx((50 + 200 / 3) / 2)
    without_direction = [one[0] for one in golds], [one[0] for one in found]
    directed_classes = precision_recall_fscore_support(
        golds, found, labels=LABELS[:4], average="macro", zero_division=0
    )[2]
    undirected = precision_recall_fscore_support(*without_direction, labels=["A", "B"], average="macro")[2]
    assert not any(metrics["macro_f1"] == pytest.approx(100 * other) for other in (directed_classes, undirected))


def test_tacreds_score_by_hand_leaves_no_relation_out() -> None:
    golds = ["x", "no_relation", "no_relation", "y"]
    found = ["x", "no_relation", "x", "no_relation"]
    metrics = scores(golds, found, ["no_relation", "x", "y"])
    assert (metrics["precision"], metrics["recall"], metrics["micro_f1"]) == (50, 50, 50)
    assert metrics["accuracy"] == 50
    nothing = scores(golds, ["no_relation"] * 4, ["no_relation", "x", "y"])
    assert (nothing["precision"], nothing["recall"], nothing["micro_f1"]) == (100, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_scores_on_random_predictions(seed: int) -> None:
    """20 × 100 pairs, against the definitions, and against scikit-learn where it has the score."""
    draw = np.random.default_rng(seed)
    golds = [LABELS[k] for k in draw.integers(0, 5, 100)]
    found = [gold if draw.random() < 0.4 else LABELS[k] for gold, k in zip(golds, draw.integers(0, 5, 100))]
    assert scores(golds, found, LABELS)["macro_f1"] == pytest.approx(semeval(golds, found))
    names = ["no_relation", "x", "y", "z"]
    golds = [names[k] for k in draw.integers(0, 4, 100)]
    found = [gold if draw.random() < 0.4 else names[k] for gold, k in zip(golds, draw.integers(0, 4, 100))]
    metrics = scores(golds, found, names)
    micro = [metrics[name] for name in ("precision", "recall", "micro_f1")]
    assert micro == pytest.approx(tacred(golds, found))
    theirs = precision_recall_fscore_support(golds, found, labels=names[1:], average="micro")[:3]
    assert micro == pytest.approx([100 * value for value in theirs])
    macro = precision_recall_fscore_support(golds, found, labels=names[1:], average="macro")[2]
    assert metrics["macro_f1"] == pytest.approx(100 * macro)


# --- the task ----------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_a_layer_on_two_states_of_transformers(
    tmp_path: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> None:
    """The file holds the paper's matrix, (labels, 2 H); the encoder's states are those of BertModel."""
    features, grown = pair_set(tmp_path, tokenizer, "markers")
    model = build_model(SpanBertForRelation, make_model().config, 3, num_labels=2).eval()
    model.add_words(grown.vocab_size - tokenizer.vocab_size, 0)
    torch.nn.init.normal_(model.relation.first.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.relation.second.weight, generator=torch.Generator().manual_seed(1))
    task = RelationTask(RelationSettings(64, "markers", labels=("Made-Of(e1,e2)", "Other")))
    save_model(tmp_path / "m", model, grown, task.model_config())
    encoder, tensors = BertModel.from_pretrained(tmp_path / "m").eval(), load_file(tmp_path / "m" / "model.safetensors")
    windows = np.arange(2)
    batch, labels = features.packed(windows).tensors(), torch.from_numpy(features.labels(windows))
    total = 0.0
    with torch.no_grad():
        for number, (label, (first, second)) in enumerate(zip(labels.tolist(), features.at_E2.tolist(), strict=True)):
            begin, end = batch.cu_seqlens[number : number + 2].tolist()
            hidden_TH = encoder(batch.packed.input_ids_T[None, begin:end]).last_hidden_state[0]
            states = torch.cat([hidden_TH[first], hidden_TH[second]])
            logits = tensors["relation.dense.weight"] @ states + tensors["relation.dense.bias"]
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(label)))
        assert float(task.loss(model(batch), labels, batch)) == pytest.approx(total, abs=1e-4)
    assert total > 0.5
    again, report = load_model(tmp_path / "m", SpanBertForRelation)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert report.unused == ()


def test_rows_are_added_and_the_others_stay(make_model: Callable[..., SpanBertForQuestionAnswering]) -> None:
    shape = make_model().config
    models = [build_model(SpanBertForRelation, shape, 3, num_labels=2) for _ in range(3)]
    models[1].add_words(5, 0)
    models[2].add_words(5, 1)
    plain, grown, other = (model.encoder.embeddings.word.weight for model in models)
    assert torch.equal(grown[: shape.vocab_size], plain)
    assert grown.shape[0] == models[1].config.vocab_size == models[1].encoder.config.vocab_size == shape.vocab_size + 5
    assert 0.5 < float((grown[shape.vocab_size :].std() / plain.std()).detach()) < 1.5
    assert not torch.equal(grown, other)
    assert grown.requires_grad


@pytest.fixture
def config(
    tmp_path: Path, tokenizer: Tokenizer, make_model: Callable[..., SpanBertForQuestionAnswering]
) -> FinetuneRelationConfig:
    """A tiny model, and texts in which the relation is the order of the two entities."""
    save_model(tmp_path / "start", make_model(), tokenizer)
    draw, entries = np.random.default_rng(0), []
    for n in range(48):
        words = [("from", "the", "was")[k] for k in draw.integers(0, 3, draw.integers(4, 9))]
        one, two = sorted(draw.permutation(len(words))[:2].tolist())
        turned = n % 2
        subject, object = (two, one) if turned else (one, two)
        words[subject], words[object] = "that", "end"
        relation = "no_relation" if n % 3 == 0 else "after" if turned else "before"
        if n % 3 == 0:
            words[subject] = "day"
        entries.append({"id": str(n), "token": words, "relation": relation, "subj_start": subject, "subj_end": subject,
                        "obj_start": object, "obj_end": object, "subj_type": "A", "obj_type": "B"})  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(entries))
    return FinetuneRelationConfig(
        tmp_path / "train.json",
        tmp_path / "run",
        str(tmp_path / "start"),
        dev=tmp_path / "train.json",
        encoding="typed",
        window=32,
        epochs=14,
        batch_size=8,
        lr=4e-3,
        dropout=0.0,
        device="cpu",
    )


def test_a_tiny_model_learns_is_scored_and_predicts(
    config: FinetuneRelationConfig,
    tmp_path: Path,
    tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_finetune(config)
    stored = json.loads((config.output / "model" / "config.json").read_text())
    assert stored["vocab_size"] == tokenizer.vocab_size + 4 == Tokenizer.load(config.output / "model").vocab_size
    assert stored["id2label"] == {"0": "after", "1": "before", "2": "no_relation"}
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert metrics["micro_f1"] > 90
    run_evaluate(EvaluateRelationConfig(config.output, config.train, output=tmp_path / "scores", device="cpu"))
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert again | {"seconds": 0} == metrics | {"seconds": 0}
    capsys.readouterr()

    # an already fine-tuned model has the tokens; from standard input, without relations
    line = {"text": "from that the end", "subject": [5, 9, "A"], "object": [14, 17, "B"]}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(line).encode())))
    run_predict(PredictRelationConfig(config.output, Path("-"), device="cpu"))
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert record["subject"] == {"start": 5, "end": 9, "text": "that", "type": "A"}
    assert record["object"] == {"start": 14, "end": 17, "text": "end", "type": "B"}
    assert record["relation"] == max(record["probabilities"], key=record["probabilities"].get)
    assert sum(record["probabilities"].values()) == pytest.approx(1)


def test_a_run_resumes_bit_for_bit(config: FinetuneRelationConfig, resumes_bit_for_bit: Callable[..., None]) -> None:
    """The vocabulary is grown at the start of the run, and not once more when it is resumed."""
    resumes_bit_for_bit(run_finetune, config)


def test_mistakes_are_told_before_anything_is_written(config: FinetuneRelationConfig, tmp_path: Path) -> None:
    entries = json.loads(config.train.read_text())
    one = [entry for entry in entries if entry["relation"] == "after"]
    (tmp_path / "one.json").write_text(json.dumps([*one, entries[0] | {"subj_end": 999, "relation": "before"}]))
    (tmp_path / "untyped.json").write_text(json.dumps([entry | {"subj_type": ""} for entry in entries]))
    for change, message in (
        ({"train": tmp_path / "one.json"}, "all relations are 'after'; there is nothing to learn; skipped 1 mal"),
        ({"train": tmp_path / "untyped.json"}, "has entities without a type; --encoding typed needs types"),
        ({"window": 8}, "window 8: give 16 to 128 tokens"),
    ):
        with pytest.raises(UserError, match=message):
            run_finetune(replace(config, **change))  # type: ignore[arg-type]
        assert not config.output.exists()
