"""Launchers of the LayerNorm kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kernels.device import multiprocessors, on_device
from kernels.dropout import keep_scale_of, threshold_of
from kernels.layer_norm_kernel import layer_norm_backward_kernel, layer_norm_forward_kernel, partial_sum_kernel

MAX_COLUMNS = 8192
#: Programs of the backward pass per multiprocessor: bounds the partial sums, and fills the machine.
PROGRAMS_PER_MULTIPROCESSOR = 3
SUM_BLOCK, SUM_ROWS = 64, 32


@dataclass(frozen=True)
class RowConfig:
    """How a row kernel is cut: `block` columns (a power of two), `rows` of them at once, warps of a program."""

    block: int
    rows: int
    num_warps: int


def row_config(columns: int, backward: bool) -> RowConfig:
    """About 16 elements of each tensor per thread; whole rows in registers up to 8,192 columns. Backward, two rows of 1,024
    by 4 warps let three programs share a multiprocessor, where four rows by 8 warps filled it."""
    block = max(32, triton.next_power_of_2(columns))
    rows = max(1, min(16, 2048 // block))
    if backward:
        return RowConfig(block, rows, 4 if block <= 1024 else 8)
    return RowConfig(block, rows, 8 if block == 4096 else 16 if block == 8192 else 4)


def all_row_configs() -> Iterator[tuple[RowConfig, RowConfig]]:
    """(forward, backward) of every width that can be selected."""
    columns = 32
    while columns <= MAX_COLUMNS:
        yield row_config(columns, False), row_config(columns, True)
        columns *= 2


def launch_layer_norm_forward(
    x_NC: Tensor,
    bias_C: Tensor | None,
    residual_NC: Tensor | None,
    weight_C: Tensor,
    ln_bias_C: Tensor,
    p: float,
    eps: float,
    seed: Tensor | None,
    out_dtype: torch.dtype,
    empty: Callable[..., Tensor] = torch.empty,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y (N, C) contiguous, mean (N,), rstd (N,)). `empty` allocates: tests hand in a poisoned one."""
    rows, columns = x_NC.shape
    y_NC = empty(rows, columns, dtype=out_dtype, device=x_NC.device)
    mean_N = empty(rows, dtype=torch.float32, device=x_NC.device)
    rstd_N = empty(rows, dtype=torch.float32, device=x_NC.device)
    choice = row_config(columns, backward=False)
    fused = residual_NC is not None
    if rows == 0:
        return y_NC, mean_N, rstd_N
    with on_device(x_NC):
        layer_norm_forward_kernel[(triton.cdiv(rows, choice.rows),)](
            x_NC,
            bias_C if fused else weight_C,  # never read in the plain LayerNorm, but a pointer it must be
            residual_NC if fused else x_NC,
            weight_C,
            ln_bias_C,
            y_NC,
            mean_N,
            rstd_N,
            seed if seed is not None else mean_N,
            x_NC.stride(0),
            residual_NC.stride(0) if fused else 0,
            rows,
            columns,
            eps,
            threshold_of(p),
            keep_scale_of(p),
            BLOCK=choice.block,
            ROWS=choice.rows,
            FUSED=fused,
            DROPOUT=p > 0.0,
            num_warps=choice.num_warps,
        )
    return y_NC, mean_N, rstd_N


def launch_layer_norm_backward(
    dy_NC: Tensor,
    x_NC: Tensor,
    bias_C: Tensor | None,
    residual_NC: Tensor | None,
    weight_C: Tensor,
    mean_N: Tensor,
    rstd_N: Tensor,
    p: float,
    seed: Tensor | None,
    empty: Callable[..., Tensor] = torch.empty,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dresidual, sums (3, C) fp32 of dγ, dβ, dbias). dresidual is empty where it would equal dx."""
    rows, columns = x_NC.shape
    fused = residual_NC is not None
    two = fused and (p > 0.0 or residual_NC.dtype != x_NC.dtype)
    dx_NC = empty(rows, columns, dtype=x_NC.dtype, device=x_NC.device)
    dresidual_NC = empty(
        (rows, columns) if two else (0,), dtype=(residual_NC if fused else x_NC).dtype, device=x_NC.device
    )
    if rows == 0:
        return dx_NC, dresidual_NC, torch.zeros(3, columns, device=x_NC.device)
    choice = row_config(columns, backward=True)
    programs = min(triton.cdiv(rows, choice.rows), PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(x_NC.device))
    partial = empty(programs, 3, columns, dtype=torch.float32, device=x_NC.device)
    with on_device(x_NC):
        layer_norm_backward_kernel[(programs,)](
            dy_NC,
            x_NC,
            bias_C if fused else weight_C,
            residual_NC if fused else x_NC,
            weight_C,
            mean_N,
            rstd_N,
            dx_NC,
            dresidual_NC if two else dx_NC,
            partial,
            seed if seed is not None else mean_N,
            dy_NC.stride(0),
            x_NC.stride(0),
            residual_NC.stride(0) if fused else 0,
            rows,
            columns,
            threshold_of(p),
            keep_scale_of(p),
            BLOCK=choice.block,
            ROWS=choice.rows,
            FUSED=fused,
            DROPOUT=p > 0.0,
            TWO_GRADIENTS=two,
            num_warps=choice.num_warps,
        )
    sums = sum_partials(partial.view(programs, 3 * columns), (3 if fused else 2) * columns, empty)
    return dx_NC, dresidual_NC, sums.view(3, columns)


def sum_partials(partial_PC: Tensor, columns: int, empty: Callable[..., Tensor] = torch.empty) -> Tensor:
    """Σ over the rows of (P, C) fp32, for its first `columns` columns; the others stay unwritten."""
    sums_C = empty(partial_PC.shape[1], dtype=torch.float32, device=partial_PC.device)
    with on_device(partial_PC):
        partial_sum_kernel[(triton.cdiv(columns, SUM_BLOCK),)](
            partial_PC,
            sums_C,
            partial_PC.shape[0],
            columns,
            partial_PC.stride(0),
            BLOCK=SUM_BLOCK,
            ROWS=SUM_ROWS,
            num_warps=4,
        )
    return sums_C
