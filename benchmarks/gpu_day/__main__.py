"""One call on a machine with one GPU and no network: bring, run, take home. A call takes at most ten minutes.

    python -m benchmarks.gpu_day --call A --carried carried/A     # kernel tests, compute-sanitizer, kernel benchmark
    python -m benchmarks.gpu_day --call B --carried carried/B     # block sizes, whole pretraining steps beside transformers
    python -m benchmarks.gpu_day --call C --carried carried/C     # train the model on what A and B brought, export it

`python -m benchmarks.gpu_day.carried` makes the carried folders, `benchmarks.gpu_day.results` unpacks what comes back:
$OUT/gpu_day_A.tar.gz.0 …, at most 8 files of 16 MiB. --rehearse runs the same steps on a CPU, tiny. If A's tests or its
sanitizer fail, nothing is timed. docs/kernels.md says what each step is for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_day.results import write_archive


@dataclass(frozen=True)
class Step:
    """A command with a limit in seconds. `gate`: what follows makes no sense when it fails."""

    name: str
    seconds: float
    command: tuple[str, ...]
    gate: bool = False
    interpret: bool = False  # in a rehearsal the kernels run in Triton's interpreter


def module(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def steps(call: str, rehearse: bool, results: Path, store: Path, minutes: float) -> list[Step]:
    """What a call runs."""
    if call == "A":
        return [*_checks(rehearse), _kernel_benchmark(rehearse, results)]
    return _timings(rehearse, results) if call == "B" else _training(rehearse, results, store, minutes)


def _checks(rehearse: bool) -> list[Step]:
    if rehearse:
        few = ("tests/kernels/test_attention_tiles.py", "tests/kernels/test_attention_masks.py")
        tests = Step("tests", 300, module("pytest", "-q", *few), gate=True)
    else:
        tests = Step("tests", 200, module("pytest", "-q", "-n", "8", "-m", "not slow", "tests/kernels"), gate=True)
    exercise = module("benchmarks.gpu_day.sanitize")
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if found is None:
        print("compute-sanitizer is not installed: its exercise runs without it")
        return [tests, Step("exercise", 120, exercise, gate=True, interpret=True)]
    watched = [(found, "--tool", tool, "--error-exitcode", "9", *exercise) for tool in ("memcheck", "racecheck")]
    return [tests, *(Step(command[2], 90, command, gate=True) for command in watched)]


def _kernel_benchmark(rehearse: bool, results: Path) -> Step:
    command = module("benchmarks.kernels.measure", "--out", str(results / "kernels"))
    if rehearse:
        few = ("--device", "cpu", "--seconds", "0.001", "--provider", "ours", "--provider", "eager")
        return Step("kernel benchmark", 300, (*command, *few))
    return Step("kernel benchmark", 330, (*command, "--device", "cuda"))


def _timings(rehearse: bool, results: Path) -> list[Step]:
    table = ("--json", str(results / "pretraining.json"))
    throughput = module("benchmarks.pretraining.throughput", *table)
    if rehearse:
        tiny = ("--tokens", "64", "--length", "32", "--vocabulary", "200", "--rounds", "1", "--steps", "1")
        which = ("--precisions", "fp32", "--only", "bounded memory", "--only", "transformers eager", "--device", "cpu")
        tuning = module("benchmarks.kernels.tune", "--rehearse")
        return [
            Step("tuning", 200, tuning, interpret=True),
            Step("pretraining steps", 300, (*throughput, *tiny, *which, "--together", "False")),
        ]
    base = ("--size", "base", "--tokens", "16384", "--device", "cuda", "--precisions", "bf16", "--rounds", "3")
    return [
        Step("tuning", 190, module("benchmarks.kernels.tune", "--seconds", "0.01")),
        Step("pretraining steps", 330, (*throughput, *base)),
    ]


def _training(rehearse: bool, results: Path, store: Path, minutes: float) -> list[Step]:
    run, model = store / "run", results / "model"
    train = module("spanbert", "pretrain", str(store / "corpus"), "--output", str(run))
    train += ("--init-from", str(store / "model"))
    if rehearse:
        train += (
            "--steps",
            "3",
            "--warmup",
            "1",
            "--batch-size",
            "2",
            "--micro-batch-size",
            "2",
            "--eval-sequences",
            "2",
        )
        train += ("--device", "cpu", "--precision", "fp32", "--eval-every", "2", "--save-every", "3")
    else:
        train += ("--minutes", str(minutes), "--warmup", "0.06", "--batch-size", "64", "--micro-batch-size", "64")
        train += ("--lr", "1e-3", "--beta2", "0.98", "--dropout", "0", "--attention-dropout", "0")
        train += ("--device", "cuda", "--eval-every", "2000", "--save-every", "5000", "--keep-last", "1")
    export = module("spanbert", "export", str(run), str(model), "--dtype", "bf16")
    return [
        Step("training", 60 * minutes + 60, train, gate=True),
        Step("export", 60, export),
    ]


def run_step(step: Step, results: Path, left: float, rehearse: bool, path: str) -> dict:
    """Run it, its output into results/NAME.txt and to the screen at the end → what happened."""
    limit = min(step.seconds, left)
    print(f"── {step.name} (at most {limit:.0f} s)", flush=True)
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if rehearse and step.interpret:
        environment["TRITON_INTERPRET"] = "1"
    log, start = results / f"{step.name.replace(' ', '_')}.txt", time.monotonic()
    with log.open("w") as file:
        try:
            code = subprocess.run(step.command, stdout=file, stderr=subprocess.STDOUT, timeout=limit, env=environment)
            state = "passed" if code.returncode == 0 else f"failed ({code.returncode})"
        except subprocess.TimeoutExpired:
            state = "out of time"
    if state != "passed":
        print("".join(log.read_text().splitlines(keepends=True)[-30:]))
    return {"step": step.name, "state": state, "seconds": round(time.monotonic() - start, 1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day", description=__doc__.splitlines()[0])
    parser.add_argument("--call", required=True, choices=("A", "B", "C"))
    parser.add_argument("--carried", type=Path, help="folder of benchmarks.gpu_day.carried for this call")
    parser.add_argument("--store", type=Path, default=Path("/tmp/gpu_day"), help="what calls leave for one another")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    parser.add_argument("--limit", type=float, default=590.0, help="seconds of the whole call")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training")
    parser.add_argument("--no-wheels", action="store_true", help="everything is installed already")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, tiny")
    arguments = parser.parse_args(argv)
    start, here = time.monotonic(), Path(__file__).parents[2]
    results = arguments.store / "results" / arguments.call
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    path, record = str(here), []
    if arguments.carried and not arguments.no_wheels:
        site = arguments.store / "site"
        wheels = map(str, sorted((arguments.carried / "wheels").glob("*.whl")))
        pip = module(
            "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site), "--upgrade", *wheels
        )
        record.append(run_step(Step("wheels", 60, pip), results, 60, False, path))
        path = os.pathsep.join((path, str(site)))  # behind this project: a wheel must not hide it
    if arguments.carried:
        unpack = module(
            "benchmarks.gpu_day.carried", "--unpack", str(arguments.carried), "--store", str(arguments.store)
        )
        record.append(run_step(Step("unpacking", 120, unpack), results, 120, False, path))
    for step in steps(arguments.call, arguments.rehearse, results, arguments.store, arguments.minutes):
        left = arguments.limit - (time.monotonic() - start)
        if left < 5:
            record.append({"step": step.name, "state": "no time left", "seconds": 0.0})
            continue
        record.append(run_step(step, results, left, arguments.rehearse, path))
        if step.gate and record[-1]["state"] != "passed":
            break
    metrics = arguments.store / "run" / "metrics.jsonl"
    if arguments.call == "C" and metrics.exists():
        shutil.copy(metrics, results)
    record = _with_targets(record, results)
    (results / "steps.json").write_text(json.dumps(record, indent=1) + "\n")
    left_out = write_archive(results, arguments.out, f"gpu_day_{arguments.call}")
    files = sorted(arguments.out.glob(f"gpu_day_{arguments.call}.tar.gz.*"))
    print(f"\ncall {arguments.call}, {time.monotonic() - start:.0f} s, {len(files)} files in {arguments.out}")
    for row in record:
        print(f"  {row['step']:48} {row['seconds']:8.1f}  {row['state']}")
    if left_out:
        print(f"  left out, too large: {', '.join(left_out)}")
    return 0 if all(row["state"] in ("passed", "met", "missed") for row in record) else 1


def _with_targets(record: list[dict], results: Path) -> list[dict]:
    """The record, and behind it the kernels' targets where they were measured: the figure in place of seconds."""
    path = results / "kernels" / "results.json"
    if not path.exists():
        return record
    from benchmarks.kernels.gpu import targets

    goals = targets(json.loads(path.read_text()))
    rows = [
        {"step": f"{what} (goal {goal:g})", "state": "met" if met else "missed", "seconds": measured}
        for what, goal, measured, met in goals
    ]
    return record + rows


if __name__ == "__main__":
    sys.exit(main())
