"""BERT and a task's head as an ONNX graph, written down operator by operator from the tensors of a file.

The graph has the padded layout of Hugging Face's models: ``input_ids``, ``attention_mask`` and ``token_type_ids`` are
(batch, sequence) int64, both sizes free. Operators are those of opset 20, the first with LayerNormalization and GELU.

With ``int8`` the products of the layers (MatMulInteger) take int8 weights, one scale per output channel, and activations
that are rounded as they come, one scale per token, as ``spanbert.model.quantized`` has it: the operator that ONNX has for
this, DynamicQuantizeLinear, has one scale for a whole input, which cost 1 point of F1 (docs/serving.md). So has the product
of the MLM head with the vocabulary. Other tensors stay fp32, the word embeddings among them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spanbert.checkpoint.architectures import MLM, POOLER, WORDS
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.quantized import LARGEST, SMALLEST, ZERO, round_channels

OPSET = 20
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
BATCH, SEQUENCE = "batch_size", "sequence_length"
LARGEST_FILE = 2**31 - 1  # bytes: protobuf's limit
Heads = Callable[["Graph", str], dict[str, Sequence[str | int]]]


def onnx_library() -> Any:
    """The package ``onnx``. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise UserError(
            f"--format onnx needs the package onnx ({error.name or error}): pip install 'spanbert[onnx]'"
        ) from None


