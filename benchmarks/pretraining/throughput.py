"""Tokens per second of whole pretraining steps: ours, idea by idea, beside transformers.

    python -m benchmarks.pretraining.throughput [--size mini] [--length 512] [--tokens 2048] [--rounds 7] [--json FILE]

A step is everything: sequences from memory, masks, forward, backward, clipping, optimizer. All have the same model,
length, batch and dropout. Each baseline lives in a process of its own, with its own allocator. On a CPU they take turns in
every round, because its speed drifts: what counts are ratios within a round, and their median over rounds. On a GPU only
one is in memory at a time. A baseline of ours whose loss is not transformers' for the same weights is not timed. transformers trains MLM only;
ours are MLM too up to the last ones, which add the span-boundary objective.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.pretraining.baselines import Entry, Ours, Workload, entries
from spanbert.device import choose_device, describe, measured_peak_flops, tune_allocator
from spanbert.files import write_atomic
from spanbert.model.encoder import train_flops_per_token

#: Tokens of the paper's recipe: 2.4 M steps of 256 × 512 (§4.2).
RECIPE_TOKENS = 2_400_000 * 256 * 512


@dataclass(frozen=True)
class BenchmarkConfig:
    size: Literal["mini", "small", "base", "large"] = "mini"
    """Shape of the model."""
    length: int = 512
    """Tokens of a sequence."""
    tokens: int = 2048
    """Tokens of a step."""
    vocabulary: int = 28_996
    """Entries of the vocabulary."""
    dropout: float = 0.1
    """On hidden states and attention, on both sides."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    """Each baseline takes part in each."""
    rounds: int = 7
    """Turns that each baseline takes."""
    steps: int = 3
    """Steps of a turn."""
    only: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Baselines whose name contains one of these; repeatable; none: all."""
    together: bool | None = None
    """Whether all keep their memory and take turns within a round; none: on a CPU, whose speed drifts. On a GPU one after the other: of a base model in two precisions they would not fit."""
    device: str = "auto"
    """auto, cpu, cuda."""
    threads: int | None = None
    """Threads of each baseline on a CPU; none: PyTorch's choice."""
    json: Path | None = None
    """Also write the measurements here."""


def compete(pipe: Connection, entry: Entry, work: Workload, threads: int | None) -> None:
    """A baseline's process: says "ready" or what is wrong with it, then answers a number of steps with seconds."""
    if entry.keeps_memory:
        tune_allocator()
    if threads:
        torch.set_num_threads(threads)
    try:
        baseline = entry.make(work)
        fault = baseline.fault() if isinstance(baseline, Ours) else None
        losses = [baseline.step(number).item() for number in range(3)]  # warm up, compile
        if not all(0 < loss < 30 for loss in losses):
            fault = f"losses {losses}"
    except Exception as error:  # a missing compiler or too little memory is a result, not the end of the benchmark
        fault = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    pipe.send(fault)
    number = 3
    while fault is None and (steps := pipe.recv()):
        began = time.perf_counter()
        for _ in range(steps):
            loss = baseline.step(number)
            number += 1
        loss.item()  # waits for a GPU
        pipe.send(time.perf_counter() - began)


