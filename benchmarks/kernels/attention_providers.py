"""Attention as ours, as plain PyTorch, and as the libraries offer it: each gets what its user would give it.

Ragged batches: SDPA takes padded tensors with a mask (the flash backend takes no mask: it gets jagged nested tensors),
`varlen_attn` and FlexAttention take packed ones. Making the padded or nested tensors is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from benchmarks.kernels.registry import Case, Instance, Operation, Provider, Unavailable
from benchmarks.kernels.squad_lengths import draw_lengths
from kernels.attention_reference import attention_reference
from kernels.cost import Cost, attention_backward_cost, attention_forward_cost

HEADS = {"base": 12, "large": 16}


def cases(device: torch.device) -> list[Case]:
    if device.type == "cpu":
        f32 = torch.float32
        return [
            Case("mini 4 × 64", f32, {"heads": 2, "head_dim": 32}, (64,) * 4),
            Case("mini ragged", f32, {"heads": 2, "head_dim": 32}, (50, 7, 33, 1)),
            Case("mini ragged, dropout 0.1", f32, {"heads": 2, "head_dim": 32}, (50, 7, 33, 1), 0.1),
        ]
    bf16, tokens = torch.bfloat16, 16384
    sizes = {size: {"heads": heads, "head_dim": 64} for size, heads in HEADS.items()}
    even = [Case(f"base {n}", bf16, sizes["base"], (n,) * (tokens // n)) for n in (128, 256, 512, 1024, 2048, 4096)]
    full = (512,) * (tokens // 512)
    ragged = tuple(draw_lengths(tokens))
    return [
        *even,
        Case("base 512, dropout 0.1", bf16, sizes["base"], full, 0.1),
        Case("base 512 fp16", torch.float16, sizes["base"], full),
        Case("large 512", bf16, sizes["large"], full),
        Case("base QA windows", bf16, sizes["base"], ragged),
        Case("base QA windows, dropout 0.1", bf16, sizes["base"], ragged, 0.1),
        Case("large QA windows", bf16, sizes["large"], ragged),
        Case("base 512 beside 200 × 20", bf16, sizes["base"], (512, *[20] * 200)),
    ]


def inputs(case: Case, device: torch.device) -> list[Tensor]:
    """q, k, v (T, H, D): views of one packed projection, as a model has them."""
    shape = (sum(case.lengths), 3, case.numbers["heads"], case.numbers["head_dim"])
    return list(torch.randn(shape, device=device).to(case.dtype).unbind(1))


def reference(case: Case, qkv: list[Tensor]) -> Tensor:
    scale = case.numbers["head_dim"] ** -0.5
    return attention_reference(*qkv, cumulative(case, qkv[0].device), scale, case.dropout_p, SEED)


SEED = 1234


def cumulative(case: Case, device: torch.device) -> Tensor:
    return torch.tensor([0, *case.lengths]).cumsum(0).to(device=device, dtype=torch.int32)


def even(case: Case) -> bool:
    return len(set(case.lengths)) == 1


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


def _ours(case: Case, qkv: list[Tensor]) -> Instance:
    """Packed projection in, one gradient out; the plan is made once per batch, as an encoder does for all its layers."""
    packed = torch.stack(qkv, 1).requires_grad_()
    cu = cumulative(case, packed.device)
    plan = kernels.attention_plan(cu, packed.shape[0], packed.shape[3], packed.dtype)
    seed = torch.tensor(SEED, device=packed.device)
    longest = max(case.lengths)

    def forward() -> Tensor:
        return kernels.attention_varlen_qkv(packed, cu, longest, case.dropout_p, seed, plan=plan)

    return Instance([packed], forward, restore=lambda index, x: x if index < 0 else x.unbind(1))


def _eager(case: Case, qkv: list[Tensor]) -> Instance:
    """softmax(q kᵀ) v written out on padded tensors."""

    def body(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return F.dropout(scores.softmax(-1, dtype=torch.float32), p).to(v.dtype) @ v

    return _padded(case, qkv, body)


def _sdpa(backend: SDPBackend, takes_mask: bool) -> Callable[[Case, list[Tensor]], Instance]:
    def build(case: Case, qkv: list[Tensor]) -> Instance:
        def body(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)

        if not even(case) and not takes_mask:
            return _nested(case, qkv, backend)
        return _padded(case, qkv, body)

    return build


def _padded(case: Case, qkv: list[Tensor], body: Callable[..., Tensor]) -> Instance:
    """(B, H, L, D) tensors, with a key mask unless every sequence is full."""
    device, count, longest = qkv[0].device, len(case.lengths), max(case.lengths)
    heads, head_dim = qkv[0].shape[1:]
    lengths = torch.tensor(case.lengths, device=device)
    real_BL = torch.arange(longest, device=device)[None, :] < lengths[:, None]
    mask = None if even(case) else real_BL[:, None, None, :]

    def pad(x_THD: Tensor) -> Tensor:
        padded = x_THD.new_zeros(count, longest, heads, head_dim)
        padded[real_BL] = x_THD
        return padded.transpose(1, 2)

    leaves = [pad(x).detach().requires_grad_() for x in qkv]

    def instance(p: float) -> Instance:
        return Instance(
            leaves, lambda: body(*leaves, mask, p), lambda _index, x: x.transpose(1, 2)[real_BL], cotangent=pad
        )

    return replace(instance(case.dropout_p), gated=instance(0.0) if case.dropout_p else None)


def _nested(case: Case, qkv: list[Tensor], backend: SDPBackend) -> Instance:
    """Jagged nested tensors over the packed values: what SDPA offers for ragged batches without a mask."""
    offsets = cumulative(case, qkv[0].device).long()
    leaves = _leaves(qkv)
    longest = max(case.lengths)

    def jagged(x_THD: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(x_THD, offsets, max_seqlen=longest).transpose(1, 2)

    def instance(p: float) -> Instance:
        def forward() -> Tensor:
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(*(jagged(x) for x in leaves), dropout_p=p)
            return out.transpose(1, 2).values()

        return Instance(leaves, forward)

    return replace(instance(case.dropout_p), gated=instance(0.0) if case.dropout_p else None)


def _varlen(case: Case, qkv: list[Tensor]) -> Instance:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Unavailable("torch.nn.attention.varlen is not in this PyTorch") from error
    if case.dropout_p:
        raise Unavailable("has no dropout")
    if qkv[0].device.type == "cpu":
        raise Unavailable("GPU only")
    leaves = _leaves(qkv)
    cu, longest = cumulative(case, leaves[0].device), max(case.lengths)
    return Instance(leaves, lambda: varlen_attn(*leaves, cu, cu, longest, longest))


def _flex(case: Case, qkv: list[Tensor]) -> Instance:
    """Compiled FlexAttention over the packed batch with a document mask."""
    if case.dropout_p:
        raise Unavailable("has no dropout")
    if qkv[0].device.type == "cpu":
        raise Unavailable("no backward pass on a CPU")
    if case.label not in ("base 512", "base QA windows"):
        raise Unavailable("compiles for half a minute per shape: measured on base 512 and base QA windows")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    total, device = sum(case.lengths), qkv[0].device
    document = torch.repeat_interleave(
        torch.arange(len(case.lengths), device=device), torch.tensor(case.lengths, device=device)
    )
    leaves = [x.detach().transpose(0, 1)[None].contiguous().requires_grad_() for x in qkv]  # (1, H, T, D)
    block_mask = create_block_mask(
        lambda b, h, q, k: document[q] == document[k], None, None, total, total, device=str(device), _compile=True
    )
    return Instance(
        leaves,
        lambda: _compiled_flex(flex_attention)(*leaves, block_mask=block_mask),
        lambda _index, x: x[0].transpose(0, 1),
        cotangent=lambda x: x.transpose(0, 1)[None].contiguous(),
    )


_COMPILED: dict[object, Callable] = {}


def _compiled_flex(body: Callable) -> Callable:
    return _COMPILED.setdefault(body, torch.compile(body, dynamic=False))


def _numbers(cost: Callable[..., Cost]) -> Callable[[Case], Cost]:
    return lambda case: cost(
        case.lengths, case.numbers["heads"], case.numbers["head_dim"], torch.finfo(case.dtype).bits // 8
    )


def operation(device: torch.device) -> Operation:
    providers = [
        Provider("ours", _ours, library=False),
        Provider("eager", _eager, library=False),
        Provider("sdpa flash", _sdpa(SDPBackend.FLASH_ATTENTION, takes_mask=False)),
        Provider("sdpa cudnn", _sdpa(SDPBackend.CUDNN_ATTENTION, takes_mask=True)),
        Provider("sdpa efficient", _sdpa(SDPBackend.EFFICIENT_ATTENTION, takes_mask=True)),
        Provider("sdpa math", _sdpa(SDPBackend.MATH, takes_mask=True)),
        Provider("varlen_attn", _varlen),
        Provider("flex compiled", _flex),
    ]
    return Operation(
        "attention",
        cases(device),
        inputs,
        reference,
        providers,
        _numbers(attention_forward_cost),
        _numbers(attention_backward_cost),
        arithmetic=True,
    )