class Graph:
    """Nodes and weights as they are added. A value is the name of what a node gives."""

    def __init__(self, tensors: Mapping[str, Tensor], config: EncoderConfig, int8: bool) -> None:
        self.tensors, self.config, self.int8 = tensors, config, int8
        self.onnx = onnx_library()
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}

    def node(self, kind: str, *inputs: str, count: int = 1, name: str | None = None, **attributes: Any) -> Any:
        """Add an operator → its output, or a list of ``count``; ``name``: of the one output, where it has one."""
        outputs = [name or f"{kind}_{len(self.nodes)}"]
        if count > 1:
            outputs = [f"{outputs[0]}_{number}" for number in range(count)]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), outputs, outputs[0], **attributes))
        return outputs if count > 1 else outputs[0]

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small number or list, under a name that says what it is."""
        array = np.asarray(value, dtype=dtype)
        return self.weight(f"{array.dtype}:{array.tolist()}", lambda: array)

    def weight(self, name: str, make: Callable[[], np.ndarray]) -> str:
        """A stored array; made when the name is first asked for."""
        if name not in self.weights:
            self.weights[name] = self.onnx.numpy_helper.from_array(np.array(make(), order="C"), name)
        return name

    def fp32(self, name: str) -> str:
        """A tensor of the file as it is."""
        return self.weight(name, lambda: array_of(self.tensors[name]))

    def linear(self, x: str, *modules: str, int8: bool = False) -> str:
        """x Wᵀ + b; the outputs of several layers of the file come side by side."""
        weight_OI = torch.cat([self.tensors[f"{module}.weight"] for module in modules]).float()
        name = "+".join(modules)
        bias = self.weight(f"{name}.bias", lambda: array_of(torch.cat([self.tensors[f"{m}.bias"] for m in modules])))
        return self.node("Add", self.product(x, f"{name}.weight", weight_OI, int8=int8 and self.int8), bias)

    def product(self, x: str, name: str, weight_OI: Tensor, *, int8: bool) -> str:
        """x Wᵀ."""
        if not int8:
            return self.node("MatMul", x, self.weight(f"{name}.transposed", lambda: array_of(weight_OI.T)))
        rounded_OI, scale_O = round_channels(weight_OI)
        rounded = self.weight(f"{name}.int8", lambda: rounded_OI.T.numpy())
        scale = self.weight(f"{name}.scale", lambda: scale_O.numpy())
        return self.integer_product(x, rounded, scale)

    def integer_product(self, x: str, rounded_IO: str, scale_O: str) -> str:
        """The product of ``x``, rounded here as ``spanbert.model.quantized.round_rows`` does, and int8 weights."""
        kinds = self.onnx.TensorProto
        largest = self.node("ReduceMax", self.node("Abs", x), self.constant([-1]))
        largest = self.node("Max", largest, self.constant(SMALLEST, np.float32))
        x_scale = self.node("Mul", largest, self.constant(1 / LARGEST, np.float32))
        signed = self.node("Round", self.node("Div", x, x_scale))
        rounded = self.node("Cast", self.node("Add", signed, self.constant(ZERO, np.float32)), to=kinds.UINT8)
        whole = self.node("MatMulInteger", rounded, rounded_IO, self.constant(ZERO, np.uint8))
        by_channel = self.node("Mul", self.node("Cast", whole, to=kinds.FLOAT), scale_O)
        return self.node("Mul", by_channel, x_scale)

    def layer_norm(self, x: str, module: str) -> str:
        return self.node(
            "LayerNormalization",
            x,
            self.fp32(f"{module}.weight"),
            self.fp32(f"{module}.bias"),
            epsilon=self.config.layer_norm_eps,
        )


def array_of(tensor: Tensor) -> np.ndarray:
    return tensor.float().contiguous().numpy()


def embeddings(graph: Graph) -> str:
    """LayerNorm(word + position + type) → (B, L, H)."""
    front = "bert.embeddings"
    words = graph.node("Gather", graph.fp32(WORDS), "input_ids")
    length = graph.node("Shape", "input_ids", start=1, end=2)
    table = graph.fp32(f"{front}.position_embeddings.weight")
    positions = graph.node("Slice", table, graph.constant([0]), length, graph.constant([0]))
    types = graph.fp32(f"{front}.token_type_embeddings.weight")
    if graph.config.type_vocab_size > 1:  # else both segments are of the one type
        types = graph.node("Gather", types, "token_type_ids")
    summed = graph.node("Add", graph.node("Add", words, positions), types)
    return graph.layer_norm(summed, f"{front}.LayerNorm")


def padding(graph: Graph) -> str:
    """What is added to the scores: 0 for a token, and for padding the lowest number → (B, 1, 1, L)."""
    tokens = graph.node("Cast", "attention_mask", to=graph.onnx.TensorProto.BOOL)
    lowest = graph.constant(np.finfo(np.float32).min, np.float32)
    scores_BL = graph.node("Where", tokens, graph.constant(0, np.float32), lowest)
    return graph.node("Unsqueeze", scores_BL, graph.constant([1, 2]))


def layer(graph: Graph, number: int, x: str, mask: str) -> str:
    """Self-attention and feed-forward, as ``spanbert.model.encoder.Layer`` has them."""
    front = f"bert.encoder.layer.{number}"
    heads, size = graph.config.num_attention_heads, graph.config.head_dim
    own = [f"{front}.attention.self.{part}" for part in ("query", "key", "value")]
    parts = graph.node("Split", graph.linear(x, *own, int8=True), count=3, axis=-1, num_outputs=3)
    shape = graph.constant([0, 0, heads, size])
    q, k, v = (graph.node("Reshape", part, shape) for part in parts)
    q = graph.node("Mul", q, graph.constant(size**-0.5, np.float32))
    q, v = (graph.node("Transpose", one, perm=[0, 2, 1, 3]) for one in (q, v))
    k = graph.node("Transpose", k, perm=[0, 2, 3, 1])
    probabilities = graph.node("Softmax", graph.node("Add", graph.node("MatMul", q, k), mask), axis=-1)
    context = graph.node("Transpose", graph.node("MatMul", probabilities, v), perm=[0, 2, 1, 3])
    context = graph.node("Reshape", context, graph.constant([0, 0, heads * size]))
    out = graph.linear(context, f"{front}.attention.output.dense", int8=True)
    x = graph.layer_norm(graph.node("Add", out, x), f"{front}.attention.output.LayerNorm")
    inner = graph.node("Gelu", graph.linear(x, f"{front}.intermediate.dense", int8=True))
    out = graph.linear(inner, f"{front}.output.dense", int8=True)
    return graph.layer_norm(graph.node("Add", out, x), f"{front}.output.LayerNorm")


# --- heads: from the hidden states (B, L, H) to outputs, each with its shape --------------------------------------


def hidden_states(graph: Graph, hidden: str) -> dict[str, Sequence[str | int]]:
    graph.node("Identity", hidden, name="last_hidden_state")
    return {"last_hidden_state": (BATCH, SEQUENCE, graph.config.hidden_size)}


def question_answering(graph: Graph, hidden: str) -> dict[str, Sequence[str | int]]:
    start, end = graph.node("Split", graph.linear(hidden, "qa_outputs"), count=2, axis=-1, num_outputs=2)
    for name, one in (("start_logits", start), ("end_logits", end)):
        graph.node("Squeeze", one, graph.constant([-1]), name=name)
    return {"start_logits": (BATCH, SEQUENCE), "end_logits": (BATCH, SEQUENCE)}


def token_classification(graph: Graph, hidden: str) -> dict[str, Sequence[str | int]]:
    graph.node("Identity", graph.linear(hidden, "classifier"), name="logits")
    return {"logits": (BATCH, SEQUENCE, len(graph.tensors["classifier.bias"]))}


def sequence_classification(graph: Graph, hidden: str) -> dict[str, Sequence[str | int]]:
    first = graph.node("Gather", hidden, graph.constant(0), axis=1)
    pooled = graph.node("Tanh", graph.linear(first, f"{POOLER.prefix}.dense"))
    graph.node("Identity", graph.linear(pooled, "classifier"), name="logits")
    return {"logits": (BATCH, len(graph.tensors["classifier.bias"]))}


def masked_words(graph: Graph, hidden: str) -> dict[str, Sequence[str | int]]:
    """The MLM head over every token; its output matrix is the word embeddings, which in fp32 are stored once."""
    front = MLM.prefix
    inner = graph.node("Gelu", graph.linear(hidden, f"{front}.transform.dense"))
    features = graph.layer_norm(inner, f"{front}.transform.LayerNorm")
    if graph.int8:
        product = graph.product(features, WORDS, graph.tensors[WORDS].float(), int8=True)
    else:
        product = graph.node("MatMul", features, graph.node("Transpose", graph.fp32(WORDS), perm=[1, 0]))
    graph.node("Add", product, graph.fp32(f"{front}.bias"), name="logits")
    return {"logits": (BATCH, SEQUENCE, graph.config.vocab_size)}


def relation(graph: Graph, hidden: str) -> dict[str, Sequence[str | int]]:
    """What every token brings as the first and as the second of a pair; the bias comes with the second."""
    weight_OI, hidden_size = graph.tensors["relation.dense.weight"].float(), graph.config.hidden_size
    first, second = weight_OI[:, :hidden_size], weight_OI[:, hidden_size:]
    graph.node("Identity", graph.product(hidden, "relation.first", first, int8=False), name="first_logits")
    product = graph.product(hidden, "relation.second", second, int8=False)
    graph.node("Add", product, graph.fp32("relation.dense.bias"), name="second_logits")
    shape = (BATCH, SEQUENCE, weight_OI.shape[0])
    return {"first_logits": shape, "second_logits": shape}


#: Rows of ``spanbert.checkpoint.architectures`` by their task.
HEADS: dict[str, Heads] = {
    "encoder": hidden_states,
    "pretraining": masked_words,
    "qa": question_answering,
    "token-classification": token_classification,
    "sequence-classification": sequence_classification,
    "relation": relation,
}


def build_onnx(tensors: Mapping[str, Tensor], config: EncoderConfig, task: str, *, int8: bool = False) -> Any:
    """The ONNX model of one task from tensors under their usual names.

    Raises UserError where onnx is not installed.
    """
    graph = Graph(tensors, config, int8)
    helper, kinds = graph.onnx.helper, graph.onnx.TensorProto
    mask = padding(graph)
    x = embeddings(graph)
    for number in range(config.num_hidden_layers):
        x = layer(graph, number, x, mask)
    outputs = HEADS[task](graph, x)
    described = helper.make_graph(
        graph.nodes,
        f"spanbert {task}",
        [helper.make_tensor_value_info(name, kinds.INT64, [BATCH, SEQUENCE]) for name in INPUTS],
        [helper.make_tensor_value_info(name, kinds.FLOAT, list(shape)) for name, shape in outputs.items()],
        list(graph.weights.values()),
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        described, producer_name="spanbert", opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets)
    )
