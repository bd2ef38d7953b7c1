"""Time candidate block sizes of the attention kernels on this GPU, beside the ones in kernels/attention_config.py.

    python -m benchmarks.kernels.tune --head-dim 64 --seconds 0.03

Prints a table per kernel, quickest first, with the selected configuration marked. Nothing is changed: a winner is
entered in kernels/attention_config.py by hand, where the ahead-of-time table then checks it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.kernels.attention_providers import cumulative
from benchmarks.kernels.registry import Case
from benchmarks.kernels.squad_lengths import draw_lengths
from benchmarks.kernels.timing import Stopwatch
from kernels.attention_config import AttentionConfig, BlockConfig, attention_config
from kernels.attention_tiles import attention_tiles_reference
from kernels.device import capability


def candidates(tile: int) -> Iterator[BlockConfig]:
    """Blocks worth trying for a tile."""
    for block, warps, stages in itertools.product((32, 64, 128), (4, 8), (2, 3, 4)):
        if tile == 32:  # a rehearsal
            yield BlockConfig(32, 4, 2)
            return
        if not (tile == 64 and warps == 8):
            yield BlockConfig(block, warps, stages)


def tune(head_dim: int, heads: int, stopwatch: Stopwatch, device: torch.device) -> None:
    """All candidates of all three kernels on two batches, tile by tile, without and with dropout."""
    for dropout_p, said in ((0.0, ""), (0.1, ", dropout 0.1")):
        for name, lengths in {"512": [512] * 32, "QA windows": draw_lengths(16384)}.items():
            for tile in (64, 128):
                title = f"{name}, tile {tile}{said}"
                tune_batch(title, lengths, tile, head_dim, heads, stopwatch, device, dropout_p)


def tune_batch(
    title: str,
    lengths: list[int],
    tile: int,
    head_dim: int,
    heads: int,
    stopwatch: Stopwatch,
    device: torch.device,
    dropout_p: float,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Candidates of the three kernels for one batch; the backward kernels are timed together, one of them varied. Dropout
    masks are drawn outside: their kernel has nothing to choose."""
    from kernels.attention_launch import launch_attention_backward, launch_attention_forward
    from kernels.attention_masks_kernel import launch_attention_masks

    total = sum(lengths)
    cu = cumulative(Case(title, dtype, {}, tuple(lengths)), torch.device("cpu"))
    tiles = attention_tiles_reference(cu, total, tile).to(device)
    q, k, v = torch.randn(total, 3, heads, head_dim, device=device, dtype=dtype).unbind(1)
    dout = torch.randn(total, heads, head_dim, device=device, dtype=dtype)
    selected = attention_config(capability(device), head_dim, dtype, tile)
    scale = head_dim**-0.5
    masks = None
    if dropout_p:
        seed = torch.zeros((), dtype=torch.int64, device=device)
        masks = launch_attention_masks(tiles, tile, heads, max(lengths), seed, dropout_p)

    def forward(config: AttentionConfig) -> tuple[Tensor, Tensor]:
        return launch_attention_forward(q, k, v, tiles, config, scale, dropout_p, masks)

    out, lse = forward(selected)

    def backward(config: AttentionConfig) -> Tensor:
        return launch_attention_backward(dout, q, k, v, out, lse, tiles, config, scale, dropout_p, masks)

    for kernel, body in (("forward", forward), ("dq", backward), ("dkdv", backward)):
        _compare(f"{title}, {kernel}", body, selected, kernel, tile, stopwatch)


def _compare(
    title: str,
    body: Callable[[AttentionConfig], object],
    selected: AttentionConfig,
    kernel: str,
    tile: int,
    stopwatch: Stopwatch,
) -> None:
    times = []
    for choice in dict.fromkeys([getattr(selected, kernel), *candidates(tile)]):
        config = replace(selected, **{kernel: choice})
        try:
            times.append((stopwatch.time(lambda config=config: body(config)).median, choice))
        except Exception as error:  # out of shared memory or registers: not a candidate
            print(f"  {choice}: {type(error).__name__}")
    print(title + (" (with the other backward kernel)" if kernel != "forward" else ""))
    for seconds, choice in sorted(times, key=lambda pair: pair[0])[:4]:
        print(f"  {seconds * 1e6:8.1f} µs  {choice}{'  ← selected' if choice == getattr(selected, kernel) else ''}")
    chosen = next(seconds for seconds, choice in times if choice == getattr(selected, kernel))
    print(f"  {chosen * 1e6:8.1f} µs  selected", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.02, help="to spend on each candidate")
    parser.add_argument(
        "--rehearse", action="store_true", help="on a CPU, in the interpreter: tiny, times mean nothing"
    )
    arguments = parser.parse_args()
    if arguments.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
        stopwatch = Stopwatch(torch.device("cpu"), 0.0)
        for p in (0.0, 0.1):
            tune_batch(f"rehearsal, dropout {p}", [9], 32, 32, 1, stopwatch, torch.device("cpu"), p, torch.float32)
        return 0
    if not torch.cuda.is_available():
        print("error: block sizes are tuned on a GPU, and PyTorch sees none")
        return 2
    device = torch.device("cuda")
    tune(arguments.head_dim, arguments.heads, Stopwatch(device, arguments.seconds), device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