def run(config: BenchmarkConfig) -> dict:
    """Measure → a record of everything, seconds of every turn included."""
    device = choose_device(config.device)
    together = device.type == "cpu" if config.together is None else config.together
    only = [part for parts in config.only for part in parts]
    faults: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    waiting: dict[str, Competitor] = {}
    for precision in config.precisions:
        work = Workload(
            config.size, config.length, config.tokens, config.vocabulary, config.dropout, str(device), precision
        )
        for name, entry in entries(device.type == "cuda").items():
            if only and not any(part in name for part in only):
                continue
            competitor = Competitor(entry, work, config.threads)
            label = f"{name}, {precision}"
            print(f"{label}: {competitor.fault or 'ready'}", flush=True)
            if competitor.fault:
                faults[label] = competitor.fault
                competitor.stop()
            elif together:
                waiting[label] = competitor
            else:
                seconds[label] = [competitor.time(config.steps) for _ in range(config.rounds)]
                competitor.stop()
    seconds |= {label: [] for label in waiting}
    for turn in range(config.rounds if waiting else 0):
        labels = list(waiting)
        for label in labels[turn % len(labels) :] + labels[: turn % len(labels)]:
            seconds[label].append(waiting[label].time(config.steps))
    for competitor in waiting.values():
        competitor.stop()
    rate = {
        p: measured_peak_flops(device, p, Workload(config.size, 1, 1, 1, 0, "cpu", p).shape.hidden_size)
        for p in config.precisions
    }
    return {
        "machine": describe(device, config.threads),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "config": asdict(config) | {"json": None},
        "matrix_flops": rate,
        "faults": faults,
        "seconds": seconds,
    }


class Competitor:
    """One baseline in a process of its own, ready or with a `fault`. One is made ready at a time: compiling is not timed
    and must not disturb."""

    def __init__(self, entry: Entry, work: Workload, threads: int | None) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=compete, args=(theirs, entry, work, threads), daemon=True)
        self.process.start()
        self.fault: str | None = self.pipe.recv()

    def time(self, steps: int) -> float:
        """Seconds that `steps` training steps take."""
        self.pipe.send(steps)
        return self.pipe.recv()

    def stop(self) -> None:
        """End the process: its memory is free when this returns."""
        if self.fault is None:
            self.pipe.send(0)
        self.process.join()


def report(record: dict) -> str:
    """The table: tokens/s, and the median over rounds of the ratio to transformers' default and to its best."""
    config, seconds = record["config"], record["seconds"]
    work = Workload(config["size"], config["length"], config["tokens"], config["vocabulary"], 0, "cpu", "fp32")
    shape = work.shape
    tokens = max(1, config["tokens"] // config["length"]) * config["length"] * config["steps"]
    speed = {label: tokens / statistics.median(turns) for label, turns in seconds.items()}
    theirs = {label: s for label, s in speed.items() if label.startswith("transformers")}
    base = "transformers eager, fp32" if "transformers eager, fp32" in theirs else None
    best = max(theirs, key=theirs.__getitem__) if theirs else None

    def ratio(label: str, to: str | None) -> str:
        if to is None:
            return ""
        return f"{statistics.median(b / a for a, b in zip(seconds[label], seconds[to], strict=True)):.2f}"

    lines = [
        f"{config['size']}, {config['length']} tokens, {config['tokens']} a step, dropout {config['dropout']}, {record['machine']}, {record['date']}",
        "",
        "| baseline | tokens/s | × transformers eager fp32 | × transformers' best | MFU |",
        "|---|---|---|---|---|",
    ]
    for label, value in speed.items():
        states = work.states_per_token(label)
        flops = train_flops_per_token(shape, config["length"], 0.15, "SBO" in label, states)
        utilisation = value * flops / record["matrix_flops"][label.rsplit(", ", 1)[1]]
        lines.append(f"| {label} | {value:,.0f} | {ratio(label, base)} | {ratio(label, best)} | {utilisation:.0%} |")
    lines += [f"\nnot timed: {label}: {fault}" for label, fault in record["faults"].items()]
    full = {label: value for label, value in speed.items() if "SBO" in label}
    if full:
        fastest = max(full, key=full.__getitem__)
        days = RECIPE_TOKENS / full[fastest] / 86_400
        lines.append(
            f"\nThe paper's recipe, {RECIPE_TOKENS / 1e9:.1f} G tokens, would take this model on this machine {days:,.0f} days ({fastest})."
        )
    return "\n".join(lines)


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    record = run(config)
    print("\n" + report(record))
    if config.json is not None:
        write_atomic(config.json, json.dumps(record, indent=1, default=str))


if __name__ == "__main__":
    main()
