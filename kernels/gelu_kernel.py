"""GELU(x + bias) and its backward pass with dbias, for the feed-forward layer.

The product's epilogue can add a bias for nothing; what fusing saves is in the backward pass: autograd writes dx and then
reads all of it again to sum dbias. One of six moves of a (T, 4H) tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import multiprocessors, on_device
from kernels.layer_norm_launch import PROGRAMS_PER_MULTIPROCESSOR, sum_partials

BLOCK, ROWS, WARPS = 512, 8, 8


@triton.jit(do_not_specialize=["rows"])
def bias_gelu_forward_kernel(x_ptr, bias_ptr, y_ptr, x_stride, rows, columns, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Grid (row groups, column blocks). y is contiguous."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row[:, None] < rows) & (column[None, :] < columns)
    row64 = row.to(tl.int64)[:, None]
    bias = tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    z = tl.load(x_ptr + row64 * x_stride + column[None, :], mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    y = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    tl.store(y_ptr + row64 * columns + column[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def bias_gelu_backward_kernel(
    dy_ptr,
    x_ptr,
    bias_ptr,
    dx_ptr,
    partial_ptr,
    dy_stride,
    x_stride,
    rows,
    columns,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Grid (programs, column blocks): sums of dx over a program's rows go to row `program` of `partial_ptr`."""
    program = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        row64 = row.to(tl.int64)[:, None]
        mask = (row[:, None] < rows) & inside[None, :]
        z = tl.load(x_ptr + row64 * x_stride + column[None, :], mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        dy = tl.load(dy_ptr + row64 * dy_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        normal = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        dx = dy * (normal + z * density)  # d/dz of z Φ(z)
        dbias += dx
        tl.store(dx_ptr + row64 * columns + column[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + program.to(tl.int64) * columns + column, tl.sum(dbias, 0), mask=inside)


def launch_bias_gelu_forward(x_NC: Tensor, bias_C: Tensor, empty: Callable[..., Tensor] = torch.empty) -> Tensor:
    """GELU(x + bias) (N, C) contiguous, in x's dtype."""
    rows, columns = x_NC.shape
    y_NC = empty(rows, columns, dtype=x_NC.dtype, device=x_NC.device)
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, BLOCK))
    if x_NC.numel():
        with on_device(x_NC):
            bias_gelu_forward_kernel[grid](
                x_NC, bias_C, y_NC, x_NC.stride(0), rows, columns, BLOCK=BLOCK, ROWS=ROWS, num_warps=WARPS
            )
    return y_NC


def launch_bias_gelu_backward(
    dy_NC: Tensor, x_NC: Tensor, bias_C: Tensor, empty: Callable[..., Tensor] = torch.empty
) -> tuple[Tensor, Tensor]:
    """(dx (N, C), dbias (C,) fp32)."""
    rows, columns = x_NC.shape
    dx_NC = empty(rows, columns, dtype=x_NC.dtype, device=x_NC.device)
    if not x_NC.numel():
        return dx_NC, torch.zeros(columns, device=x_NC.device)
    blocks = triton.cdiv(columns, BLOCK)
    programs = min(
        triton.cdiv(rows, ROWS), triton.cdiv(2 * PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(x_NC.device), blocks)
    )
    partial_PC = empty(programs, columns, dtype=torch.float32, device=x_NC.device)
    with on_device(x_NC):
        bias_gelu_backward_kernel[(programs, blocks)](
            dy_NC,
            x_NC,
            bias_C,
            dx_NC,
            partial_PC,
            dy_NC.stride(0),
            x_NC.stride(0),
            rows,
            columns,
            BLOCK=BLOCK,
            ROWS=ROWS,
            num_warps=WARPS,
        )
    return dx_NC, sum_partials(partial_PC, columns, empty)
