"""The ops as PyTorch sees them, on any machine: opcheck, gradients, compile, autocast, checkpointing, wrong arguments.

Without a GPU and without the interpreter the ops run their references: what is tested here is the registration, the fake
implementations, the autograd formulas and the checks, in fp64 where that helps.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import kernels
from kernels.attention_reference import attention_reference
from kernels.cross_entropy import linear_cross_entropy_reference
from kernels.gelu import bias_gelu_reference
from kernels.layer_norm_reference import dropout_add_layer_norm_reference, layer_norm_reference

OPS = torch.ops.fused_kernels
CU = torch.tensor([0, 3, 3, 8], dtype=torch.int32)
TOTAL = 10  # two tokens behind the last sequence
SEED = torch.tensor(5)


def normal(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*size, dtype=dtype, requires_grad=True)


def attention_arguments(dropout_p: float) -> tuple:
    plan = kernels.attention_plan(CU, TOTAL, 32, torch.float32)
    return CU, plan.tiles, plan.tile, 5, SEED if dropout_p else None, 0.2, dropout_p


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_opcheck(dropout_p):
    """Schema, fake tensors, autograd registration and AOT dispatch, by PyTorch's own checker."""
    seed = SEED if dropout_p else None
    f32 = torch.float32
    x, residual = normal(6, 40, dtype=f32), normal(6, 40, dtype=f32)
    c = [normal(40, dtype=f32) for _ in range(3)]
    qkv = normal(TOTAL, 3, 2, 32, dtype=f32)
    cases = [
        (OPS.attention_tiles, (CU, TOTAL, 32)),
        (OPS.attention, (*qkv.detach().unbind(1), *attention_arguments(dropout_p))),
        (OPS.attention_qkv, (qkv, *attention_arguments(dropout_p))),
        (OPS.layer_norm, (x, None, None, c[0], c[1], None, 0.0, 1e-5, torch.float16)),
        (OPS.layer_norm, (x, c[2], residual, c[0], c[1], seed, dropout_p, 1e-5, f32)),
        (OPS.bias_gelu, (x, c[0])),
        (OPS.linear_cross_entropy, (x, normal(50, 40, dtype=f32), normal(50, dtype=f32), torch.arange(6), True)),
    ]
    for op, arguments in cases:
        torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_attention_gradients(dropout_p):
    """The written-out backward pass against numerical differences and against autograd of the definition."""
    qkv = normal(TOTAL, 3, 2, 8)

    def packed(x: Tensor) -> Tensor:
        return kernels.attention_varlen_qkv(x, CU, 5, dropout_p=dropout_p, seed=5)

    def apart(x: Tensor) -> Tensor:
        return kernels.attention_varlen(*x.unbind(1), CU, 5, dropout_p=dropout_p, seed=SEED)

    assert torch.autograd.gradcheck(packed, qkv)
    cotangent = torch.randn(TOTAL, 2, 8, dtype=torch.float64)
    reference = attention_reference(*qkv.unbind(1), CU, 8**-0.5, dropout_p, 5)
    (expected,) = torch.autograd.grad(reference, qkv, cotangent)
    for body in (packed, apart):
        assert torch.allclose(body(qkv), reference)
        (gradient,) = torch.autograd.grad(body(qkv), qkv, cotangent)
        assert torch.allclose(gradient, expected)
        assert torch.count_nonzero(gradient[8:]) == 0


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_row_kernel_gradients(p):
    x, residual = normal(5, 12), normal(5, 12)
    bias, weight, ln_bias = normal(12), normal(12), normal(12)

    def fused(*inputs: Tensor) -> Tensor:
        return kernels.dropout_add_layer_norm(*inputs, p=p, eps=1e-5, seed=3)

    inputs = (x, bias, residual, weight, ln_bias)
    assert torch.autograd.gradcheck(fused, inputs)
    assert torch.allclose(fused(*inputs), dropout_add_layer_norm_reference(*inputs, p, 1e-5, 3))
    assert torch.autograd.gradcheck(lambda *i: kernels.layer_norm(*i, 1e-5), (x, weight, bias))
    plain = kernels.layer_norm(x, weight, bias, 1e-5)
    assert torch.allclose(plain, torch.nn.functional.layer_norm(x, (12,), weight, bias, 1e-5))
    assert torch.allclose(plain, layer_norm_reference(x, weight, bias, 1e-5))
    assert torch.autograd.gradcheck(kernels.bias_gelu, (x, bias))
    assert torch.allclose(kernels.bias_gelu(x, bias), bias_gelu_reference(x, bias))


