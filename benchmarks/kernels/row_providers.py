"""The row operations (dropout-add-LayerNorm, LayerNorm, bias + GELU, vocabulary cross-entropy): ours, plain PyTorch, compiled, Liger."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from benchmarks.kernels.registry import Case, Instance, Operation, Provider, Unavailable
from kernels.cost import (
    Cost,
    bias_gelu_backward_cost,
    bias_gelu_forward_cost,
    layer_norm_backward_cost,
    layer_norm_forward_cost,
    linear_cross_entropy_cost,
)
from kernels.cross_entropy import linear_cross_entropy_reference
from kernels.gelu import bias_gelu_reference
from kernels.layer_norm_reference import dropout_add_layer_norm_reference, layer_norm_reference

EPS, SEED = 1e-12, 1234


def operations(device: torch.device) -> list[Operation]:
    """The four operations, with cases of a GPU's size, or small ones for a CPU."""
    return [_dropout_add_layer_norm(device), _layer_norm(device), _bias_gelu(device), _cross_entropy(device)]


def _cases(device: torch.device, widths: tuple[int, ...], dropout: tuple[float, ...] = (0.0,)) -> list[Case]:
    if device.type == "cpu":
        return [Case(f"64 × 96{_said(p)}", torch.float32, {"rows": 64, "columns": 96}, dropout_p=p) for p in dropout]
    return [
        Case(f"16k × {width}{_said(p)}{name}", dtype, {"rows": 16384, "columns": width}, dropout_p=p)
        for width in widths
        for p in dropout
        for dtype, name in ((torch.bfloat16, ""), (torch.float16, " fp16"))
        if dtype is torch.bfloat16 or (width == widths[0] and p == dropout[0])
    ]


def _said(p: float) -> str:
    return f", dropout {p}" if p else ""


def _provider(name: str, body: Callable[..., Tensor], undropped: Callable[..., Tensor] | None = None) -> Provider:
    """A provider of the plain kind: the common tensors are its leaves. `undropped` stands in for it at the gate."""

    def build(case: Case, inputs: list[Tensor]) -> Instance:
        floating = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        leaves = [x for x in floating if x.is_floating_point()]
        gated = None
        if case.dropout_p and undropped is not None:
            gated = Instance(leaves, lambda: undropped(*floating, p=0.0))
        options = {"p": case.dropout_p} if undropped is not None else {}
        return Instance(leaves, lambda: body(*floating, **options), gated=gated)

    return Provider(name, build, library=name not in ("ours", "eager"))


def _compiled(body: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(body, dynamic=False)


def _liger(name: str, make: Callable[[object], Callable[..., Tensor]], **options: object) -> Provider:
    """Liger-Kernel's version where it is installed."""

    def build(case: Case, inputs: list[Tensor]) -> Instance:
        if inputs[0].device.type == "cpu":
            raise Unavailable("GPU only")
        try:
            from liger_kernel import transformers
        except ImportError as error:
            raise Unavailable("not installed") from error
        return _provider(name, make(transformers), **options).build(case, inputs)

    return Provider(name, build)


# LayerNorm(residual + dropout(x + bias))


def _eager_dropout_add_layer_norm(
    x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, ln_bias: Tensor, p: float
) -> Tensor:
    return F.layer_norm(residual + F.dropout(x + bias, p), (x.shape[-1],), weight, ln_bias, EPS)


def _dropout_add_layer_norm(device: torch.device) -> Operation:
    def inputs(case: Case, device: torch.device) -> list[Tensor]:
        rows, columns = case.numbers["rows"], case.numbers["columns"]
        x, residual = (torch.randn(rows, columns, device=device).to(case.dtype) for _ in "xr")
        bias, weight, ln_bias = (torch.randn(columns, device=device).to(case.dtype) for _ in "bwl")
        return [x, bias, residual, weight, ln_bias]

    seed = torch.tensor(SEED, device=device)

    def ours(*inputs: Tensor, p: float) -> Tensor:
        return kernels.dropout_add_layer_norm(*inputs, p=p, eps=EPS, seed=seed)

    def reference(case: Case, inputs: list[Tensor]) -> Tensor:
        return dropout_add_layer_norm_reference(*inputs, case.dropout_p, EPS, SEED)

    def ours_build(case: Case, inputs: list[Tensor]) -> Instance:
        return _provider("ours", partial(ours, p=case.dropout_p)).build(case, inputs)

    compiled = _compiled(_eager_dropout_add_layer_norm)
    return Operation(
        "dropout add layer norm",
        _cases(device, (768, 1024), (0.1, 0.0)),
        inputs,
        reference,
        [
            Provider("ours", ours_build, library=False),
            _provider("eager", _eager_dropout_add_layer_norm, _eager_dropout_add_layer_norm),
            _provider("torch.compile", compiled, compiled),
        ],
        lambda case: layer_norm_forward_cost(*_shape(case), fused=True),
        lambda case: layer_norm_backward_cost(*_shape(case), fused=True, dropout=case.dropout_p > 0.0),
    )


def _shape(case: Case) -> tuple[int, int]:
    return case.numbers["rows"], case.numbers["columns"]


# LayerNorm


def _layer_norm(device: torch.device) -> Operation:
    def inputs(case: Case, device: torch.device) -> list[Tensor]:
        rows, columns = _shape(case)
        x = torch.randn(rows, columns, device=device).to(case.dtype)
        return [x, *(torch.randn(columns, device=device).to(case.dtype) for _ in "wb")]

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), weight, bias, EPS)

    def liger(library: object) -> Callable[..., Tensor]:
        return lambda x, weight, bias: library.functional.liger_layer_norm(x, weight, bias, EPS)

    return Operation(
        "layer norm",
        _cases(device, (768, 1024, 4096)),
        inputs,
        lambda _case, tensors: layer_norm_reference(*tensors, EPS),
        [
            _provider("ours", lambda *tensors: kernels.layer_norm(*tensors, EPS)),
            _provider("eager", eager),
            _provider("torch.compile", _compiled(eager)),
            _liger("liger", liger),
        ],
        lambda case: layer_norm_forward_cost(*_shape(case), fused=False),
        lambda case: layer_norm_backward_cost(*_shape(case), fused=False),
    )


