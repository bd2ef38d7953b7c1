"""Measure every kernel beside what PyTorch and the libraries offer. On a GPU, or with small shapes on a CPU.

    python -m benchmarks.kernels.measure --out runs/kernels                    # everything, under 6 minutes on an H100
    python -m benchmarks.kernels.measure --operation "dropout add" --case 768 --provider ours
    python -m benchmarks.kernels.measure --baseline runs/before/results.json   # also: what became slower
    python -m benchmarks.kernels.measure --device cpu                          # the suite itself, anywhere

Each provider first reproduces the operation in float64 within the error bound; what fails is named and not timed.
Writes results.json, results.csv and plots into --out; `python -m benchmarks.kernels.report` makes a page of them.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch._dynamo.config
import torch._functorch.config

from benchmarks.kernels import attention_providers, row_providers
from benchmarks.kernels.registry import Case, Gate, Instance, Operation, Unavailable
from benchmarks.kernels.timing import Stopwatch, Timing, measured_ceilings

DIRECTIONS = ("forward", "backward", "both")
#: A median this much above the baseline's, with intervals that do not overlap, counts as slower.
SLOWER = 1.05


def measure(operation: Operation, case: Case, device: torch.device, stopwatch: Stopwatch) -> list[dict]:
    """Rows of one case: one per provider and direction, or one that says why a provider was not timed."""
    torch.manual_seed(0)
    inputs = operation.inputs(case, device)
    gate = Gate(operation, case, inputs)
    rows = []
    for provider in operation.providers:
        row = {"operation": operation.name, "case": case.label, "dtype": str(case.dtype)[6:], "provider": provider.name}
        try:
            instance = provider.build(case, inputs)
            fault = gate.fault(instance)
            if fault is None:
                rows += [
                    row | _timed(direction, operation, case, instance, gate, stopwatch) for direction in DIRECTIONS
                ]
            else:
                rows.append(row | {"fault": fault})
        except Unavailable as reason:
            rows.append(row | {"fault": str(reason)})
        except Exception as error:  # a library refuses a shape or a device in its own words: the suite goes on
            if provider.name == "ours":
                raise
            rows.append(row | {"fault": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _timed(
    direction: str, operation: Operation, case: Case, instance: Instance, gate: Gate, stopwatch: Stopwatch
) -> dict:
    dy = instance.cotangent(gate.dy)

    def both() -> object:
        return torch.autograd.grad(instance.forward(), instance.leaves, dy)

    if direction == "forward":

        def body() -> object:
            with torch.no_grad():
                return instance.forward()

        cost = operation.forward_cost(case)
    elif direction == "both":
        body, cost = both, operation.forward_cost(case) + operation.backward_cost(case)
    else:
        y = instance.forward()

        def body() -> object:
            return torch.autograd.grad(y, instance.leaves, dy, retain_graph=True)

        cost = operation.backward_cost(case)
    timing = stopwatch.time(body)
    graph, graph_fault = None, None
    try:
        graph = stopwatch.time_graph(body) if direction != "backward" else None
    except Exception as error:  # some libraries wait for the device, which a capture forbids: their plain times count
        graph_fault = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    best = min(timing.median, graph.median) if graph else timing.median
    return {
        "direction": direction,
        "seconds": asdict(timing),
        "graph_seconds": asdict(graph) if graph else None,
        "graph_fault": graph_fault,
        "tflops": cost.flops / best / 1e12,
        "gbps": cost.bytes / best / 1e9,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "peak_bytes": stopwatch.peak_bytes(body),
    }


def print_table(operation: Operation, rows: list[dict], copy_bandwidth: float) -> None:
    """One table per operation: a line per case, provider and direction; the rate that matters for it last."""
    print(f"\n{operation.name}")
    unit = "TFLOP/s" if operation.arithmetic else "GB/s"
    print(f"  {'case':30} {'provider':15} {'direction':9} {'µs':>9} {'spread':>15} {'graph µs':>9} {'MB':>7} {unit:>9}")
    for row in rows:
        head = f"  {row['case']:30} {row['provider']:15}"
        if "fault" in row:
            print(f"{head} not timed: {row['fault']}")
            continue
        timing, graph = Timing(**row["seconds"]), row["graph_seconds"]
        spread = f"{timing.low * 1e6:.1f}…{timing.high * 1e6:.1f}"
        rate = (
            f"{row['tflops']:.1f}"
            if operation.arithmetic
            else f"{row['gbps']:.0f} ({row['gbps'] * 1e9 / copy_bandwidth:.0%})"
        )
        graph_text = f"{graph['median'] * 1e6:.1f}" if graph else "–"
        peak = f"{row['peak_bytes'] / 1e6:.0f}" if row["peak_bytes"] is not None else "–"
        print(
            f"{head} {row['direction']:9} {timing.median * 1e6:9.1f} {spread:>15} {graph_text:>9} {peak:>7} {rate:>9}",
            flush=True,
        )


def slower_than(baseline: list[dict], rows: list[dict]) -> list[str]:
    """One line for every measurement of ours that became slower beyond its spread."""

    def key(row: dict) -> tuple:
        return row["operation"], row["case"], row["provider"], row.get("direction")

    before = {key(row): row for row in baseline if "seconds" in row}
    lines = []
    for row in rows:
        old = before.get(key(row))
        if row["provider"] != "ours" or "seconds" not in row or old is None:
            continue
        new_time, old_time = Timing(**row["seconds"]), Timing(**old["seconds"])
        if new_time.median > SLOWER * old_time.median and new_time.low > old_time.high:
            lines.append(
                f"slower: {' / '.join(key(row))}: {old_time.median * 1e6:.1f} → {new_time.median * 1e6:.1f} µs"
            )
    return lines


def describe_machine(device: torch.device) -> dict:
    """What a result must carry to mean something: machine, versions, commit, date."""
    import triton

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_results(folder: Path, record: dict) -> None:
    """results.json (everything) and results.csv (one line per measurement)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "operation",
                "case",
                "dtype",
                "provider",
                "direction",
                "median_s",
                "low_s",
                "high_s",
                "graph_s",
                "tflops",
                "gbps",
                "peak_bytes",
                "fault",
            ]
        )
        for row in record["rows"]:
            seconds, graph = row.get("seconds") or {}, row.get("graph_seconds") or {}
            writer.writerow(
                [row[k] for k in ("operation", "case", "dtype", "provider")]
                + [
                    row.get("direction"),
                    seconds.get("median"),
                    seconds.get("low"),
                    seconds.get("high"),
                    graph.get("median"),
                ]
                + [row.get(k) for k in ("tflops", "gbps", "peak_bytes", "fault")]
            )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=Path("runs/kernels"), help="results folder")
    parser.add_argument("--operation", action="append", default=[], help="only operations with this text; repeatable")
    parser.add_argument("--case", action="append", default=[], help="only cases with this text; repeatable")
    parser.add_argument("--provider", action="append", default=[], help="only providers with this text; repeatable")
    parser.add_argument("--seconds", type=float, default=0.05, help="to spend on each measurement")
    parser.add_argument("--baseline", type=Path, help="results.json to compare with")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch sees no GPU: use --device cpu to test the suite itself")

    # Timing the backward pass alone runs it many times over one graph, which Inductor's reuse of saved buffers forbids.
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.recompile_limit = 64  # each shape compiles anew; past the limit it would run eagerly, unsaid
    stopwatch = Stopwatch(device, arguments.seconds)
    flops, bandwidth = measured_ceilings(device, stopwatch)
    record = {"machine": describe_machine(device), "product_flops": flops, "copy_bandwidth": bandwidth, "rows": []}
    print(f"{record['machine']}\nproduct {flops / 1e12:.1f} TFLOP/s, copy {bandwidth / 1e9:.0f} GB/s")
    for operation in (attention_providers.operation(device), *row_providers.operations(device)):
        if arguments.operation and not any(text in operation.name for text in arguments.operation):
            continue
        chosen = [
            p for p in operation.providers if not arguments.provider or any(t in p.name for t in arguments.provider)
        ]
        operation = replace(operation, providers=chosen)
        rows: list[dict] = []
        for case in operation.cases:
            if not arguments.case or any(text in case.label for text in arguments.case):
                rows += measure(operation, case, device, stopwatch)
        print_table(operation, rows, bandwidth)
        record["rows"] += rows
        write_results(arguments.out, record)  # after every operation: a run cut short keeps what it has
    if arguments.baseline:
        lines = slower_than(json.loads(arguments.baseline.read_text())["rows"], record["rows"])
        print("\n" + ("\n".join(lines) if lines else "nothing became slower than the baseline"))
    from benchmarks.kernels.report import draw_plots

    draw_plots(record, arguments.out)
    print(f"\nwritten to {arguments.out}; next: python -m benchmarks.kernels.report {arguments.out}")
    wrong = [row for row in record["rows"] if row["provider"] == "ours" and "fault" in row]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
