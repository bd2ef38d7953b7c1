"""``spanbert export --format onnx``: what onnxruntime computes from the file is what our own models compute."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spanbert.checkpoint import export_onnx
from spanbert.checkpoint.architectures import UNTRAINED, architecture_of
from spanbert.checkpoint.export_hub import ExportConfig, run_export
from spanbert.checkpoint.model_folder import load_model, save_model
from spanbert.checkpoint.onnx_graph import OPSET, Graph
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch
from spanbert.model.config import EncoderConfig
from spanbert.model.models import (
    SpanBertForPretraining,
    SpanBertForQuestionAnswering,
    SpanBertForRelation,
    SpanBertForSequenceClassification,
    SpanBertForTokenClassification,
    SpanBertModel,
)
from spanbert.model.packing import unpack
from spanbert.model.quantized import round_channels, round_rows
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer
from spanbert.weights import bundled_path

onnx = pytest.importorskip("onnx", reason="needs the package of the extra `onnx`")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs what is exported")

SHAPE = EncoderConfig(
    vocab_size=16,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    sbo_positions=6,
    sbo_position_size=10,
)
TOKENIZER = Tokenizer({token: number for number, token in enumerate([*SPECIAL_TOKENS, *"abcdefghijk"])})
WEIGHT = torch.randn(7, SHAPE.hidden_size, generator=torch.Generator().manual_seed(2))
LENGTHS = ((1,), (16,), (9, 9), (5, 16, 1, 12))  # one token, full windows, no padding, and padding


def session(folder: Path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def padded_batch(lengths: tuple[int, ...], vocabulary: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens; whatever stands in the padding must make no difference."""
    rng = np.random.default_rng(seed)
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return {
        "input_ids": rng.integers(0, vocabulary, real.shape),
        "attention_mask": real.astype(np.int64),
        "token_type_ids": rng.integers(0, 2, real.shape),
    }


def packed_batch(padded: dict[str, np.ndarray]) -> PackedBatch[torch.Tensor]:
    real = padded["attention_mask"].astype(bool)
    cu_seqlens = torch.tensor([0, *real.sum(1).cumsum()], dtype=torch.int32)
    ids, types = (torch.from_numpy(padded[name][real]) for name in ("input_ids", "token_type_ids"))
    return PackedBatch(ids, cu_seqlens, real.shape[1], types)


