"""The row kernels (LayerNorm, dropout-add-LayerNorm, GELU, cross-entropy), launched on a GPU or in the interpreter, against float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.cross_entropy import linear_cross_entropy_reference
from kernels.gelu import bias_gelu_reference
from kernels.layer_norm_reference import dropout_add_layer_norm_reference

EPS, SEED = 1e-5, 977
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def gradients(body: Callable[..., Tensor], inputs: tuple[Tensor, ...], dy: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """[output, gradients …] of `body` with everything in `dtype`."""
    inputs = tuple(x.to(dtype).requires_grad_() for x in inputs)
    y = body(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "p"), [(1, 32, 0.0), (37, 200, 0.0), (19, 768, 0.3), (3, 5000, 0.3)])
def test_dropout_add_layer_norm(rows, columns, p, dtype, triton_device, poisoned, within_error_bound):
    """Widths that are no power of two, more rows than programs have at once, both gradients, all three sums."""
    from kernels.layer_norm_launch import launch_layer_norm_backward, launch_layer_norm_forward

    dtype = DTYPES[dtype]
    x, residual = torch.randn(rows, columns) + 3, torch.randn(rows, 2 * columns)[:, ::2].contiguous()
    bias, weight, ln_bias = torch.randn(columns), torch.randn(columns) + 1, torch.randn(columns)
    inputs = tuple(t.to(dtype) for t in (x, bias, residual, weight, ln_bias))
    dy = torch.randn(rows, columns).to(dtype)
    seed = torch.tensor(SEED, device=triton_device)

    x, bias, residual, weight, ln_bias = (t.to(triton_device) for t in inputs)
    y, mean, rstd = launch_layer_norm_forward(x, bias, residual, weight, ln_bias, p, EPS, seed, dtype, poisoned)
    dx, dresidual, sums = launch_layer_norm_backward(
        dy.to(triton_device), x, bias, residual, weight, mean, rstd, p, seed, poisoned
    )
    assert mean.dtype == rstd.dtype == torch.float32
    ours = [y, dx, sums[2], dresidual if p > 0.0 else dx, sums[0], sums[1]]

    def reference(*inputs: Tensor) -> Tensor:
        return dropout_add_layer_norm_reference(*inputs, p, EPS, SEED)

    plain, exact = (gradients(reference, inputs, dy, kind) for kind in (dtype, torch.float64))
    for index, (mine, cheap, true) in enumerate(zip(ours, plain, exact)):
        assert within_error_bound(mine.cpu().to(dtype), cheap, true, 2.0 if index == 0 else 3.0), index


def test_plain_layer_norm_through_the_op(triton_device, within_error_bound):
    """Strided rows in, fp32 parameters beside fp16 activations, a cotangent of stride 0; a large common offset."""
    import kernels

    wide = torch.randn(9, 300, device=triton_device).half() + 100
    x = wide[:, :100].detach().requires_grad_()
    weight, bias = (torch.randn(100, device=triton_device, requires_grad=True) for _ in "wb")
    y = kernels.layer_norm(x, weight, bias, EPS)
    ours = [y.detach(), *torch.autograd.grad(y.sum(), (x, weight, bias))]
    reference = lambda *i: torch.nn.functional.layer_norm(i[0], (100,), i[1], i[2], EPS)  # noqa: E731
    inputs = (x.detach().cpu(), weight.detach().cpu(), bias.detach().cpu())
    exact = gradients(reference, inputs, torch.ones(9, 100), torch.float64)
    for mine, true, tolerance in zip(ours, exact, (1e-3, 1e-3, 1e-5, 1e-5)):
        assert (mine.cpu().double() - true).norm() <= tolerance * true.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_gelu(dtype, triton_device, poisoned, within_error_bound):
    from kernels.gelu_kernel import launch_bias_gelu_backward, launch_bias_gelu_forward

    dtype = DTYPES[dtype]
    inputs = (torch.randn(45, 600) * 2).to(dtype), torch.randn(600).to(dtype)
    dy = torch.randn(45, 600).to(dtype)
    x, bias = (t.to(triton_device) for t in inputs)
    y = launch_bias_gelu_forward(x, bias, poisoned)
    dx, dbias = launch_bias_gelu_backward(dy.to(triton_device), x, bias, poisoned)
    plain, exact = (gradients(bias_gelu_reference, inputs, dy, kind) for kind in (dtype, torch.float64))
    for index, mine in enumerate((y, dx, dbias)):
        assert within_error_bound(mine.cpu().to(dtype), plain[index], exact[index], 2.0 if index == 0 else 3.0), index


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_cross_entropy(dtype, triton_device, within_error_bound):
    """A vocabulary that takes two blocks; targets in both and at their edges."""
    import kernels

    dtype = DTYPES[dtype]
    inputs = torch.randn(5, 24).to(dtype), torch.randn(5001, 24).to(dtype), torch.randn(5001).to(dtype)
    target = torch.tensor([0, 4095, 4096, 5000, 17])
    mine = tuple(t.to(triton_device).requires_grad_() for t in inputs)
    loss = kernels.linear_cross_entropy(*mine, target.to(triton_device))
    ours = [loss.loss_sum, *torch.autograd.grad(loss.loss_sum, mine)]

    def reference(*inputs: Tensor) -> Tensor:
        return linear_cross_entropy_reference(*inputs, target)

    plain, exact = (gradients(reference, inputs, torch.ones(()), kind) for kind in (dtype, torch.float64))
    assert loss.correct == ((inputs[0] @ inputs[1].T).float() + inputs[2]).argmax(-1).eq(target).sum()
    for index, (a, b, c) in enumerate(zip(ours, plain, exact)):
        assert within_error_bound(a.detach().cpu().to(dtype), b.to(dtype), c, 2.0 if index == 0 else 3.0), index


def test_cross_entropy_of_targets_outside_the_vocabulary(triton_device):
    """−100 gives 0, nonsense gives NaN, and neither reads or disturbs another row."""
    from kernels.cross_entropy_kernel import launch_cross_entropy_, padded_logits

    target = torch.tensor([3, -100, 10, -1, 50], device=triton_device)
    logits = padded_logits(5, 50, torch.empty(0, device=triton_device))
    assert logits.stride() == (64, 1)
    logits.copy_(torch.randn(5, 50))
    bias = torch.randn(50, device=triton_device)
    wide = (logits.clone() + bias).double().cpu().requires_grad_()
    reference = torch.nn.functional.cross_entropy(wide[:3], target[:3].cpu(), reduction="none")
    (gradient,) = torch.autograd.grad(reference.sum(), wide)
    loss, correct = launch_cross_entropy_(logits, bias, target, True)
    assert torch.allclose(loss[:3].cpu().double(), reference.detach(), atol=1e-5) and loss[1] == 0
    assert torch.allclose(logits[:3].cpu().double(), gradient[:3], atol=1e-6)
    assert loss[3:].isnan().all() and logits[3:].isnan().all()
    assert not correct[[1, 3, 4]].any()


def test_wide_layer_norm_waits_between_store_and_load():
    """Above 4,096 columns the sums stay in memory: what one thread stores in a pass another may load in the next."""
    from kernels import layer_norm_kernel

    source = layer_norm_kernel.layer_norm_backward_kernel.fn
    lines = [line.strip() for line in inspect.getsource(source).splitlines()]
    wide = lines.index("if WIDE:")
    barrier = next(n for n, line in enumerate(lines) if n > wide and line.startswith("tl.debug_barrier()"))
    assert barrier < next(n for n, line in enumerate(lines) if n > wide and "tl.load(partial" in line)
