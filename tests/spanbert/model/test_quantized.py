"""int8 products: exact integers, one scale a token, and refusals where a processor has none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from spanbert.device import BF16_UNITS, INT8_UNITS, has_int8_units
from spanbert.errors import UserError
from spanbert.model import quantized
from spanbert.model.config import EncoderConfig
from spanbert.model.lora import LoRAConfig, LoRALinear
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.model.quantized import (
    Int8Linear,
    choose_answering_precision,
    choose_inference_precision,
    kernels_run,
    quantize_encoder,
    round_channels,
    round_rows,
)

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(
    not (has_int8_units() and kernels_run()), reason="this processor or build of PyTorch has no int8 products"
)
SHAPE = EncoderConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
)


def linear(inputs: int = 48, outputs: int = 20, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(inputs, outputs)
    with torch.no_grad():
        made.weight[3] *= 50  # a channel of another size than the others
        made.weight[5] = 0
    return made.requires_grad_(False)


def rows(count: int = 7, width: int = 48, seed: int = 1) -> torch.Tensor:
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    made[2] *= 1000
    made[4] = 0
    return made


@pytest.mark.parametrize("at_a_time", [1, 100, 1 << 18])
def test_rows_are_rounded_to_the_nearest_of_255_steps_of_their_own(monkeypatch, at_a_time):
    """Against the formula in float64; however many are rounded at a time."""
    monkeypatch.setattr(quantized, "ROUNDED_AT_A_TIME", at_a_time)
    x = rows()
    rounded, scale = round_rows(x)
    assert rounded.dtype == torch.uint8 and scale.shape == (7, 1)
    exact = x.double().numpy()
    largest = np.abs(exact).max(1, keepdims=True)
    assert np.allclose(scale.numpy()[largest > 0], largest[largest > 0] / 127, rtol=1e-6)
    signed = rounded.numpy().astype(int) - 128
    assert np.abs(signed).max() == 127 and (signed[4] == 0).all()
    assert (np.abs(signed * scale.double().numpy() - exact) <= 0.5001 * scale.double().numpy()).all()
    assert torch.equal(round_rows(x.bfloat16())[0], round_rows(x.bfloat16().float())[0])


def test_channels_are_rounded_each_by_its_largest_weight():
    weight = linear().weight
    rounded, scale = round_channels(weight)
    assert rounded.dtype == torch.int8 and (rounded[5] == 0).all()
    assert (rounded.int().abs().amax(1)[torch.arange(20) != 5] == 127).all()
    assert ((rounded * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()


@needs_int8
@pytest.mark.parametrize("at_a_time", [1, 100, 1 << 18])
def test_the_product_is_that_of_the_integers(monkeypatch, at_a_time):
    """Against a product of integers, which is exact, and float64 around it."""
    monkeypatch.setattr(quantized, "ROUNDED_AT_A_TIME", at_a_time)
    plain, x = linear(), rows()
    (weights, by_channel), (activations, by_row) = round_channels(plain.weight), round_rows(x)
    whole = (activations.long().numpy() - 128) @ weights.long().numpy().T
    expected = whole * by_row.double().numpy() * by_channel.double().numpy() + plain.bias.double().numpy()
    got = Int8Linear(plain)(x)
    assert got.dtype == torch.float32
    assert np.allclose(got.double().numpy(), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = Int8Linear(plain)(x)
    assert low.dtype == torch.bfloat16
    assert np.allclose(low.double().numpy(), expected, rtol=2**-6, atol=2**-6 * np.abs(expected).max(1, keepdims=True))


@needs_int8
def test_a_token_does_not_depend_on_its_batch():
    """With one scale for the batch, the row that is a thousand times larger would leave nothing of the others."""
    product, x = Int8Linear(linear()), rows()
    together = product(x)
    for number in range(len(x)):
        assert torch.equal(product(x[number : number + 1])[0], together[number])


@needs_int8
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_number_that_is_not_finite_is_found_in_its_own_row(bad):
    x = rows()
    x[1, 7] = bad
    got = Int8Linear(linear())(x)
    assert not got[1].isfinite().any()
    assert got[[0, 2, 3, 4, 5, 6]].isfinite().all()


@needs_int8
def test_a_model_keeps_its_shape_its_count_and_nearly_its_logits():
    model = SpanBertForQuestionAnswering(SHAPE).eval()
    small = copy.deepcopy(model)
    quantize_encoder(small.encoder)
    kinds = {name: type(part) for name, part in small.named_modules() if isinstance(part, nn.Linear | Int8Linear)}
    assert kinds.pop("qa_outputs") is nn.Linear
    assert len(kinds) == 8 and set(kinds.values()) == {Int8Linear}
    count = [sum(parameter.numel() for parameter in one.parameters()) for one in (model, small)]
    assert count[0] == count[1]
    batch = (torch.arange(5, 35), torch.tensor([0, 12, 30], dtype=torch.int32), 18)
    with torch.inference_mode():
        exact, near = model.encoder(*batch), small.encoder(*batch)
    error = (near - exact).norm() / exact.norm()
    assert 0 < error < 0.02


@needs_int8
def test_another_process_fills_an_empty_model_with_the_same_weights():
    """As model processes of the server do, which map the weights of the first one."""
    first = SpanBertForQuestionAnswering(SHAPE).eval()
    quantize_encoder(first.encoder)
    with torch.device("meta"):
        second = SpanBertForQuestionAnswering(SHAPE)
        quantize_encoder(second.encoder)
    second.load_state_dict(first.state_dict(), assign=True)
    batch = (torch.arange(5, 35), torch.tensor([0, 12, 30], dtype=torch.int32), 18)
    with torch.inference_mode():
        assert torch.equal(first.encoder(*batch), second.eval().encoder(*batch))


def test_what_has_no_int8_form_is_refused():
    with pytest.raises(ValueError, match="a LoRALinear has no int8 form"):
        Int8Linear(LoRALinear.over(linear(), LoRAConfig()))
    with pytest.raises(UserError, match="not with triton"):
        quantize_encoder(SpanBertForQuestionAnswering(SHAPE, backend="triton").encoder)


def test_int8_is_chosen_only_where_it_can_run(monkeypatch):
    with pytest.raises(UserError, match="runs on a CPU, not on cuda:0"):
        choose_inference_precision(torch.device("cuda:0"), "int8")
    with pytest.raises(UserError, match="--precision fp16: choose one of auto, fp32, bf16, int8"):
        choose_inference_precision(CPU, "fp16")
    monkeypatch.setattr(quantized, "has_int8_units", lambda: False)
    with pytest.raises(UserError, match="no int8 units"):
        choose_inference_precision(CPU, "int8")
    assert choose_inference_precision(CPU, "fp32") == "fp32"
    monkeypatch.setattr(quantized, "has_int8_units", lambda: True)

    class Missing:
        def __getattr__(self, name: str) -> None:
            raise AttributeError(f"'onednn' has no operator {name!r}")

    monkeypatch.setattr(torch.ops, "onednn", Missing())
    with pytest.raises(UserError, match=r"lacks oneDNN's int8 products"):
        choose_inference_precision(CPU, "int8")


def test_int8_units_are_those_of_vnni_or_amx(monkeypatch):
    for vnni, amx, known in ((True, False, True), (False, True, True), (False, False, False)):
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda has=vnni: has, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has, raising=False)
        assert has_int8_units() is known


@pytest.mark.parametrize(
    ("units", "backend", "chosen"),
    [
        ({"_is_vnni_supported"}, "auto", "int8"),
        ({"_is_vnni_supported", "_is_avx512_bf16_supported"}, "auto", "bf16"),
        ({"_is_vnni_supported"}, "triton", "fp32"),
        (set(), "auto", "fp32"),
    ],
)
def test_answers_are_computed_in_what_is_fastest_here(
    units: set[str], backend: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {*BF16_UNITS, *INT8_UNITS}:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in units)
    monkeypatch.setattr(quantized, "kernels_run", lambda: True)
    assert choose_answering_precision(CPU, "auto", backend) == chosen
    assert choose_inference_precision(CPU) == ("bf16" if chosen == "bf16" else "fp32")
    assert choose_answering_precision(CPU, "fp32") == "fp32"


def test_a_processor_whose_pytorch_has_no_int8_products_answers_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*BF16_UNITS, *INT8_UNITS}:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == "_is_vnni_supported")
    monkeypatch.setattr(quantized, "kernels_run", lambda: False)
    assert choose_answering_precision(CPU) == "fp32"
