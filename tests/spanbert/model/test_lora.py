"""Low-rank additions: what is trained, what the products give, and what ``--lora`` accepts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from spanbert.checkpoint.model_folder import build_model
from spanbert.errors import UserError
from spanbert.model.batch import PackedBatch
from spanbert.model.config import EncoderConfig
from spanbert.model.lora import LoRAConfig, LoRALinear, add_lora, lora_layers, product
from spanbert.model.models import SpanBertForQuestionAnswering

SHAPE = EncoderConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
    max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


@pytest.fixture
def model() -> SpanBertForQuestionAnswering:
    return build_model(SpanBertForQuestionAnswering, SHAPE, 0).eval()


def batch() -> PackedBatch[torch.Tensor]:
    return PackedBatch(torch.randint(50, (9,)), torch.tensor([0, 4, 9], dtype=torch.int32), 5)


def adapted(model: SpanBertForQuestionAnswering, text: str = "rank=3,alpha=6,on=both", seed: int = 0) -> None:
    add_lora(model, model.encoder.layers, LoRAConfig.parse(text), seed)


def test_a_model_begins_as_it_was_and_the_formula_holds(model: SpanBertForQuestionAnswering) -> None:
    """B = 0 at first; with another B every adapted product is that of W + (α / r) B A, written out in float64."""
    packed = batch()
    before = model(packed)
    adapted(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model(packed), strict=True))
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B)
        x = torch.randn(5, layer.in_features)
        whole = layer.weight.double() + 2.0 * layer.lora_B.double() @ layer.lora_A.double()
        expected = F.linear(x.double(), whole, layer.bias.double())
        assert torch.allclose(layer(x).double(), expected, atol=1e-4, rtol=1e-5)
        assert torch.allclose(product(layer, x).double(), expected - layer.bias.double(), atol=1e-4, rtol=1e-5)
    assert not torch.allclose(before[0], model(packed)[0])


@pytest.mark.parametrize(
    ("on", "names"),
    [
        ("attention", ["qkv", "attention_out.linear"]),
        ("feed-forward", ["feed_forward_in", "feed_forward_out.linear"]),
        ("both", ["qkv", "attention_out.linear", "feed_forward_in", "feed_forward_out.linear"]),
    ],
)
def test_which_products_are_adapted(model: SpanBertForQuestionAnswering, on: str, names: list[str]) -> None:
    adapted(model, f"rank=2,on={on}")
    found = [name for name, _ in lora_layers(model)]
    assert sorted(found) == sorted(f"encoder.layers.{n}.{name}" for n in (0, 1) for name in names)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    halves = {f"{name}.{half}" for name in found for half in ("lora_A", "lora_B")}
    assert trained == halves | {"qa_outputs.weight", "qa_outputs.bias"}


def test_gradients_reach_a_and_b_and_nothing_else_of_the_encoder(model: SpanBertForQuestionAnswering) -> None:
    adapted(model)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B)
    sum((logits * torch.randn(9)).sum() for logits in model(batch())).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        trained = "lora_" in name or name.startswith("qa_outputs")
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trained, name


def test_a_is_a_function_of_the_seed_and_disturbs_no_other_randomness() -> None:
    made = []
    for seed in (0, 0, 1):
        model = build_model(SpanBertForQuestionAnswering, SHAPE, 0)
        state = torch.random.get_rng_state()
        adapted(model, seed=seed)
        assert torch.equal(state, torch.random.get_rng_state())
        made.append(dict(lora_layers(model))["encoder.layers.1.qkv"].lora_A)
    first, again, other = made
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.abs().max() <= 1 / 32**0.5  # Kaiming uniform with a = √5: ± 1 / √in


def test_a_layer_shares_the_parameters_that_it_adapts(model: SpanBertForQuestionAnswering) -> None:
    linear = model.encoder.layers[0].qkv
    adapted(model)
    layer = model.encoder.layers[0].qkv
    assert isinstance(layer, LoRALinear)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert model.encoder.layers[0].qkv.lora_B.shape == (96, 3)


def test_what_the_option_says() -> None:
    assert LoRAConfig.parse("rank=4") == LoRAConfig(4, 16.0, "attention")
    assert LoRAConfig.parse("rank=4, alpha=0.5, on=both") == LoRAConfig(4, 0.5, "both")
    for text in (
        "4",
        "rank=",
        "rank=4,rank=5",
        "rank=0",
        "rank=a",
        "alpha=0",
        "alpha=nan",
        "on=heads",
        "r=4",
        "rank=1.5",
    ):
        with pytest.raises(UserError, match="--lora"):
            LoRAConfig.parse(text)
