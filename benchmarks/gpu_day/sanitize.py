"""One small forward and backward pass through every kernel, dropout off and on: what compute-sanitizer watches.

compute-sanitizer --tool memcheck python -m benchmarks.gpu_day.sanitize
"""

from __future__ import annotations

import sys

import torch

import kernels
from kernels.device import interpreted


def exercise(device: torch.device, dtype: torch.dtype, dropout_p: float) -> None:
    """Ragged lengths, rows behind the last sequence, a vocabulary that is no multiple of 16, rows of 5,000 numbers."""
    cu = torch.tensor([0, 1, 1, 40, 105], dtype=torch.int32, device=device)
    seed = torch.tensor(3, device=device)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype, requires_grad=True)

    qkv = random(110, 3, 2, 64)
    bias, wide, wide_bias = random(128), random(3, 5000), random(5000)
    x = kernels.attention_varlen_qkv(qkv, cu, 65, dropout_p, seed).flatten(1)
    x = kernels.dropout_add_layer_norm(x, bias, qkv[:, 0].flatten(1), bias, bias, dropout_p, 1e-5, seed)
    x = kernels.layer_norm(kernels.bias_gelu(x, bias), bias, bias, 1e-5)
    y = kernels.dropout_add_layer_norm(wide, wide_bias, wide, wide_bias, wide_bias, dropout_p, 1e-5, seed)
    target = torch.arange(110, device=device) % 101
    target[3] = -100
    loss = kernels.linear_cross_entropy(x, random(101, 128), random(101), target).loss_sum + y.float().sum()
    loss.backward()
    assert torch.isfinite(qkv.grad).all() and torch.isfinite(wide.grad).all()


def main() -> int:
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not interpreted():
        print("error: no GPU; TRITON_INTERPRET=1 runs the kernels on a CPU")
        return 2
    device = torch.device("cuda" if on_gpu else "cpu")
    for dtype in (torch.bfloat16, torch.float32) if on_gpu else (torch.float32,):
        for dropout_p in (0.0, 0.1):
            exercise(device, dtype, dropout_p)
            print(f"{dtype}, dropout {dropout_p}: forward and backward", flush=True)
    if on_gpu:
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
