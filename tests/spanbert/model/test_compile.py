"""A layer under torch.compile: one graph with the fused kernels, one program for all layers, seeds and lengths."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounter

from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import Encoder
from spanbert.model.packing import cumulative

SHAPE = EncoderConfig(
    vocab_size=50,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("training", [True, False])
def test_with_fused_kernels_there_is_no_graph_break_and_no_recompilation(training):
    """Twelve passes over three layers, each with other lengths and another seed."""
    torch.manual_seed(0)
    encoder = Encoder(SHAPE, backend="triton").train(training)
    counter = CompileCounter()
    for layer in encoder.layers:
        layer.compile(dynamic=True, fullgraph=True, backend=counter)
    for number in range(4):
        lengths = torch.randint(3, 30, (4 + number,))
        cu_seqlens = cumulative(lengths)
        encoder.dropout_seed = torch.full((), 1000 + number, dtype=torch.int64)
        total = int(lengths.sum())
        out = encoder(torch.randint(5, 50, (total,)), cu_seqlens, int(lengths.max()))
        out.square().sum().backward()
    assert counter.frame_count <= 2, f"compiled {counter.frame_count} times"
