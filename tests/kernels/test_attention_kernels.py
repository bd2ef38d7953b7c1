"""The attention kernels, launched on a GPU or in the interpreter, against float64, both directions, poisoned outputs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from kernels.attention_config import AttentionConfig, BlockConfig, peeled
from kernels.attention_reference import attention_reference
from kernels.attention_tiles import attention_tiles_reference

#: Small blocks of different heights: several steps of every loop with few tokens, and the interpreter stays quick.
SMALL = AttentionConfig(32, BlockConfig(64, 4, 2), BlockConfig(32, 4, 2), BlockConfig(32, 4, 2))
TALL = AttentionConfig(64, BlockConfig(32, 4, 2), BlockConfig(64, 4, 2), BlockConfig(64, 4, 2))
SEED = 81985529216486895


def run_case(
    lengths: list[int],
    dtype: torch.dtype,
    device: torch.device,
    poisoned: Callable[..., Tensor],
    *,
    heads: int = 1,
    head_dim: int = 32,
    behind: int = 0,
    dropout_p: float = 0.0,
    config: AttentionConfig = SMALL,
    spread: float = 1.0,
    peel: bool | None = None,
) -> SimpleNamespace:
    """Launch forward and backward once (`peel`: whether the forward kernel treats its last block apart, none: as the
    device's kernels do); return the results beside plain PyTorch's and float64's, as (T, 4, H, D):
    output, dQ, dK, dV."""
    from kernels.attention_launch import launch_attention_backward, launch_attention_forward
    from kernels.attention_masks_kernel import launch_attention_masks

    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    total = int(cu[-1]) + behind
    qkv_T3HD = (torch.randn(total, 3, heads, head_dim) * spread).to(dtype)
    dout_THD = torch.randn(total, heads, head_dim).to(dtype)
    scale = head_dim**-0.5

    tiles = attention_tiles_reference(cu, total, config.tile).to(device)
    seed = torch.tensor(SEED, device=device)
    masks = launch_attention_masks(tiles, config.tile, heads, max(lengths), seed, dropout_p) if dropout_p else None
    q, k, v = qkv_T3HD.to(device).unbind(1)  # strided views of one projection
    with patch("kernels.attention_launch.peeled", peeled if peel is None else lambda *_: peel):
        out, lse = launch_attention_forward(q, k, v, tiles, config, scale, dropout_p, masks, poisoned)
    dqkv = launch_attention_backward(
        dout_THD.to(device), q, k, v, out, lse, tiles, config, scale, dropout_p, masks, poisoned
    )

    def reference(dtype: torch.dtype) -> Tensor:
        x_T3HD = qkv_T3HD.to(dtype).requires_grad_()
        y_THD = attention_reference(*x_T3HD.unbind(1), cu, scale, dropout_p, SEED)
        (dx_T3HD,) = torch.autograd.grad(y_THD, x_T3HD, dout_THD.to(dtype))
        return torch.cat([y_THD.detach()[:, None], dx_T3HD], 1)

    ours = torch.cat([out[:, None], dqkv], 1).cpu()
    return SimpleNamespace(ours=ours, plain=reference(dtype), exact=reference(torch.float64), end=int(cu[-1]))


def is_right(case: SimpleNamespace, within_error_bound: Callable[..., bool]) -> bool:
    """Output and each gradient within the error bound. The scores of a sequence of one token do not matter: there dQ and
    dK are zero, and ours may be a rounding error of what cancels."""
    size = case.exact.norm()
    for i in range(4):
        ours, plain, exact = case.ours[:, i], case.plain[:, i], case.exact[:, i]
        if exact.norm() < 1e-9 * size:
            if not ours.double().norm() <= 4 * torch.finfo(ours.dtype).eps * size:
                return False
        elif not within_error_bound(ours, plain, exact, 2.0 if i == 0 else 3.0):
            return False
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("lengths", [[1], [2, 15], [16, 17], [63], [64], [65], [33, 1, 0, 40]], ids=str)
def test_forward_and_backward(lengths, dtype, triton_device, poisoned, within_error_bound):
    case = run_case(lengths, dtype, triton_device, poisoned)
    assert is_right(case, within_error_bound)


@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
@pytest.mark.parametrize("lengths", [[1], [64, 65, 0], [128, 33, 200]], ids=str)
def test_last_block_behind_the_loop_gives_the_same_bits(
    lengths, dropout_p, triton_device, poisoned, within_error_bound
):
    """Hopper's form of the forward kernel, which the interpreter's family of GPUs would not select."""
    results = []
    for peel in (True, False):
        torch.manual_seed(0)
        case = run_case(lengths, torch.float16, triton_device, poisoned, heads=2, dropout_p=dropout_p, peel=peel)
        assert is_right(case, within_error_bound)
        results.append(case.ours[:, 0])
    assert torch.equal(*results) or triton_device.type == "cuda", "a compiler may contract differently"


@pytest.mark.parametrize("head_dim", [64, 128])
def test_head_dimensions_and_heads(head_dim, triton_device, poisoned, within_error_bound):
    case = run_case([17, 40], torch.float16, triton_device, poisoned, heads=2, head_dim=head_dim)
    assert is_right(case, within_error_bound)


def test_rows_without_a_key_are_exact_zeros(triton_device, poisoned, within_error_bound):
    """Tokens behind the last sequence, as in a batch padded to a fixed size: zeros out, zero gradients, never NaN."""
    case = run_case([5, 0, 20], torch.float32, triton_device, poisoned, behind=70, config=TALL)
    assert torch.count_nonzero(case.ours[case.end :]) == 0
    assert is_right(case, within_error_bound)


def test_logits_in_the_thousands(triton_device, poisoned):
    """Large models in fp16 have logits near −3000. A masked key must not leak in as exp(0 − lse), and nothing overflows."""
    case = run_case([40, 3], torch.float16, triton_device, poisoned, head_dim=64, spread=25.0)
    assert torch.isfinite(case.ours).all()
    forward = (case.ours[:, 0].double() - case.exact[:, 0]).norm() / case.exact[:, 0].norm()
    assert forward < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_dropout_follows_the_reference(dtype, triton_device, poisoned, within_error_bound):
    """Same mask as the reference's in the output and in all three gradients, hence the same in all three kernels."""
    case = run_case([50, 9], dtype, triton_device, poisoned, heads=2, dropout_p=0.25)
    assert is_right(case, within_error_bound)


def test_dropout_does_not_depend_on_block_sizes(triton_device, poisoned, within_error_bound):
    case = run_case([70], torch.float32, triton_device, poisoned, dropout_p=0.5, config=TALL)
    assert is_right(case, within_error_bound)


def test_backward_uses_the_forward_mask(triton_device):
    """By finite differences: the gradient with dropout is the slope of the function with that very mask."""
    import kernels

    cu = torch.tensor([0, 9, 26], dtype=torch.int32, device=triton_device)
    qkv = torch.randn(26, 3, 1, 32, device=triton_device)
    direction = torch.randn_like(qkv)
    cotangent = torch.randn(26, 1, 32, device=triton_device)

    def value(x: Tensor) -> Tensor:
        return (kernels.attention_varlen_qkv(x, cu, 17, dropout_p=0.4, seed=11) * cotangent).double().sum()

    x = qkv.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    step = 1e-2
    slope = (value(qkv + step * direction) - value(qkv - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=2e-3)


def test_sequence_longer_than_max_seqlen_gets_nan_under_dropout(triton_device):
    """There are no masks for it, and a GPU's lengths are not looked at: it must not train, and nothing be read beside
    the masks. Its neighbours are right."""
    from kernels.attention_launch import launch_attention_forward
    from kernels.attention_masks_kernel import launch_attention_masks

    cu = torch.tensor([0, 140, 150], dtype=torch.int32)
    q = torch.randn(150, 1, 32).to(triton_device)
    tiles = attention_tiles_reference(cu, 150, 32).to(triton_device)
    seed = torch.tensor(SEED, device=triton_device)
    masks = launch_attention_masks(tiles, 32, 1, 100, seed, 0.25)
    out, _ = launch_attention_forward(q, q, q, tiles, SMALL, 1.0, 0.25, masks)
    assert out[:140].isnan().all()
    exact = attention_reference(*[q.cpu().double()] * 3, cu, 1.0, 0.25, SEED)
    assert torch.allclose(out[140:].cpu().double(), exact[140:], atol=1e-5)


def test_many_short_sequences_fit_the_grid(monkeypatch):
    """Slots were the grid's second axis, which CUDA limits to 65,535: batches of more short sequences failed to launch."""
    from kernels import attention_launch

    grids = []

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *_, **__: None

    for name in ("attention_forward_kernel", "attention_dq_kernel", "attention_dkdv_kernel"):
        monkeypatch.setattr(attention_launch, name, Recorder())
    q, tiles = torch.zeros(8, 3, 32), torch.zeros(70_000, 4, dtype=torch.int32)
    out, lse = attention_launch.launch_attention_forward(q, q, q, tiles, SMALL, 1.0, 0.0, None)
    attention_launch.launch_attention_backward(out, q, q, q, out, lse, tiles, SMALL, 1.0, 0.0, None)
    assert grids == [(3 * 70_000,)] * 3


def test_strided_operands_and_cotangents(triton_device, within_error_bound):
    """Heads first in memory, a step between the channels, a cotangent that is one number expanded: same results."""
    import kernels

    cu = torch.tensor([0, 20], dtype=torch.int32, device=triton_device)
    q = torch.randn(2, 20, 32, device=triton_device).transpose(0, 1)
    k = torch.randn(20, 2, 64, device=triton_device)[..., ::2]
    v = torch.randn(20, 2, 32, device=triton_device)
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = kernels.attention_varlen(q, k, v, cu, 20)
    ours = torch.autograd.grad(out.sum(), (q, k, v))  # sum's cotangent has stride 0
    wide = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    exact = attention_reference(*wide, cu.cpu(), 32**-0.5)
    for mine, reference in zip((out, *ours), (exact, *torch.autograd.grad(exact.sum(), wide))):
        assert torch.allclose(mine.detach().cpu().double(), reference.detach(), atol=2e-6, rtol=2e-5)
