"""Bytes that two ranks exchange in an optimizer step, counted by the kernel on the loopback device, beside the formulas.

    python -m benchmarks.pretraining.communication [--micro-batches 3]

Linux. Anything else that talks over the loopback device at the time is counted too: run it on a quiet machine.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp
import tyro

from spanbert.distributed import join_group
from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import Encoder
from spanbert.training.optim import adamw, clip_gradients
from spanbert.training.parallel import PARALLEL, gradient_sync, parallelise

STEPS = 5


@dataclass(frozen=True)
class CommunicationConfig:
    micro_batches: int = 3
    """Forward and backward passes an optimizer step."""
    hidden: int = 256
    """Width of the encoder."""
    layers: int = 4
    """Its depth."""


def loopback_bytes() -> int:
    """Bytes that the loopback device has sent since it came up."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[8])


def expected_bytes(
    kind: str, passes: int, parameters: int, in_layers: int, ranks: int = 2, gloo: bool = False
) -> float:
    """What one rank sends in a step, by the formulas of docs/scaling.md. gloo makes a reduce-scatter of an all-reduce."""
    share = (ranks - 1) / ranks
    if kind == "ddp":
        return 2 * share * 4 * parameters
    reduced = 2 * parameters if gloo else parameters
    return share * 4 * (2 * passes * in_layers + passes * (parameters - in_layers) + reduced)


def rank_main(rank: int, config: CommunicationConfig, kind: str, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    with join_group("cpu") as group:
        shape = EncoderConfig(
            vocab_size=2000, hidden_size=config.hidden, num_hidden_layers=config.layers, num_attention_heads=4,
            intermediate_size=4 * config.hidden, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model = Encoder(shape)
        parameters = sum(p.numel() for p in model.parameters())
        in_layers = sum(p.numel() for p in model.layers.parameters())
        parallel = parallelise(model, model.layers, group, kind)
        optimizer = adamw(model, 1e-4)
        ids, cu_seqlens = torch.arange(64), torch.tensor([0, 64], dtype=torch.int32)

        def step() -> None:
            for number in range(config.micro_batches):
                with gradient_sync(parallel, enabled=number == config.micro_batches - 1):
                    parallel(ids, cu_seqlens, 64).square().mean().backward()
            clip_gradients(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step()
        group.barrier()
        before = loopback_bytes()
        for _ in range(STEPS):
            step()
        group.barrier()
        measured = (loopback_bytes() - before) / STEPS / group.world
        expected = expected_bytes(kind, config.micro_batches, parameters, in_layers, gloo=True)
        group.print_main(
            f"{kind}: {parameters:,} parameters, {config.micro_batches} passes: {measured / 1e6:.2f} MB a rank and step, "
            f"by the formula {expected / 1e6:.2f} MB, ratio {measured / expected:.3f}"
        )


def main() -> None:
    config = tyro.cli(CommunicationConfig, description=__doc__)
    for kind in PARALLEL:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.start_processes(rank_main, (config, kind, port), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main()