@pytest.mark.parametrize("targets", [0, 1, 2500])
def test_linear_cross_entropy(targets):
    """Chunks (2,500 rows are three), no rows at all, and the count of right answers."""
    hidden, weight, bias = normal(targets, 6), normal(11, 6), normal(11)
    target = torch.randint(0, 11, (targets,))
    ours = kernels.linear_cross_entropy(hidden, weight, bias, target)
    reference = linear_cross_entropy_reference(hidden, weight, bias, target)
    assert torch.allclose(ours.loss_sum, reference)
    assert ours.correct == ((hidden @ weight.T + bias).argmax(-1) == target).sum()
    inputs = (hidden, weight, bias)
    for mine, expected in zip(
        torch.autograd.grad(ours.loss_sum * 3, inputs), torch.autograd.grad(reference * 3, inputs, allow_unused=True)
    ):
        assert torch.allclose(mine, expected)


def encoder_layer(qkv: Tensor, bias: Tensor, weight: Tensor, seed: Tensor, p: float = 0.2) -> Tensor:
    """Everything once, as a layer would call it."""
    x = kernels.attention_varlen_qkv(qkv, CU, 5, dropout_p=p, seed=seed).flatten(1)
    x = kernels.dropout_add_layer_norm(x, bias, qkv[:, 0].flatten(1), weight, bias, p, 1e-5, seed + 1)
    return kernels.layer_norm(kernels.bias_gelu(x, bias), weight, bias, 1e-5)


def test_compiles_to_one_graph():
    inputs = normal(TOTAL, 3, 2, 8), normal(16), normal(16)
    compiled = torch.compile(encoder_layer, fullgraph=True, backend="aot_eager")
    for seed in (torch.tensor(1), torch.tensor(2)):
        eager, fused = encoder_layer(*inputs, seed), compiled(*inputs, seed)
        assert torch.allclose(eager, fused)
        cotangent = torch.randn_like(eager)
        for a, b in zip(torch.autograd.grad(eager, inputs, cotangent), torch.autograd.grad(fused, inputs, cotangent)):
            assert torch.allclose(a, b)


def test_checkpointing_draws_the_same_masks():
    inputs = normal(TOTAL, 3, 2, 8), normal(16), normal(16)
    plain = encoder_layer(*inputs, SEED)
    again = checkpoint(encoder_layer, *inputs, SEED, use_reentrant=False)
    cotangent = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(plain, inputs, cotangent), torch.autograd.grad(again, inputs, cotangent)):
        assert torch.equal(a, b)


def test_autocast():
    """Matrix products and what feeds them in bf16, parameters and their gradients in fp32."""
    qkv, bias, weight = normal(TOTAL, 3, 2, 8, dtype=torch.float32), *(normal(16, dtype=torch.float32) for _ in "ab")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = encoder_layer(qkv, bias, weight, SEED)
        loss = kernels.linear_cross_entropy(out, torch.eye(16, requires_grad=True), bias, torch.arange(TOTAL))
    assert out.dtype == torch.bfloat16 and loss.loss_sum.dtype == torch.float32
    exact = encoder_layer(qkv.double(), bias.double(), weight.double(), SEED)
    assert (out - exact).norm() < 0.05 * exact.norm()
    gradients = torch.autograd.grad(loss.loss_sum, (qkv, bias, weight))
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in gradients)


