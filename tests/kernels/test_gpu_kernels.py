"""What only a GPU can show: bf16, the configurations that are really selected, CUDA graphs, Inductor, huge batches.

The other kernel tests launch on the GPU too when there is one; these are marked `gpu` and skipped elsewhere.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import kernels
from kernels.attention_reference import attention_reference
from kernels.layer_norm_reference import dropout_add_layer_norm_reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda")


def cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device=CUDA, dtype=torch.int32)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("lengths", [[512, 384, 512], [1, 17, 0, 64, 65, 200, 384, 20]], ids=["long", "ragged"])
def test_attention_as_selected(lengths, head_dim, dtype, dropout_p, within_error_bound):
    cu, total = cumulative(lengths), sum(lengths) + 5
    qkv = torch.randn(total, 3, 3, head_dim, device=CUDA).to(dtype).requires_grad_()
    dout = torch.randn(total, 3, head_dim, device=CUDA).to(dtype)
    out = kernels.attention_varlen_qkv(qkv, cu, 512, dropout_p, seed=9)
    (gradient,) = torch.autograd.grad(out, qkv, dout)

    def reference(dtype: torch.dtype) -> list[Tensor]:
        x = qkv.detach().to(dtype).requires_grad_()
        y = attention_reference(*x.unbind(1), cu, head_dim**-0.5, dropout_p, 9)
        return [y, *torch.autograd.grad(y, x, dout.to(dtype))[0].unbind(1)]

    for index, (mine, plain, exact) in enumerate(
        zip([out, *gradient.unbind(1)], reference(dtype), reference(torch.float64))
    ):
        assert within_error_bound(mine, plain, exact, 2.0 if index == 0 else 3.0), index
    assert torch.count_nonzero(out[-5:]) == 0 and torch.count_nonzero(gradient[-5:]) == 0


@pytest.mark.parametrize("columns", [64, 768, 1024, 5000, 8192])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_dropout_add_layer_norm_in_bf16(columns, p, within_error_bound):
    shapes = [(700, columns), (columns,), (700, columns), (columns,), (columns,)]
    inputs = [torch.randn(shape, device=CUDA).bfloat16().requires_grad_() for shape in shapes]
    dy = torch.randn(700, columns, device=CUDA).bfloat16()
    y = kernels.dropout_add_layer_norm(*inputs, p=p, eps=1e-12, seed=3)
    ours = [y, *torch.autograd.grad(y, inputs, dy)]

    def reference(dtype: torch.dtype) -> list[Tensor]:
        wide = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = dropout_add_layer_norm_reference(*wide, p, 1e-12, 3)
        return [out, *torch.autograd.grad(out, wide, dy.to(dtype))]

    for index, (mine, plain, exact) in enumerate(zip(ours, reference(torch.bfloat16), reference(torch.float64))):
        assert within_error_bound(mine, plain, exact, 2.0 if index == 0 else 3.0), index


def test_same_bits_twice():
    """No atomics: gradients do not depend on the order in which programs finish."""
    cu = cumulative([512, *[20] * 100])
    qkv = torch.randn(2512, 3, 12, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    dout = torch.randn(2512, 12, 64, device=CUDA, dtype=torch.bfloat16)
    weight = torch.randn(768, device=CUDA, requires_grad=True)

    def run() -> list[Tensor]:
        out = kernels.attention_varlen_qkv(qkv, cu, 512, 0.1, seed=1)
        y = kernels.layer_norm(out.flatten(1), weight, weight, 1e-5)
        return [y, *torch.autograd.grad(y, (qkv, weight), dout.flatten(1))]

    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run()))


def test_cuda_graph_follows_lengths_and_seed():
    """A captured step reads lengths and seed from memory: a replay with others gives the others' results."""
    cu, seed = cumulative([60, 40, 28]), torch.tensor(1, device=CUDA)
    qkv = torch.randn(160, 3, 2, 64, device=CUDA, dtype=torch.float16, requires_grad=True)
    dout = torch.randn(160, 2, 64, device=CUDA, dtype=torch.float16)

    def step() -> tuple[Tensor, Tensor]:
        out = kernels.attention_varlen_qkv(qkv, cu, 160, 0.2, seed=seed)
        return out, *torch.autograd.grad(out, qkv, dout)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    cu.copy_(cumulative([1, 150, 3]))
    seed.fill_(77)
    graph.replay()
    for a, b in zip(captured, step()):
        assert torch.equal(a, b)


def test_inductor_compiles_one_graph():
    cu = cumulative([100, 28])
    bias = torch.randn(128, device=CUDA, requires_grad=True)
    qkv = torch.randn(128, 3, 2, 64, device=CUDA, requires_grad=True)

    def layer(qkv: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            x = kernels.attention_varlen_qkv(qkv, cu, 100, 0.1, seed=seed).flatten(1)
            x = kernels.dropout_add_layer_norm(x, bias, qkv[:, 0].flatten(1), bias, bias, 0.1, 1e-5, seed + 1)
            return kernels.bias_gelu(x, bias)

    seed = torch.tensor(4, device=CUDA)
    eager, fused = layer(qkv, bias, seed), torch.compile(layer, fullgraph=True)(qkv, bias, seed)
    assert torch.allclose(eager, fused, atol=2e-2)
    dy = torch.randn_like(eager)
    for a, b in zip(torch.autograd.grad(eager, (qkv, bias), dy), torch.autograd.grad(fused, (qkv, bias), dy)):
        assert (a - b).norm() <= 1e-2 * a.norm()


def test_offsets_beyond_31_bits():
    """950k tokens × 2,304 numbers: the last sequence lies 2.2 · 10⁹ elements into the projection."""
    total, length = 950_000, 200
    if torch.cuda.get_device_properties(CUDA).total_memory < 24e9:
        pytest.fail("this test needs a GPU with 24 GB")
    lengths = [500] * ((total - length) // 500) + [length]
    cu = cumulative(lengths)
    qkv = torch.randn(sum(lengths), 3, 12, 64, device=CUDA, dtype=torch.bfloat16)
    last = qkv[-length:].clone()
    own = cumulative([length])
    out = kernels.attention_varlen_qkv(qkv, cu, 500)
    assert torch.allclose(out[-length:], kernels.attention_varlen_qkv(last, own, length), atol=1e-2)


def test_cross_entropy_of_a_real_vocabulary(within_error_bound):
    hidden, weight = (torch.randn(n, 256, device=CUDA).bfloat16().requires_grad_() for n in (1500, 28996))
    bias = torch.randn(28996, device=CUDA, requires_grad=True)
    target = torch.randint(28996, (1500,), device=CUDA)
    ours = kernels.linear_cross_entropy(hidden, weight, bias, target).loss_sum
    gradients = torch.autograd.grad(ours, (hidden, weight, bias))

    def reference(dtype: torch.dtype) -> list[Tensor]:
        h, w = (x.detach().to(dtype).requires_grad_() for x in (hidden, weight))
        b = bias.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        logits = (h @ w.T).to(b.dtype) + b
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        return [loss, *torch.autograd.grad(loss, (h, w, b))]

    for index, (mine, plain, exact) in enumerate(
        zip([ours, *gradients], reference(torch.bfloat16), reference(torch.float64))
    ):
        assert within_error_bound(mine.bfloat16(), plain, exact, 2.0 if index == 0 else 3.0), index
