"""Training through the pretraining heads: the same scores as the prompt command, all of a task's promises, bad input in one
sentence."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from finetune.evaluate import evaluate
from finetune.predict import Machine
from finetune.tasks.classification.classify import ClassifyConfig, arguments
from finetune.tasks.classification.commands import (
    EvaluateClassifyConfig,
    FinetuneClassifyConfig,
    PredictClassifyConfig,
    run_evaluate,
    run_finetune,
    run_predict,
)
from finetune.tasks.classification.prompt import parse_prompt, parse_words, word_scores
from finetune.tasks.classification.prompt_model import SpanBertForPrompts
from finetune.tasks.classification.prompt_task import PromptSettings, PromptTask, parse_label_words
from finetune.tasks.classification.records import Columns
from spanbert.checkpoint.architectures import architecture_of
from spanbert.checkpoint.model_folder import load_model, load_model_and_tokenizer, save_model
from spanbert.config import from_dict, to_dict
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining, SpanBertForQuestionAnswering
from spanbert.spans.log_probs import Head
from tests.span_samples import HEADS, TOKENIZER, small_model

PROMPT = "{text} , is [SPAN:3] ."
#: words of one, two and three tokens, and a second one of two
WORDS = {"0": "old", "1": "unlike", "2": "unlikely", "3": "big un"}
TEXTS = ("the city of Rome", "Paris", "the big old capital of Spain is Madrid", "sunny")


def prompt_model(head: Head = "both", seed: int = 0) -> SpanBertForPrompts:
    """With the weights of ``small_model``."""
    start = small_model(seed)
    model = SpanBertForPrompts(start.config, head)
    model.load_state_dict(start.state_dict(), strict=head != "mlm")
    return model.eval()


@pytest.fixture
def start(tmp_path: Path) -> Path:
    save_model(tmp_path / "start", small_model(), TOKENIZER)
    return tmp_path / "start"


@pytest.fixture
def config(tmp_path: Path, start: Path) -> FinetuneClassifyConfig:
    """Texts that are "city" when they name one, and "country" when they name that."""
    names = {"city": ("Paris", "Madrid", "Rome"), "country": ("France", "Spain", "Italy")}
    draw = np.random.default_rng(0)
    lines = ["text\tlabel\n"]
    for n in range(36):
        label = ("city", "country")[n % 2]
        around = [["the", "sunny", "of", "is", ","][k] for k in draw.integers(0, 5, draw.integers(1, 14))]
        around.insert(int(draw.integers(len(around) + 1)), names[label][n // 2 % 3])
        lines.append(f"{' '.join(around)}\t{label}\n")
    (tmp_path / "train.tsv").write_text("".join(lines))
    return FinetuneClassifyConfig(
        tmp_path / "train.tsv",
        tmp_path / "run",
        str(start),
        dev=tmp_path / "train.tsv",
        prompt="{text} , is [SPAN:2] .",
        words=("city=old", "country=unlike"),
        window=18,
        epochs=10,
        batch_size=8,
        lr=3e-3,
        dropout=0.0,
        device="cpu",
    )


def prompt_task(texts: tuple[str, ...], path: Path, head: Head, window: int = 24) -> tuple[PromptTask, Path]:
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{n % 4}\n" for n, text in enumerate(texts)))
    settings = PromptSettings(window, labels=tuple(WORDS), prompt=PROMPT, words=WORDS, head=head)
    return PromptTask(settings), path


@pytest.mark.parametrize("head", HEADS)
def test_scores_are_those_of_the_prompt_command(head: Head, tmp_path: Path) -> None:
    task, path = prompt_task(TEXTS, tmp_path / "t.tsv", head)
    features = task.encode(task.read(path, "evaluate"), TOKENIZER, "evaluate")
    prompt = parse_prompt(PROMPT, TOKENIZER, 24)
    words = parse_words(tuple(WORDS.values()), TOKENIZER, prompt.width)
    assert [len(word) for word in words] == [1, 2, 3, 2]
    expected_EW = word_scores(
        small_model(), TOKENIZER, prompt, words, [TOKENIZER.encode(text).ids for text in TEXTS], head, 100
    )
    windows = np.array([2, 0, 3, 1])
    with torch.no_grad():
        found_WL = prompt_model(head)(features.packed(windows).tensors())
    np.testing.assert_allclose(found_WL.numpy(), expected_EW[windows], atol=1e-5)
    assert features.lengths.tolist() == [3 * (len(TOKENIZER.encode(text).ids) + 5) + 1 + 2 + 3 for text in TEXTS]
    assert features.lengths[windows].sum() == features.packed(windows).packed.tokens


def test_the_loss_is_cross_entropy_over_the_words_and_reaches_encoder_and_heads(tmp_path: Path) -> None:
    task, path = prompt_task(TEXTS, tmp_path / "t.tsv", "both")
    features = task.encode(task.read(path, "train"), TOKENIZER, "train")
    model = prompt_model()
    batch = features.packed(np.arange(4)).tensors()
    output = model(batch)
    loss = task.loss(output, torch.from_numpy(features.labels(np.arange(4))), batch)
    by_hand = -sum(F.log_softmax(output[n].double(), 0)[n] for n in range(4))
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-5)
    loss.backward()
    unused = {name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()}
    assert unused == {"encoder.embeddings.token_type.weight"} & unused
    # one head alone: the other is not there, or stands still, for processes that train together wait for every gradient
    assert not any(name.startswith("sbo") for name, _ in prompt_model("mlm").named_parameters())
    frozen = [name for name, one in prompt_model("sbo").named_parameters() if not one.requires_grad]
    assert {name.partition(".")[0] for name in frozen} == {"mlm"}


def test_a_long_text_is_seen_in_windows_beside_the_prompt(tmp_path: Path) -> None:
    long = " ".join(["Rome", "is", "big", "the", "old"] * 4)
    task, path = prompt_task(("Paris", long), tmp_path / "t.tsv", "mlm", window=16)
    features = task.encode(task.read(path, "evaluate"), TOKENIZER, "evaluate")
    room = 16 - 2 - 3 - 3  # [CLS] and [SEP]; ", is" and "."; the longest word
    assert np.diff(features.bounds).tolist() == [1, -(-20 // room)]
    batch = features.packed(np.arange(1, features.bounds[-1]))
    assert batch.packed.max_seqlen == 16
    seen = set()
    for begin, end in zip(batch.packed.cu_seqlens[:-1], batch.packed.cu_seqlens[1:], strict=True):
        ids = batch.packed.input_ids_T[begin:end].tolist()
        assert ids[1 + room : 3 + room] == TOKENIZER.encode(", is").ids.tolist()
        seen.add(tuple(ids[1 : 1 + room]))
    ids = TOKENIZER.encode(long).ids.tolist()
    assert {ids[n] for n in range(20)} <= {token for part in seen for token in part}
    assert len(seen) == 3
    evaluation = evaluate(task, prompt_model("mlm"), features, Machine(torch.device("cpu"), "fp32"))
    assert evaluation.metrics["texts_in_parts"] == 1


@pytest.mark.parametrize("head", HEADS)
def test_a_tiny_model_learns_is_scored_and_predicts(
    head: Head,
    config: FinetuneClassifyConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_finetune(replace(config, head=head, epochs=40))
    assert "longer than" in capsys.readouterr().out
    stored = json.loads((config.output / "model" / "config.json").read_text())
    assert stored["classify"]["prompt"] == config.prompt
    assert stored["classify"]["words"] == {"city": "old", "country": "unlike"}
    assert stored["classify"]["head"] == head
    assert stored["architectures"] == ["BertForMaskedLM"]
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert metrics["accuracy"] > 95
    card = (config.output / "model" / "README.md").read_text()
    assert f"| head | {head} |" in card
    assert f"| prompt | {config.prompt} |" in card

    # prompt and words are remembered; evaluation alone gives the same numbers
    run_evaluate(EvaluateClassifyConfig(config.output, config.train, output=tmp_path / "scores", device="cpu"))
    again = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert again | {"seconds": 0} == metrics | {"seconds": 0}
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the Rome is\nthe Italy is\n")))
    run_predict(PredictClassifyConfig(config.output, Path("-"), device="cpu"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["label"] for line in lines] == ["city", "country"]
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1)

    # what comes out is a pretraining model again, whose trained heads are those that were trained
    _, report = load_model(config.output / "model", SpanBertForPretraining)
    assert report.has("mlm")
    assert report.has("sbo") == (head != "mlm")
    moved = {
        name.split(".")[1]
        for name, tensor in load_file(config.output / "model" / "model.safetensors").items()
        if name.startswith("cls.")
        and not torch.equal(tensor, load_file(tmp_path / "start" / "model.safetensors")[name])
    }
    expected = {"mlm": {"predictions"}, "sbo": {"pair_target_predictions"}}
    assert moved == expected.get(head, {"predictions", "pair_target_predictions"})


def test_a_run_resumes_bit_for_bit(config: FinetuneClassifyConfig, resumes_bit_for_bit: Callable[..., None]) -> None:
    resumes_bit_for_bit(run_finetune, config)


def test_few_examples_seeds_early_stopping_and_adapters_go_with_it(config: FinetuneClassifyConfig) -> None:
    few = replace(
        config, examples_per_class=4, batch_size=4, lora="rank=2,alpha=4,on=both", seeds=(0, 1), epochs=3, patience=1
    )
    run_finetune(few)
    summary = json.loads((config.output / "seeds.json").read_text())
    assert summary["main_metric"] == "accuracy"
    assert summary["seeds"] == [0, 1]
    model = config.output / "seed-0" / "model"
    assert (model / "adapter_model.safetensors").is_file()
    run_evaluate(EvaluateClassifyConfig(model, config.train, output=config.output / "scores", device="cpu"))
    scores = json.loads((config.output / "scores" / "metrics.json").read_text())
    assert scores["accuracy"] == summary["metrics"]["accuracy"]["seeds"]["0"]


def test_head_auto_is_every_head_that_has_been_trained(config: FinetuneClassifyConfig, tmp_path: Path) -> None:
    save_model(tmp_path / "mlm", small_model(), TOKENIZER, {"untrained_heads": ["sbo"]})
    for init, head in ((config.init, "both"), (str(tmp_path / "mlm"), "mlm")):
        output = tmp_path / f"run-{head}"
        run_finetune(replace(config, init=init, output=output, epochs=1, dev=None))
        assert json.loads((output / "model" / "config.json").read_text())["classify"]["head"] == head
        assert json.loads((output / "config.json").read_text())["head"] == head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": ("city=old", "town=big")}, r"train\.tsv: the label 'country' has no word, only city, town: give"),
        ({"words": ("city=old",)}, "--words: there are 1, give one for each class"),
        ({"words": ()}, "--prompt needs --words"),
        ({"words": ("city=old", "city=big")}, "the label 'city' stands there twice"),
        ({"words": ("city=old", "=big")}, "'=big' names no label"),
        ({"words": ("city=old", "country=")}, "'' is empty: it has no token"),
        ({"words": ("city=old", "country=unlikely")}, "'unlikely' has 3 tokens .un ##like ##ly., the prompt's span 2"),
        ({"words": ("city=old", "country=old")}, "are the same tokens"),
        ({"prompt": "It is [SPAN:2] ."}, r"needs \{text\} exactly once"),
        ({"prompt": "{text} is old ."}, "has 0 spans"),
        ({"prompt": "{text} [MASK] is [MASK]"}, "has 2 spans"),
        ({"window": 7}, "the prompt takes 7 of 7 tokens"),
        ({"window": 25}, "window 25: give 3 to 24 tokens"),
        ({"prompt": "", "head": None}, "--words goes with --prompt"),
        ({"prompt": "", "words": (), "head": "mlm"}, "--head goes with --prompt"),
        ({"text_pair": "other"}, "--prompt is for single texts"),
        ({"problem": "multi"}, "--prompt is for single texts"),
        (
            {"init": "random", "tokenizer": Path("vocab.txt")},
            "--prompt trains the pretraining heads: give a pretrained",
        ),
    ],
)
def test_bad_input_is_one_sentence(config: FinetuneClassifyConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run_finetune(replace(config, **changes))
    assert "\n" not in str(caught.value)
    assert not config.output.exists()


def test_a_model_without_the_head_is_refused(config: FinetuneClassifyConfig, tmp_path: Path) -> None:
    """As imports of sentence encoders (MiniLM) are: an encoder, with heads that were only initialised or none."""
    save_model(tmp_path / "reader", SpanBertForQuestionAnswering(small_model().config), TOKENIZER)
    save_model(tmp_path / "imported", small_model(), TOKENIZER, {"untrained_heads": ["mlm", "sbo"]})
    save_model(tmp_path / "mlm", small_model(), TOKENIZER, {"untrained_heads": ["sbo"]})
    for name in ("reader", "imported"):
        with pytest.raises(UserError, match=f"{name} has no trained MLM or SBO head, only an encoder"):
            run_finetune(replace(config, init=str(tmp_path / name)))
    with pytest.raises(UserError, match=r"has no trained SBO head \(it was only initialised\): use --head mlm"):
        run_finetune(replace(config, init=str(tmp_path / "mlm"), head="sbo"))
    narrow = small_model()
    narrow.config = replace(narrow.config, sbo_positions=1)
    model = SpanBertForPretraining(narrow.config)
    save_model(tmp_path / "narrow", model, TOKENIZER)
    with pytest.raises(UserError, match="SBO head was built for spans of at most 1 tokens, not 2: use --head mlm"):
        run_finetune(replace(config, init=str(tmp_path / "narrow")))


def test_a_pair_of_texts_is_refused_afterwards_too(config: FinetuneClassifyConfig) -> None:
    run_finetune(replace(config, epochs=1, dev=None))
    with pytest.raises(UserError, match="a prompt takes one text"):
        run_evaluate(EvaluateClassifyConfig(config.output, config.train, text_pair="label", device="cpu"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("words", ["old", "big"], "words does not give each of the labels its word"),
        ("words", {"city": "old"}, "words does not give each of the labels its word"),
        ("words", {"city": "old", "country": 3}, "words does not give each of the labels its word"),
        ("head", "none", "head is 'none': expected mlm, sbo, both"),
        ("hint", "", "unknown key 'hint'"),
    ],
)
def test_damaged_settings_are_named(key: str, value: object, message: str) -> None:
    settings = PromptSettings(
        labels=("city", "country"), prompt=PROMPT, words={"city": "old", "country": "big"}, columns=Columns("a", "b")
    )
    stored = {"classify": to_dict(settings)}
    assert PromptTask.of_model(stored, 24, "here").settings == settings
    stored["classify"][key] = value
    with pytest.raises(UserError, match=f'here: "classify": {message}'):
        PromptTask.of_model(stored, 24, "here")


def test_labels_and_words_are_split_at_the_last_equals_sign() -> None:
    assert parse_label_words(("a=b=c", "great")) == {"a=b": "c", "great": "great"}


def test_the_command_without_training_takes_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a text\n")
    config = ClassifyConfig(PROMPT, ("negative=old", "positive=big", str(path)))
    assert arguments(config) == (path, ("old", "big"), ("negative", "positive"))
    assert arguments(replace(config, words=("a=b", "c"), labels=("0", "1", str(path)))) == (
        path,
        ("a=b", "c"),
        ("0", "1"),
    )


def test_a_class_made_from_one_of_the_table_is_saved_like_that() -> None:
    assert architecture_of(SpanBertForPrompts) is architecture_of(SpanBertForPretraining)


def test_the_trained_model_fills_spans_again(config: FinetuneClassifyConfig) -> None:
    """It is an ordinary pretraining model with its tokenizer, so `spanbert fill` and `spanbert classify` take it."""
    run_finetune(replace(config, epochs=1, dev=None, head="mlm"))
    model, tokenizer, report = load_model_and_tokenizer(config.output / "model", SpanBertForPretraining)
    assert tokenizer.fingerprint == TOKENIZER.fingerprint
    assert report.has("mlm")
    assert model.config.sbo_positions == 6
    assert from_dict(PromptSettings, report.config["classify"]).prompt == config.prompt