@torch.inference_mode()
def ours(model: SpanBertModel, batch: PackedBatch[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs of our model under the graph's names, packed: (T, …), or (B, labels) for sequences."""
    hidden_TH = model.encoder(*batch)
    match model:
        case SpanBertForQuestionAnswering():
            start_T, end_T = model(batch)
            return {"start_logits": start_T, "end_logits": end_T}
        case SpanBertForTokenClassification() | SpanBertForSequenceClassification():
            return {"logits": model(batch)}
        case SpanBertForRelation():
            return {"first_logits": model.relation.first(hidden_TH), "second_logits": model.relation.second(hidden_TH)}
        case SpanBertForPretraining():
            return {"logits": model.mlm(hidden_TH) @ model.encoder.embeddings.word.weight.T + model.mlm.bias}
        case _:
            return {"last_hidden_state": hidden_TH}


def differences(folder: Path, model: SpanBertModel, lengths: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Output → |theirs − ours| at the real tokens; asserts that the outputs and their shapes are the same."""
    padded = padded_batch(lengths, model.config.vocab_size, seed)
    batch, running = packed_batch(padded), session(folder)
    expected = ours(model.eval(), batch)
    assert [one.name for one in running.get_outputs()] == list(expected)
    found = {}
    for (name, values), theirs in zip(expected.items(), running.run(list(expected), padded), strict=True):
        if values.shape[0] == batch.tokens and theirs.shape[:2] == padded["input_ids"].shape:
            values = unpack(values, batch.cu_seqlens, max(lengths))
            theirs[~padded["attention_mask"].astype(bool)] = 0
        assert theirs.shape == values.shape and theirs.dtype == np.float32
        found[name] = np.abs(theirs - values.numpy())
    return found


MODELS = {
    "encoder": SpanBertModel,
    "pretraining": SpanBertForPretraining,
    "qa": SpanBertForQuestionAnswering,
    "token-classification": SpanBertForTokenClassification,
    "sequence-classification": SpanBertForSequenceClassification,
    "relation": SpanBertForRelation,
}


def make(task: str, randomise, shape: EncoderConfig = SHAPE) -> SpanBertModel:
    if task == "encoder":
        model: SpanBertModel = SpanBertForPretraining(shape)
    else:
        options = {"num_labels": 5} if architecture_of(MODELS[task]).labels else {}
        model = MODELS[task](shape, **options)
    randomise(model, 7)
    return model


@pytest.mark.parametrize("task", MODELS)
def test_every_kind_of_model_gives_our_own_outputs(tmp_path, randomise, task):
    model = make(task, randomise)
    save_model(tmp_path / "m", model, TOKENIZER)
    run_export(ExportConfig(tmp_path / "m", tmp_path / "out", format="onnx", task=task))
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
    if task == "encoder":
        bare = SpanBertModel(SHAPE)
        bare.encoder = model.encoder
        model = bare
    for lengths in LENGTHS:
        for name, difference in differences(tmp_path / "out", model, lengths).items():
            assert difference.max() < 1e-4, (name, lengths)


@pytest.mark.parametrize("task", [task for task in MODELS if task != "encoder"])
def test_without_a_task_the_class_in_the_configuration_decides(tmp_path, randomise, capsys, task):
    """That of a relation model is the bare encoder's, so the head in the file tells."""
    save_model(tmp_path / "m", make(task, randomise), TOKENIZER)
    run_export(ExportConfig(tmp_path / "m", tmp_path / "out", format="onnx"))
    assert f"encoder and {task}" in capsys.readouterr().out
    expected = {"qa": ["start_logits", "end_logits"], "relation": ["first_logits", "second_logits"]}
    assert [one.name for one in session(tmp_path / "out").get_outputs()] == expected.get(task, ["logits"])


@pytest.mark.parametrize("name", ["reader", "scratch"])
def test_the_bundled_readers(tmp_path, name):
    run_export(ExportConfig(bundled_path(name), tmp_path / "out", format="onnx"))
    model, _ = load_model(bundled_path(name), SpanBertForQuestionAnswering)
    for lengths in ((7,), (130,), (61, 140, 3)):
        for output, difference in differences(tmp_path / "out", model, lengths).items():
            assert difference.max() < 1e-4, (output, lengths)


def test_one_type_of_segment_serves_for_both(tmp_path, randomise):
    model = make("qa", randomise, dataclasses.replace(SHAPE, type_vocab_size=1))
    save_model(tmp_path / "m", model, TOKENIZER)
    run_export(ExportConfig(tmp_path / "m", tmp_path / "out", format="onnx"))
    assert all(one.max() < 1e-4 for one in differences(tmp_path / "out", model, (5, 16)).values())


def test_the_folder_has_configuration_and_tokenizer_and_no_other_weights(tmp_path, randomise):
    save_model(tmp_path / "m", make("qa", randomise), TOKENIZER, {"qa": {"window": 12}, UNTRAINED: ["mlm"]})
    run_export(ExportConfig(tmp_path / "m", tmp_path / "out", format="onnx"))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForQuestionAnswering"] and config["qa"] == {"window": 12}
    assert UNTRAINED not in config  # of a head that is not in the graph
    described = {one.name: one for one in session(tmp_path / "out").get_inputs()}
    assert list(described) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(one.shape == ["batch_size", "sequence_length"] for one in described.values())


def test_int8_weights_are_integers_with_a_scale_for_each_channel(tmp_path, randomise):
    model = make("pretraining", randomise)
    save_model(tmp_path / "m", model, TOKENIZER)
    run_export(ExportConfig(tmp_path / "m", tmp_path / "out", format="onnx", int8=True))
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    integers = [name for name, array in arrays.items() if array.dtype == np.int8]
    products = [node.op_type for node in graph.node].count("MatMulInteger")
    assert len(integers) == 4 * SHAPE.num_hidden_layers + 1 and products == 4 * SHAPE.num_hidden_layers + 1
    plain = model.encoder.layers[1].feed_forward_in.weight.detach().numpy()
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    rounded, scale = arrays[f"{name}.int8"].T, arrays[f"{name}.scale"][:, None]
    assert (np.abs(rounded).max(1) == 127).all() and (np.abs(rounded * scale - plain) <= 0.5001 * scale).all()


def test_int8_rounds_as_our_own_int8_products_do(tmp_path, randomise):
    """Every token by itself: the words beside it and the padding leave it as it is."""
    save_model(tmp_path / "m", make("qa", randomise), TOKENIZER)
    run_export(ExportConfig(tmp_path / "m", tmp_path / "out", format="onnx", int8=True))
    together, running = padded_batch((5, 16, 1, 12), 16), session(tmp_path / "out")
    start_BL = running.run(["start_logits"], together)[0]
    for row, length in enumerate((5, 16, 1, 12)):
        alone = {name: values[row : row + 1, :length] for name, values in together.items()}
        assert running.run(["start_logits"], alone)[0][0] == pytest.approx(start_BL[row, :length], abs=1e-4)
    x = torch.randn(6, SHAPE.hidden_size, generator=torch.Generator().manual_seed(3))
    x[2] *= 1000
    x[4] = 0
    assert product_of_graph(x.numpy()) == pytest.approx(product_of_integers(x), rel=1e-5, abs=1e-5)


def product_of_graph(x: np.ndarray) -> np.ndarray:
    """The graph's own product, alone in a model."""
    graph = Graph({"one.weight": WEIGHT, "one.bias": torch.arange(7.0)}, SHAPE, int8=True)
    output = graph.linear("x", "one", int8=True)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, ["n", size]) for name, size in (("x", 24), (output, 7))]
    described = helper.make_graph(graph.nodes, "one", ends[:1], ends[1:], list(graph.weights.values()))
    model = helper.make_model(described, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def product_of_integers(x: torch.Tensor) -> np.ndarray:
    """What ``Int8Linear`` computes, by integers and float64."""
    (weights, by_channel), (activations, by_row) = round_channels(WEIGHT), round_rows(x)
    whole = (activations.long() - 128) @ weights.long().T
    return (whole.double() * by_row.double() * by_channel.double() + torch.arange(7.0).double()).numpy()


@pytest.mark.parametrize("task", ["qa", "pretraining"])
def test_int8_outputs_are_near(tmp_path, randomise, task):
    """Rounding to 127 steps costs about a hundredth of what it rounds, and is not the same as no rounding."""
    model = make(task, randomise)
    save_model(tmp_path / "m", model, TOKENIZER)
    run_export(ExportConfig(tmp_path / "m", tmp_path / "out", format="onnx", int8=True))
    spread = torch.cat([one.flatten() for one in ours(model, packed_batch(padded_batch((5, 16), 16))).values()]).std()
    for difference in differences(tmp_path / "out", model, (5, 16)).values():
        assert 0 < difference.mean() < 0.05 * spread


def test_without_the_library_one_sentence_says_what_to_install(tmp_path, monkeypatch, randomise):
    save_model(tmp_path / "m", make("qa", randomise), TOKENIZER)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"needs the package onnx .*: pip install 'spanbert\[onnx\]'$"):
        run_export(ExportConfig(tmp_path / "m", tmp_path / "out", format="onnx"))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_one_clear_sentence(tmp_path, monkeypatch, randomise):
    source, out = tmp_path / "m", tmp_path / "out"
    save_model(source, make("qa", randomise), TOKENIZER)
    with pytest.raises(UserError, match="--int8 goes with --format onnx"):
        run_export(ExportConfig(source, out, int8=True))
    with pytest.raises(UserError, match="--dtype bf16: an ONNX model is written in fp32"):
        run_export(ExportConfig(source, out, format="onnx", dtype="bf16"))
    with pytest.raises(UserError, match="has no relation head"):
        run_export(ExportConfig(source, out, format="onnx", task="relation"))
    monkeypatch.setattr(export_onnx, "LARGEST_FILE", 1000)
    with pytest.raises(UserError, match="at most 2 GiB"):
        run_export(ExportConfig(source, out, format="onnx"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMultipleChoice"]}))
    with pytest.raises(UserError, match=r"calls itself BertForMultipleChoice, .* say which part with --task"):
        run_export(ExportConfig(source, out, format="onnx"))
    assert [one.name for one in tmp_path.iterdir()] == ["m"]
