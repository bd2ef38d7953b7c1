"""What can be said of the kernels without a GPU, for docs/kernels.md: predicted times, and what the compiler made of them.

    python -m benchmarks.kernels.predictions --page docs/kernels.md

The floor divides the fewest FLOPs and bytes by measured ceilings (790 TFLOP/s, 3.0 TB/s); no implementation is quicker.
The prediction for attention divides the FLOPs that our kernels *execute* (tiles are padded, the backward pass computes
S and dP twice) by the share of the product rate that such kernels reach in public measurements, stated below.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.kernels.report import rewrite
from benchmarks.kernels.squad_lengths import draw_lengths
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
            (f"dropout add layer norm forward, 16k × {width}", layer_norm_forward_cost(16384, width, fused=True)),
            (f"dropout add layer norm backward, 16k × {width}", layer_norm_backward_cost(16384, width, fused=True)),
            (f"LayerNorm forward, 16k × {width}", layer_norm_forward_cost(16384, width, fused=False)),
            (f"LayerNorm backward, 16k × {width}", layer_norm_backward_cost(16384, width, fused=False)),
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


#: The Triton whose figures stand first, and the other.
FIRST, SECOND = "3.6", "3.9"


def compiled_table(path: Path) -> str:
    """Markdown from the table of `python -m kernels.aot`: the encoder's kernels on sm_90 under both Tritons, what dropout
    costs in instructions, and the extremes of all."""
    record = json.loads(path.read_text())
    rows = [row for row in record["rows"] if FIRST in row and SECOND in row]
    codes = [row[version] for row in rows for version in (FIRST, SECOND)]
    spills, warned = sum(c["local_accesses"] > 0 for c in codes), sum(bool(c["warnings"]) for c in codes)
    greedy = max(rows, key=lambda r: r[FIRST]["shared_bytes"])
    named = [r for r in rows if r["label"].endswith("sm_90")]
    attention = [
        r for r in named if r["label"].startswith("attention") and "D64" in r["label"] and "bf16" in r["label"]
    ]
    shown = attention + [r for r in named if "attention masks" in r["label"] or "1024 bf16" in r["label"]]
    versions = " and ".join(record["triton"][version] for version in (FIRST, SECOND))
    head = f"| kernel (Triton {FIRST} / {SECOND}) | registers | shared, KB | programs per multiprocessor | instructions | of a pass |"
    lines = [
        f"{len(rows)} kernels, compiled by Triton {versions}: {spills} spill, {warned} with a warning of ptxas. The most shared "
        f"memory is {greedy[FIRST]['shared_bytes'] // 1024} KB ({greedy['label']}). The encoder's on sm_90:",
        "",
        head,
        "|---|---|---|---|---|---|",
        *(_compiled_line(row) for row in shown),
        "",
        "Instructions of a pass of the inner loop, with dropout / without:",
        "",
        f"| kernel | Triton {FIRST} | Triton {SECOND} |",
        "|---|---|---|",
    ]
    passes = {row["label"]: row for row in attention}
    for label, row in passes.items():
        if "dropout" not in label and (dropped := passes.get(label.replace(" sm_90", " dropout sm_90"))):
            ratios = (dropped[version]["loop"] / row[version]["loop"] for version in (FIRST, SECOND))
            lines.append(f"| {label} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    worst = sorted((r for r in rows if "fp32" not in r["label"]), key=lambda r: (-r[FIRST]["registers"], r["label"]))[
        :6
    ]
    lines += [
        "",
        "Nearest to the limit of 255 registers, of all in half precision:",
        "",
        head,
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_compiled_line(row) for row in worst)]) + "\n"


def _compiled_line(row: dict) -> str:
    def pair(name: str, unit: int = 1) -> str:
        first, second = (row[version][name] / unit for version in (FIRST, SECOND))
        texts = [f"{x:.1f}" if unit > 1 else f"{x:.0f}" for x in (first, second)]
        return texts[0] if texts[0] == texts[1] else " / ".join(texts)

    cells = (pair("registers"), pair("shared_bytes", 1024), pair("blocks"), pair("instructions"), pair("loop"))
    return f"| {row['label']} | " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.predictions", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--page", type=Path, help="replace the two sections between their markers in this page")
    parser.add_argument("--compiled", type=Path, default=Path("docs/kernels_aot.json"), help="table of kernels.aot")
    arguments = parser.parse_args()
    sections = {"predictions": table(), "aot": compiled_table(arguments.compiled)}
    for name, text in sections.items():
        print(text)
        if arguments.page:
            before, rest = arguments.page.read_text().split(f"<!-- {name} -->")
            after = rest.split(f"<!-- /{name} -->")[1]
            rewrite(arguments.page, f"{before}<!-- {name} -->\n{text}<!-- /{name} -->{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
