"""int8 inference on a CPU: the products of the encoder's layers, by the processor's int8 units.

    y = s_t · s_o · (q_t − 128) · w_o + b      one scale s_o per output channel, one s_t per token

Weights are rounded once, when a model is loaded. Activations are rounded as they come, each token by its own largest
magnitude: with one scale for a whole batch a question's answer would depend on what else is in the batch. Everything
between the products (attention, GELU, LayerNorm) and the task's head stay in bf16 or fp32, as ``autocast`` has them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spanbert.device import choose_precision, has_int8_units
from spanbert.errors import UserError
from spanbert.model.encoder import Encoder
from spanbert.model.lora import PRODUCTS

LARGEST = 127  # magnitude of a rounded number; −128 is not used, so that both signs are alike
ZERO = 128  # what a rounded activation is stored above: oneDNN's products take unsigned ones
SMALLEST = 1e-30  # a row of zeros is divided by this
#: Activations are rounded so many at a time, in the cache: fp32 copies of a whole batch cost more than the product saves.
ROUNDED_AT_A_TIME = 1 << 18


class Int8Linear(nn.Module):
    """A linear layer for inference whose product is one of int8 matrices, by oneDNN."""

    def __init__(self, linear: nn.Linear) -> None:
        """Raises ValueError for a kind of linear layer that adds something of its own, such as LoRA's."""
        super().__init__()
        if type(linear) is not nn.Linear:
            raise ValueError(f"a {type(linear).__name__} has no int8 form")
        rounded_OI, scale_O = round_channels(linear.weight.detach().float())
        self.weight = nn.Parameter(rounded_OI, requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.register_buffer("scale_O", scale_O)
        self._packed: tuple[Tensor, Tensor] | None = None

    scale_O: Tensor

    def pack(self) -> tuple[Tensor, Tensor]:
        """The weights in the order that the kernel wants, made once, and the zero points of their channels."""
        if self._packed is None:
            ops: Any = torch.ops.onednn
            zeros_O = torch.zeros(self.scale_O.shape, dtype=torch.int64)
            self._packed = ops.qlinear_prepack(self.weight.detach(), None), zeros_O
        return self._packed

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) → (T, out), in the dtype of autocast where that is on, else fp32."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        rounded, scale_T1 = round_rows(x)
        packed, zeros_O = self.pack()
        ops: Any = torch.ops.onednn
        y = ops.qlinear_pointwise(
            rounded, 1.0, ZERO, packed, self.scale_O, zeros_O, None, 1.0, 0, dtype, "none", [], ""
        )
        scale_T1, bias = scale_T1.to(dtype), self.bias.to(dtype)
        for part, scale in zip(_parts(y), _parts(scale_T1, y.shape[1]), strict=True):
            part.mul_(scale).add_(bias)
        return y


def round_channels(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(O, I) → int8 (O, I), and the scale (O,) of each output channel: weight ≈ scale · int8."""
    scale_O = weight_OI.abs().amax(1).clamp_min(SMALLEST) / LARGEST
    return (weight_OI / scale_O[:, None]).round().to(torch.int8), scale_O


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(T, I) → unsigned integers (T, I), and the scale (T, 1) of each row: x ≈ scale · (integers − ``ZERO``).

    A row that is not finite gets a scale that is not, so that it spoils its own results and is found there.
    """
    rounded = torch.empty(x.shape, dtype=torch.int8)
    scale_T1 = torch.empty(x.shape[0], 1)
    for part, integers, scale in zip(_parts(x), _parts(rounded), _parts(scale_T1, x.shape[1]), strict=True):
        values = part.float()
        torch.div(values.abs().amax(1, keepdim=True).clamp_min_(SMALLEST), LARGEST, out=scale)
        integers.copy_((values * scale.reciprocal()).round_())
    # with the highest bit turned over, signed integers are unsigned ones above 128: PyTorch's copy to those is slow
    return rounded.view(torch.uint8).bitwise_xor_(ZERO), scale_T1


def _parts(rows: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
    """Neighbouring rows of a matrix together, as many as ``ROUNDED_AT_A_TIME`` allows of ``width`` numbers each."""
    return rows.split(max(1, ROUNDED_AT_A_TIME // (width or rows.shape[1])))


@torch.no_grad()
def quantize_encoder(encoder: Encoder) -> None:
    """Put ``Int8Linear`` in the place of the four products of every layer. The embeddings and the heads stay.

    Raises UserError where the back-end is triton, whose kernels take a layer's weights themselves.
    """
    if encoder.backend == "triton":
        raise UserError("--precision int8: goes with --backend eager or sdpa, not with triton")
    for layer in encoder.layers:
        for name in PRODUCTS["both"]:
            owner_name, _, leaf = name.rpartition(".")
            owner = layer.get_submodule(owner_name)
            setattr(owner, leaf, Int8Linear(getattr(owner, leaf)))


def choose_inference_precision(device: torch.device, name: str = "auto") -> str:
    """The precision that a trained model runs in: as ``choose_precision``, or int8.

    Raises UserError for an unknown name, and for int8 where it cannot be.
    """
    if name != "int8":
        return choose_precision(device, name, others=("int8",))
    if device.type != "cpu":
        raise UserError(f"--precision int8: runs on a CPU, not on {device}; use --device cpu, or another precision")
    if not has_int8_units():
        raise UserError(
            "--precision int8: this processor has no int8 units that PyTorch knows (AVX-512 VNNI or AMX); use auto"
        )
    if not kernels_run():
        raise UserError(
            f"--precision int8: this build of PyTorch ({torch.__version__}) lacks oneDNN's int8 products; use auto"
        )
    return name


def choose_answering_precision(device: torch.device, name: str = "auto", backend: str = "auto") -> str:
    """As ``choose_inference_precision``, but ``auto`` is int8 on a CPU that has units for it and none for bf16.

    Where there are both, bf16 is nearly as fast and moves logits a fifth as far (docs/serving.md).
    """
    if name == "auto" and device.type == "cpu" and backend != "triton" and choose_precision(device) == "fp32":
        name = "int8" if has_int8_units() and kernels_run() else "fp32"
    return choose_inference_precision(device, name)


def kernels_run() -> bool:
    """Whether a small product comes out."""
    try:
        with torch.inference_mode():
            return bool(Int8Linear(nn.Linear(4, 4))(torch.ones(2, 4)).isfinite().all())
    except (AttributeError, NotImplementedError, RuntimeError):  # no such operator, or none for this processor
        return False
