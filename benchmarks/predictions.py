"""Predicted times of the kernels on an H100, from their cost models: what stands in docs/kernels.md until measured.

    python -m benchmarks.predictions --page docs/kernels.md

The floor divides the fewest FLOPs and bytes by measured ceilings (790 TFLOP/s, 3.0 TB/s); no implementation is quicker.
The prediction for attention divides the FLOPs that our kernels *execute* (tiles are padded, the backward pass computes
S and dP twice) by the share of the product rate that such kernels reach in public measurements, stated below.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.squad_lengths import draw_lengths
from kernels.attention_config import attention_config, tile_size
from kernels.cost import (
    H100,
    Cost,
    attention_backward_cost,
    attention_executed_flops,
    attention_forward_cost,
    bias_gelu_backward_cost,
    bias_gelu_forward_cost,
    layer_norm_backward_cost,
    layer_norm_forward_cost,
    linear_cross_entropy_cost,
)

BEGIN, END = "<!-- predictions -->", "<!-- /predictions -->"
#: Share of the product rate that a Triton flash kernel with warp-group instructions is assumed to reach at head
#: dimension 64, where the exponentials take as long as the products; and of the copy rate for a row kernel.
ATTENTION_SHARE, COPY_SHARE = 0.45, 0.85


def attention_rows(heads: int, head_dim: int = 64) -> list[tuple[str, Cost, float]]:
    """(what, cost, predicted seconds) of the benchmark's attention batches."""
    rows = []
    batches = {f"{n} × {16384 // n}": [n] * (16384 // n) for n in (128, 512, 2048)}
    batches["QA windows"] = draw_lengths(16384)
    for name, lengths in batches.items():
        tile = tile_size(head_dim, torch.bfloat16, sum(lengths), len(lengths))
        config = attention_config(90, head_dim, torch.bfloat16, tile)
        blocks = (config.forward.block, config.dq.block, config.dkdv.block)
        executed = attention_executed_flops(lengths, heads, head_dim, tile, blocks)
        costs = (
            attention_forward_cost(lengths, heads, head_dim),
            attention_backward_cost(lengths, heads, head_dim),
        )
        for direction, cost, flops in zip(("forward", "backward"), costs, executed):
            seconds = max(flops / (ATTENTION_SHARE * H100.flops), cost.bytes / (COPY_SHARE * H100.bandwidth))
            rows.append((f"attention {direction}, {heads} heads × 64, {name}", cost, seconds))
    return rows


def row_kernel_rows() -> list[tuple[str, Cost, float]]:
    costs = []
    for width in (768, 1024):
        costs += [
            (f"joint forward, 16k × {width}", layer_norm_forward_cost(16384, width, joint=True)),
            (f"joint backward, 16k × {width}", layer_norm_backward_cost(16384, width, joint=True)),
            (f"LayerNorm forward, 16k × {width}", layer_norm_forward_cost(16384, width, joint=False)),
            (f"LayerNorm backward, 16k × {width}", layer_norm_backward_cost(16384, width, joint=False)),
        ]
    costs += [
        ("bias + GELU forward, 16k × 3072", bias_gelu_forward_cost(16384, 3072)),
        ("bias + GELU backward, 16k × 3072", bias_gelu_backward_cost(16384, 3072)),
        ("linear + cross-entropy with gradients, 2458 × 768 × 28996", linear_cross_entropy_cost(2458, 768, 28996)),
    ]
    return [(what, cost, cost.flops / H100.flops + cost.bytes / (COPY_SHARE * H100.bandwidth)) for what, cost in costs]


def table() -> str:
    """Markdown, one line per kernel and shape."""
    lines = [
        "**Predictions, not measurements**: no GPU was available when this page was written. The floor divides the fewest "
        f"FLOPs and bytes by {H100.flops / 1e12:.0f} TFLOP/s and {H100.bandwidth / 1e12:.1f} TB/s (measured ceilings of an H100). "
        f"The prediction assumes {ATTENTION_SHARE:.0%} of the product rate on the FLOPs that our attention kernels execute, and "
        f"{COPY_SHARE:.0%} of the copy rate elsewhere; for short sequences the first is optimistic, since a program is then "
        "mostly its own start and end.",
        "",
        "| kernel (bf16) | GFLOP | MB | floor, µs | predicted, µs | predicted rate |",
        "|---|---|---|---|---|---|",
    ]
    for what, cost, seconds in [*attention_rows(12), *attention_rows(16)[2:4], *row_kernel_rows()]:
        rate = f"{cost.flops / seconds / 1e12:.0f} TFLOP/s" if cost.flops else f"{cost.bytes / seconds / 1e12:.2f} TB/s"
        floor = H100.seconds(cost)
        lines.append(
            f"| {what} | {cost.flops / 1e9:.1f} | {cost.bytes / 1e6:.0f} | {floor * 1e6:.0f} | {seconds * 1e6:.0f} | {rate} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, help="replace the section between the markers of this page")
    arguments = parser.parse_args()
    text = table()
    print(text)
    if arguments.page:
        from spanbert.files import write_atomic

        before, rest = arguments.page.read_text().split(BEGIN)
        write_atomic(arguments.page, f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
