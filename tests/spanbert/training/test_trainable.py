"""Frozen parts, biases alone, and rates that fall layer by layer."""

from __future__ import annotations

import pytest
import torch

from spanbert.checkpoint.model_folder import build_model
from spanbert.errors import UserError
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.training.optim import adamw, layer_rates, set_learning_rate
from spanbert.training.trainable import freeze, train_biases_only

SHAPE = EncoderConfig(vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)


@pytest.fixture
def model() -> SpanBertForQuestionAnswering:
    return build_model(SpanBertForQuestionAnswering, SHAPE, 0)


def trained(model: SpanBertForQuestionAnswering) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def blocks(names: set[str]) -> set[str]:
    return {".".join(name.split(".")[:3]) if ".layers." in name else ".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize(
    ("parts", "left"),
    [
        ("embeddings", {0, 1, 2, 3}),
        ("embeddings,0-1", {2, 3}),
        ("2", {0, 1, 3}),
        ("0, 2-3", {1}),
        ("embeddings,0-3", set()),
    ],
)
def test_frozen_parts(model: SpanBertForQuestionAnswering, parts: str, left: set[int]) -> None:
    freeze(model, parts)
    expected = {f"encoder.layers.{n}" for n in left} | {"qa_outputs.weight", "qa_outputs.bias"}
    if "embeddings" not in parts:
        expected.add("encoder.embeddings")
    assert blocks(trained(model)) == expected


@pytest.mark.parametrize("parts", ["4", "3-4", "2-1", "head", "", "embeddings;0"])
def test_parts_that_are_not_there(model: SpanBertForQuestionAnswering, parts: str) -> None:
    with pytest.raises(UserError, match="--freeze"):
        freeze(model, parts)


def test_biases_only(model: SpanBertForQuestionAnswering) -> None:
    train_biases_only(model)
    names = trained(model)
    assert {name for name in names if name.endswith("weight")} == {"qa_outputs.weight"}
    assert len([name for name in names if ".layers.0." in name]) == 6  # four products and two LayerNorms
    assert "encoder.embeddings.norm.bias" in names


def test_rates_fall_from_the_head_to_the_embeddings(model: SpanBertForQuestionAnswering) -> None:
    optimizer = adamw(model, 1.0, weight_decay=0.5, rate_of=layer_rates(4, 0.5))
    set_learning_rate(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"qa_outputs": 1.0, "encoder.embeddings": 0.5**5}
    expected |= {f"encoder.layers.{n}": 0.5 ** (4 - n) for n in range(4)}
    for name, parameter in model.named_parameters():
        rate = next(rate for start, rate in expected.items() if name.startswith(f"{start}."))
        assert rates[id(parameter)] == pytest.approx(0.1 * rate)
        assert decays[id(parameter)] == (0.5 if parameter.ndim >= 2 else 0.0)


def test_a_decay_of_one_is_the_plain_optimizer(model: SpanBertForQuestionAnswering) -> None:
    plain, with_rates = adamw(model, 0.1), adamw(model, 0.1, rate_of=layer_rates(4, 1.0))
    for one, other in zip(plain.param_groups, with_rates.param_groups, strict=True):
        assert all(a is b for a, b in zip(one["params"], other["params"], strict=True))
        assert {k: v for k, v in one.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}
    set_learning_rate(with_rates, 0.3)
    assert {group["lr"] for group in with_rates.param_groups} == {0.3}


def test_frozen_parts_do_not_move(model: SpanBertForQuestionAnswering) -> None:
    freeze(model, "embeddings,0")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = adamw(model, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trained(model)
