"""How long a person waits: `spanbert ask` from nothing, and within it the loading of the model.

    python -m benchmarks.finetuning.cold_start [--model FOLDER] [--runs 5]

Every run is a process of its own: Python, imports, model, one paragraph, one question. The best of some runs is given,
for whatever else the machine does can only add.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from spanbert.errors import UserError
from spanbert.weights import qa_model_path

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "sample" / "text.txt"
LOADING = (
    "import sys, time; from finetune.tasks.qa.answerer import QuestionAnswerer; began = time.perf_counter(); "
    "QuestionAnswerer.load(sys.argv[1]); print(time.perf_counter() - began)"
)


@dataclass(frozen=True)
class ColdStartConfig:
    """Time `spanbert ask` from a cold start."""

    model: Path | None = None
    """Model folder; left out, the one that is bundled with this program."""
    runs: int = 5
    """Processes to start for each figure."""


@dataclass(frozen=True)
class ColdStart:
    """Seconds of wall-clock time, the best of `runs` processes each."""

    ask: float
    load: float
    runs: int
    load_average: float
    """Of the machine, over the last minute: how busy others kept it (1 is one core)."""


def measure(model: Path, runs: int = 5) -> ColdStart:
    """Raises UserError when the command fails."""
    ask, load = [], []
    for _ in range(runs):
        command = ["-m", "spanbert", "ask", str(model), "--context", str(TEXT), "When was the canal opened?"]
        ask.append(_timed(command)[0])
        load.append(float(_timed(["-c", LOADING, str(model)])[1]))
    return ColdStart(min(ask), min(load), runs, os.getloadavg()[0])


def _timed(arguments: list[str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise UserError(f"python {' '.join(arguments[:3])} failed: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - began, done.stdout


def main() -> int:
    try:
        config = tyro.cli(ColdStartConfig, description=ColdStartConfig.__doc__)
        found = measure((config.model or qa_model_path()).resolve(), config.runs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found.__dict__, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
