"""LayerNorm, and the fused dropout-add-LayerNorm, LayerNorm(residual + dropout(x + bias)), forward and backward.

Both are one kernel with a switch: a program holds whole rows in registers, so every tensor is read once and written
once. The backward pass computes the sum that was normalised again from x and residual instead of storing it: reading two
tensors there costs what writing one and reading it back would, saves its memory, and keeps it exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.dropout import ELEMENTWISE_CALL
from kernels.dropout_kernel import keep_elements

_CALL = tl.constexpr(ELEMENTWISE_CALL)


@triton.jit(do_not_specialize=["rows", "threshold"])
def layer_norm_forward_kernel(
    x_ptr,
    bias_ptr,
    residual_ptr,
    weight_ptr,
    ln_bias_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    seed_ptr,
    x_stride,
    residual_stride,
    rows,
    columns,
    eps,
    threshold,
    keep_scale,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    FUSED: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """One program per ROWS rows. y is contiguous; mean and rstd are (rows,) fp32. BLOCK ≥ columns, a power of two."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = column[None, :] < columns
    mask = (row[:, None] < rows) & inside
    row64 = row.to(tl.int64)[:, None]
    z = tl.load(x_ptr + row64 * x_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if FUSED:
        bias = tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
        residual = tl.load(residual_ptr + row64 * residual_stride + column[None, :], mask=mask, other=0.0)
        z += bias[None, :]
        if DROPOUT:
            keep = keep_elements(seed_ptr, row, threshold, BLOCK, _CALL)
            z = tl.where(keep, z * keep_scale, 0.0)
        z += residual.to(tl.float32)
    mean = tl.sum(z, 1) / columns
    centred = tl.where(inside, z - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / columns + eps)
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    ln_bias = tl.load(ln_bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight[None, :] + ln_bias[None, :]
    tl.store(y_ptr + row64 * columns + column[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean, mask=row < rows)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "threshold"])
def layer_norm_backward_kernel(
    dy_ptr,
    x_ptr,
    bias_ptr,
    residual_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    dresidual_ptr,
    partial_ptr,
    seed_ptr,
    dy_stride,
    x_stride,
    residual_stride,
    rows,
    columns,
    threshold,
    keep_scale,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    FUSED: tl.constexpr,
    DROPOUT: tl.constexpr,
    TWO_GRADIENTS: tl.constexpr,
):
    """A program takes every `programs`-th group of ROWS rows and leaves its sums of dγ, dβ and dbias in one row of
    `partial_ptr` (programs, 3, columns) fp32; `partial_sum_kernel` adds those up. With x̂ the normalised sum,

        dz = rstd · (γ dy − mean(γ dy) − x̂ mean(γ dy x̂)),   dresidual = dz,   dx = keep ∘ dz / keep share
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    partial = partial_ptr + program.to(tl.int64) * 3 * columns + column
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    WIDE: tl.constexpr = (
        BLOCK > 4096
    )  # the sums do not fit in registers beside a row: they stay in memory, in the cache
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    dln_bias = tl.zeros((ROWS, BLOCK), tl.float32)
    if FUSED:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(program * ROWS, rows, programs * ROWS):
        row = start + tl.arange(0, ROWS)
        row64 = row.to(tl.int64)[:, None]
        mask = (row[:, None] < rows) & inside[None, :]
        z = tl.load(x_ptr + row64 * x_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        if FUSED:
            residual = tl.load(residual_ptr + row64 * residual_stride + column[None, :], mask=mask, other=0.0)
            z += bias[None, :]
            if DROPOUT:
                keep = keep_elements(seed_ptr, row, threshold, BLOCK, _CALL)
                z = tl.where(keep, z * keep_scale, 0.0)
            z += residual.to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        dy = tl.load(dy_ptr + row64 * dy_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
        normal = tl.where(mask, (z - mean[:, None]) * rstd[:, None], 0.0)
        if WIDE:
            earlier = inside & (start + column * 0 > program * ROWS)  # nothing has been stored before the first row
            tl.debug_barrier()  # what another thread has stored may be what this one loads
            dweight_sum = tl.load(partial, mask=earlier, other=0.0) + tl.sum(dy * normal, 0)
            tl.store(partial, dweight_sum, mask=inside)
            dln_bias_sum = tl.load(partial + columns, mask=earlier, other=0.0) + tl.sum(dy, 0)
            tl.store(partial + columns, dln_bias_sum, mask=inside)
        else:
            dweight += dy * normal
            dln_bias += dy
        weighted = dy * weight[None, :]
        along = tl.sum(weighted * normal, 1) / columns
        across = tl.sum(weighted, 1) / columns
        dz = (weighted - across[:, None] - normal * along[:, None]) * rstd[:, None]
        dx = dz
        if FUSED:
            if DROPOUT:
                dx = tl.where(keep, dz * keep_scale, 0.0)
            added = tl.where(mask, dx, 0.0)
            if WIDE:
                dbias_sum = tl.load(partial + 2 * columns, mask=earlier, other=0.0) + tl.sum(added, 0)
                tl.store(partial + 2 * columns, dbias_sum, mask=inside)
            else:
                dbias += added
            if TWO_GRADIENTS:
                out = dz.to(dresidual_ptr.dtype.element_ty)
                tl.store(dresidual_ptr + row64 * columns + column[None, :], out, mask=mask)
        tl.store(dx_ptr + row64 * columns + column[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)

    if not WIDE:
        tl.store(partial, tl.sum(dweight, 0), mask=inside)
        tl.store(partial + columns, tl.sum(dln_bias, 0), mask=inside)
        if FUSED:
            tl.store(partial + 2 * columns, tl.sum(dbias, 0), mask=inside)


@triton.jit(do_not_specialize=["programs"])
def partial_sum_kernel(
    partial_ptr, sum_ptr, programs, columns, partial_stride, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """Second stage: sums (columns,) fp32 of `partial_ptr` (programs, ≥ columns) fp32, in a fixed order."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row[:, None] < programs) & (column[None, :] < columns)
        total += tl.load(partial_ptr + row[:, None] * partial_stride + column[None, :], mask=mask, other=0.0)
    tl.store(sum_ptr + column, tl.sum(total, 0), mask=column < columns)