# GELU(x + bias)


def _bias_gelu(device: torch.device) -> Operation:
    def inputs(case: Case, device: torch.device) -> list[Tensor]:
        rows, columns = _shape(case)
        return [
            torch.randn(rows, columns, device=device).to(case.dtype),
            torch.randn(columns, device=device).to(case.dtype),
        ]

    def eager(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias)

    return Operation(
        "bias gelu",
        _cases(device, (3072, 4096)),
        inputs,
        lambda _case, tensors: bias_gelu_reference(*tensors),
        [
            _provider("ours", kernels.bias_gelu),
            _provider("eager", eager),
            _provider("torch.compile", _compiled(eager)),
        ],
        lambda case: bias_gelu_forward_cost(*_shape(case)),
        lambda case: bias_gelu_backward_cost(*_shape(case)),
    )


# Σ −log softmax(hidden · weightᵀ + bias)[target]


def _cross_entropy(device: torch.device) -> Operation:
    def inputs(case: Case, device: torch.device) -> list[Tensor]:
        targets, hidden, vocabulary = (case.numbers[name] for name in ("targets", "hidden", "vocabulary"))
        return [
            torch.randn(targets, hidden, device=device).to(case.dtype),
            (torch.randn(vocabulary, hidden, device=device) * 0.05).to(case.dtype),
            torch.randn(vocabulary, device=device).to(case.dtype),
            torch.randint(vocabulary, (targets,), device=device),
        ]

    def ours(*tensors: Tensor) -> Tensor:
        return kernels.linear_cross_entropy(*tensors).loss_sum

    def eager(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight, bias).float(), target, reduction="sum")

    def liger(library: object) -> Callable[..., Tensor]:
        body = library.LigerFusedLinearCrossEntropyLoss(reduction="sum")
        return lambda hidden, weight, bias, target: body(weight, hidden, target, bias)

    cpu = device.type == "cpu"
    dtype = torch.float32 if cpu else torch.bfloat16
    sizes = [(40, 24, 300)] if cpu else [(2458, 768, 28996), (2458, 1024, 28996)]
    return Operation(
        "linear cross-entropy",
        [Case("{} × {} × {}".format(*s), dtype, dict(zip(("targets", "hidden", "vocabulary"), s))) for s in sizes],
        inputs,
        lambda _case, tensors: linear_cross_entropy_reference(*tensors),
        [
            _provider("ours", ours),
            _provider("eager", eager),
            _provider("torch.compile", _compiled(eager)),
            _liger("liger", liger),
        ],
        lambda case: linear_cross_entropy_cost(*case.numbers.values(), gradient=False),
        _gradient_cost,
        arithmetic=True,
    )


def _gradient_cost(case: Case) -> Cost:
    """What the gradients add. Ours computes them on the way forward: compare the direction "both"."""
    whole = linear_cross_entropy_cost(*case.numbers.values())
    forward = linear_cross_entropy_cost(*case.numbers.values(), gradient=False)
    return Cost(whole.flops - forward.flops, whole.bytes - forward.bytes)
