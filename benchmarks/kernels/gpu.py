"""What `make gpu` runs: on one GPU, verify every kernel, measure it, and compare with the targets. Under 9 minutes.

    python -m benchmarks.kernels.gpu                     # results below $OUT, else benchmarks/results

Needs nothing that PyTorch does not bring. Where pytest is installed all kernel tests run first, by several processes where
xdist is installed, since compiling takes longest; the benchmark's gates check every kernel in any case. Then the benchmark, the targets, and, in the time that is left, the tuning
table. `python -m benchmarks.gpu_day` does more, in three calls.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

#: Seconds in all, and what each step may take at most.
TOTAL, TESTS, MEASURE = 530, 180, 330


def targets(record: dict) -> list[tuple[str, float, float, bool]]:
    """(what, target, measured, met) of each goal that the results hold; every figure is of `ours`."""
    rows = [row for row in record["rows"] if "seconds" in row]

    def best(row: dict) -> float:
        graph = row.get("graph_seconds")
        return min(row["seconds"]["median"], graph["median"]) if graph else row["seconds"]["median"]

    def find(operation: str, case: str, direction: str, provider: str = "ours") -> dict | None:
        found = [
            r
            for r in rows
            if (r["operation"], r["case"], r["direction"], r["provider"]) == (operation, case, direction, provider)
        ]
        return found[0] if found else None

    goals = []

    def at_least(what: str, target: float, measured: float | None) -> None:
        if measured is not None:
            goals.append((what, target, measured, measured >= target))

    for direction, target in (("forward", 300.0), ("both", 215.0)):
        row = find("attention", "base 512", direction)
        at_least(f"attention 512 {direction}, TFLOP/s", target, row and row["tflops"])
    for case in ("base QA windows", "large QA windows"):
        ours = find("attention", case, "both")
        others = [
            best(row)
            for row in rows
            if (row["operation"], row["case"], row["direction"]) == ("attention", case, "both")
            and row["provider"] not in ("ours", "eager")
        ]
        at_least(f"{case}, times the best library", 1.5, min(others) / best(ours) if ours and others else None)
    for case in ("16k × 768, dropout 0.1", "16k × 1024, dropout 0.1", "16k × 768", "16k × 1024"):
        for direction, share in (("forward", 0.85), ("backward", 0.70)):
            row = find("dropout add layer norm", case, direction)
            at_least(
                f"dropout add layer norm {case} {direction}, share of copy bandwidth",
                share,
                row and row["gbps"] * 1e9 / record["copy_bandwidth"],
            )
    for case in ("base 512", "base QA windows"):
        for direction in ("forward", "both"):
            without, dropped = find("attention", case, direction), find("attention", f"{case}, dropout 0.1", direction)
            if without and dropped:
                ratio = best(dropped) / best(without)
                goals.append((f"dropout's price, {case} {direction}", 1.25, ratio, ratio <= 1.25))
    return goals


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")) / "kernels")
    parser.add_argument("--baseline", type=Path, help="results.json to compare with")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: PyTorch sees no GPU: this command is for one; `make test` checks the kernels without")
        return 2
    start, failed = time.monotonic(), []

    def step(name: str, seconds: float, *command: str) -> None:
        left = min(seconds, TOTAL - (time.monotonic() - start))
        print(f"\n── {name} (at most {left:.0f} s)", flush=True)
        try:
            if subprocess.run([sys.executable, "-m", *command], timeout=left).returncode:
                failed.append(name)
        except subprocess.TimeoutExpired:
            failed.append(f"{name} (out of time)")

    if importlib.util.find_spec("pytest"):
        several = ("-n", "8") if importlib.util.find_spec("xdist") else ()
        step("tests", TESTS, "pytest", "-q", *several, "-m", "not slow", "tests/kernels")
    else:
        print("no pytest here: the benchmark's gates check the kernels")
    compare = ("--baseline", str(arguments.baseline)) if arguments.baseline else ()
    step(
        "measurement", MEASURE, "benchmarks.kernels.measure", "--device", "cuda", "--out", str(arguments.out), *compare
    )
    results = arguments.out / "results.json"
    if results.exists():
        goals = targets(json.loads(results.read_text()))
        print(f"\n{'target':58} {'goal':>8} {'measured':>9}")
        for what, goal, measured, met in goals:
            print(f"{what:58} {goal:8.2f} {measured:9.2f}  {'met' if met else 'MISSED'}")
        (arguments.out / "targets.json").write_text(json.dumps(goals, indent=1) + "\n")
    if TOTAL - (time.monotonic() - start) > 60:
        step("tuning", TOTAL, "benchmarks.kernels.tune")
        failed = [name for name in failed if not name.startswith("tuning")]  # a table cut short is no failure
    print(f"\n{time.monotonic() - start:.0f} s; " + (f"failed: {', '.join(failed)}" if failed else "all steps passed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