def test_dropout_mask_is_a_function_of_the_seed():
    qkv = normal(TOTAL, 3, 2, 8)
    draws = [kernels.attention_varlen_qkv(qkv, CU, 5, dropout_p=0.5, seed=seed) for seed in (1, torch.tensor(1), 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_wrong_arguments():
    q = torch.randn(8, 2, 32)
    cu = torch.tensor([0, 8], dtype=torch.int32)
    with pytest.raises(ValueError, match="int32"):
        kernels.attention_varlen(q, q, q, cu.long(), 8)
    with pytest.raises(ValueError, match="one shape"):
        kernels.attention_varlen(q, q[:, :1], q, cu, 8)
    with pytest.raises(ValueError, match="one dtype"):
        kernels.attention_varlen(q, q.half(), q, cu, 8)
    with pytest.raises(ValueError, match="positive"):
        kernels.attention_varlen(q, q, q, cu, 8, scale=0.0)
    with pytest.raises(ValueError, match="dropout probability"):
        kernels.attention_varlen(q, q, q, cu, 8, dropout_p=1.0)
    with pytest.raises(ValueError, match=r"\(T, 3, H, D\)"):
        kernels.attention_varlen_qkv(q, cu, 8)
    plan = kernels.attention_plan(cu, 8, 32, torch.bfloat16)
    with pytest.raises(ValueError, match="another dtype"):
        kernels.attention_varlen(q, q, q, cu, 8, plan=plan)
    x, c = torch.randn(4, 6), torch.ones(6)
    with pytest.raises(ValueError, match="must be"):
        kernels.layer_norm(x, torch.ones(5), c, 1e-5)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.dropout_add_layer_norm(x, c, x[:3], c, c, 0.0, 1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        kernels.bias_gelu(x, torch.ones(5))
    with pytest.raises(ValueError, match="do not fit"):
        kernels.linear_cross_entropy(x, torch.ones(9, 5), torch.ones(9), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_max_seqlen_below_a_length_is_refused_on_a_cpu(dropout_p):
    """It sizes the dropout masks: with one too small the kernels would read beside them. PyTorch's versions of the
    encoder were silently wrong."""
    qkv = torch.randn(8, 3, 2, 8)
    with pytest.raises(ValueError, match="max_seqlen is 4, but the longest sequence has 5 tokens"):
        kernels.attention_varlen_qkv(qkv, CU, 4, dropout_p=dropout_p, seed=1)


def test_targets_outside_the_vocabulary():
    """−100 counts for nothing, as in PyTorch's cross-entropy (it used to read beside its row); others are refused."""
    hidden, weight, bias = normal(3, 6), normal(11, 6), normal(11)
    target = torch.tensor([4, -100, 10])
    ours = kernels.linear_cross_entropy(hidden, weight, bias, target)
    reference = linear_cross_entropy_reference(hidden, weight, bias, target)
    assert torch.allclose(ours.loss_sum, reference)
    inputs = (hidden, weight, bias)
    for mine, expected in zip(torch.autograd.grad(ours.loss_sum, inputs), torch.autograd.grad(reference, inputs)):
        assert torch.allclose(mine, expected)
    assert ours.correct == ((hidden @ weight.T + bias).argmax(-1) == target).sum()
    for wrong in (-1, 11):
        with pytest.raises(ValueError, match=f"target {wrong} is neither"):
            kernels.linear_cross_entropy(hidden, weight, bias, torch.tensor([4, wrong, 10]))


def test_imports_without_triton():
    """Only torch is needed to import the package and to run the references."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, kernels\n"
        "x = torch.randn(4, 3, 1, 8); cu = torch.tensor([0, 4], dtype=torch.int32)\n"
        "assert kernels.attention_varlen_qkv(x, cu, 4, dropout_p=0.1).shape == (4, 1, 8)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
