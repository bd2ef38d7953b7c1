"""Model folders: lossless both ways, readable by transformers and from transformers, whole or absent."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from spanbert.checkpoint.architectures import UNTRAINED
from spanbert.checkpoint.model_folder import load_model, save_model
from spanbert.errors import UserError
from spanbert.model import models
from spanbert.model.config import EncoderConfig
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

CLASSES = {
    models.SpanBertForPretraining: {},
    models.SpanBertForQuestionAnswering: {},
    models.SpanBertForTokenClassification: {"num_labels": 5},
    models.SpanBertForSequenceClassification: {"num_labels": 3},
}
SHAPE = EncoderConfig(
    vocab_size=24,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    sbo_positions=6,
    sbo_position_size=10,
)


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokens = [*SPECIAL_TOKENS, *"abcdefghijklmnop", "##a", "##b", "##c"]
    return Tokenizer({token: number for number, token in enumerate(tokens)})


@pytest.fixture
def make(randomise):
    def build(cls, seed: int = 0, **changes):
        model = cls(EncoderConfig(**{**vars(SHAPE), **changes}), **CLASSES[cls])
        randomise(model, seed)
        return model

    return build


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("cls", CLASSES)
def test_saving_and_loading_is_bitwise_lossless(tmp_path, make, tokenizer, cls):
    """Odd bit patterns too: the smallest denormal, −0.0, the largest number."""
    model = make(cls)
    with torch.no_grad():
        model.encoder.layers[1].qkv.bias[:3] = torch.tensor([1e-45, -0.0, torch.finfo(torch.float32).max])
    save_model(tmp_path / "m", model, tokenizer, {"null_threshold": -1.25})
    loaded, report = load_model(tmp_path / "m", cls)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.view(torch.int32), loaded.state_dict()[name].view(torch.int32)), name
    assert loaded.config == model.config
    assert report.initialised == report.unused == ()
    assert report.config["null_threshold"] == -1.25
    assert Tokenizer.load(tmp_path / "m").fingerprint == tokenizer.fingerprint
    save_model(tmp_path / "again", loaded, tokenizer, {"null_threshold": -1.25})
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("cls", CLASSES)
def test_transformers_loads_our_folder(tmp_path, make, tokenizer, cls):
    """The class that config.json names: nothing missing; unexpected at most our SBO head."""
    save_model(tmp_path, make(cls), tokenizer)
    name = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    _, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(key.startswith("cls.pair_target_predictions.") for key in info["unexpected_keys"])
    assert bool(info["unexpected_keys"]) == (cls is models.SpanBertForPretraining)
    pieces = transformers.AutoTokenizer.from_pretrained(tmp_path)("ab c")["input_ids"]
    assert pieces == [tokenizer.cls_id, *tokenizer.encode("ab c").ids, tokenizer.sep_id]


@pytest.mark.parametrize("cls", CLASSES)
def test_transformers_bert_model_finds_its_whole_encoder(tmp_path, make, tokenizer, cls):
    save_model(tmp_path, make(cls), tokenizer)
    bare, info = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} <= {"pooler"}
    assert not any("embeddings" in key or "encoder." in key for key in info["unexpected_keys"] if "cls." not in key)
    stored = load_file(tmp_path / "model.safetensors")
    encoder = {name: tensor for name, tensor in bare.state_dict().items() if not name.startswith("pooler.")}
    assert all(torch.equal(tensor, stored[f"bert.{name}"]) for name, tensor in encoder.items())


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"])
@pytest.mark.parametrize("name", ["MaskedLM", "QuestionAnswering", "TokenClassification", "SequenceClassification"])
def test_we_load_what_transformers_saves(tmp_path, reference_of, copy_weights, name, max_shard_size):
    """Whole and in shards; nothing initialised, nothing unused, the number of labels found."""
    extra = {"num_labels": 4} if name.endswith("Classification") else {}
    theirs = reference_of(f"BertFor{name}", SHAPE, 1, **extra)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "10KB")
    cls = models.SpanBertForPretraining if name == "MaskedLM" else getattr(models, f"SpanBertFor{name}")
    ours, report = load_model(tmp_path, cls)
    assert report.unused == ()
    if name == "MaskedLM":
        assert all(key.startswith("cls.pair_target_predictions.") for key in report.initialised)
        assert report.has("mlm") and not report.has("sbo")
    else:
        assert report.initialised == ()
    expected = cls(ours.config, **extra)
    copy_weights(expected, theirs)
    if name == "MaskedLM":
        expected.sbo.load_state_dict(ours.sbo.state_dict())
    assert same(ours, expected)


def test_the_tied_output_matrix_is_not_stored(tmp_path, make, tokenizer):
    from safetensors import safe_open

    save_model(tmp_path, make(models.SpanBertForPretraining), tokenizer)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
        linear1 = file.get_tensor("cls.pair_target_predictions.mlp_layer_norm.linear1.weight")
    assert "cls.predictions.bias" in names and not any("decoder" in name for name in names)
    assert list(linear1.shape) == [24, 2 * 24 + 10]  # [left | right | position], the authors' order


def test_missing_parts_come_from_the_seed_and_nothing_else(tmp_path, make, tokenizer):
    save_model(tmp_path, make(models.SpanBertForPretraining), tokenizer)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, report = load_model(tmp_path, models.SpanBertForQuestionAnswering, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.randn(7)
    again, _ = load_model(tmp_path, models.SpanBertForQuestionAnswering, seed=1)
    other, _ = load_model(tmp_path, models.SpanBertForQuestionAnswering, seed=2)
    assert same(first, again) and not same(first, other)
    assert report.initialised == ("qa_outputs.weight", "qa_outputs.bias")
    assert not report.has("qa_outputs") and not report.has("mlm")
    assert {name.split(".")[0] for name in report.unused} == {"cls"}
    for words in ("qa_outputs.* (2 tensors)", "cls.predictions.* (5 tensors)"):
        assert words in str(report)


def test_heads_that_are_called_untrained_are_not_taken_as_trained(tmp_path, make, tokenizer):
    save_model(tmp_path, make(models.SpanBertForPretraining), tokenizer, {UNTRAINED: ["sbo"]})
    _, report = load_model(tmp_path, models.SpanBertForPretraining)
    assert report.has("mlm") and not report.has("sbo")
    assert "not trained yet: sbo" in str(report)


def test_dropout_can_be_changed_while_loading(tmp_path, make, tokenizer):
    save_model(tmp_path, make(models.SpanBertForQuestionAnswering), tokenizer)
    model, _ = load_model(
        tmp_path, models.SpanBertForQuestionAnswering, config_overrides={"hidden_dropout_prob": 0.0}, backend="sdpa"
    )
    assert model.config.hidden_dropout_prob == 0.0 and model.encoder.embeddings.dropout_p == 0.0
    assert model.encoder.backend == "sdpa"


def test_a_save_that_dies_leaves_the_old_folder(tmp_path, make, tokenizer, monkeypatch):
    old = make(models.SpanBertForQuestionAnswering, seed=1)
    save_model(tmp_path / "m", old, tokenizer)

    def die(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path / "m", make(models.SpanBertForQuestionAnswering, seed=2), tokenizer)
    loaded, _ = load_model(tmp_path / "m", models.SpanBertForQuestionAnswering)
    assert same(loaded, old)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f: edit_config(f, hidden_size=48), ["word_embeddings.weight", "[24, 24]", "[24, 48]"]),
        (lambda f: edit_config(f, num_hidden_layers=3), ["lacks", "bert.encoder.layer.2.attention.self.query.weight"]),
        (lambda f: edit_config(f, model_type="roberta"), ["config.json", "roberta"]),
        (lambda f: edit_config(f, hidden_act="gelu_new"), ["hidden_act", "gelu_new"]),
        (lambda f: edit_config(f, position_embedding_type="relative_key"), ["relative_key"]),
        (lambda f: edit_config(f, num_attention_heads=5), ["multiple of num_attention_heads"]),
        (lambda f: (f / "config.json").write_text("[1]"), ["config.json", "JSON object"]),
        (lambda f: (f / "config.json").unlink(), ["config.json", "no such file"]),
        (lambda f: (f / "model.safetensors").unlink(), ["no model.safetensors", "no weight file"]),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
            ["model.safetensors", "not a whole safetensors file"],
        ),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n"),
            ["Git LFS pointer"],
        ),
    ],
)
def test_a_broken_folder_is_one_clear_sentence(tmp_path, make, tokenizer, break_it, words):
    save_model(tmp_path, make(models.SpanBertForPretraining), tokenizer)
    break_it(tmp_path)
    with pytest.raises(UserError) as error:
        load_model(tmp_path, models.SpanBertForPretraining)
    assert all(word in str(error.value) for word in words), str(error.value)
