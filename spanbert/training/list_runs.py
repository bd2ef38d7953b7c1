"""``spanbert runs [FOLDER]`` and ``spanbert plot RUN…``: what there is, how far it is, how the losses fell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from spanbert.checkpoint.store import CheckpointStore, step_of
from spanbert.errors import UserError, describe_os_error
from spanbert.files import check_writable
from spanbert.locks import is_locked
from spanbert.terminal import printable
from spanbert.training.metrics import plot_runs
from spanbert.training.run_folder import read_metrics


@dataclass(frozen=True)
class RunsConfig:
    folder: tyro.conf.Positional[Path] = Path()
    """Where to look, also in its subfolders."""


@dataclass(frozen=True)
class PlotConfig:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders whose curves to lay over one another."""
    output: Path = Path("curves.png")
    """The picture to write (PNG)."""
    metrics: tuple[str, ...] = ()
    """Names out of metrics.jsonl, a panel each; by default every loss that the runs have."""


@dataclass(frozen=True)
class RunState:
    """A line of ``spanbert runs``."""

    path: Path
    state: str  # running, finished, stopped, new (no checkpoint yet), or unreadable
    step: int
    losses: dict[str, float]  # the last validation's, else the last ones in training
    tokens_per_second: float | None


def run_runs(config: RunsConfig) -> None:
    if not config.folder.is_dir():
        raise UserError(f"{config.folder}: no such folder")
    rows = [("run", "state", "step", "loss", "tokens/s")]
    unreadable: list[str] = []
    for run in map(inspect, find_runs(config.folder, unreadable)):
        losses = "  ".join(f"{name.removesuffix('_loss')} {value:.3f}" for name, value in run.losses.items())
        speed = f"{run.tokens_per_second:,.0f}" if run.tokens_per_second else ""
        rows.append((printable(str(run.path)), run.state, f"{run.step:,}", losses, speed))
    for reason in unreadable:
        print(f"warning: not looked into: {reason}", file=sys.stderr)
    if len(rows) == 1:
        print(f"no runs in {config.folder}")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(w) if n in (2, 4) else cell.ljust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


#: What matplotlib writes into its pictures.
PLOT_MARK = b"atplotlib"


def run_plot(config: PlotConfig) -> None:
    if not config.runs:
        raise UserError("name at least one run folder")
    check_writable(config.output, "file")
    if config.output.is_file() and PLOT_MARK not in config.output.read_bytes():
        raise UserError(f"--output {config.output} exists and is no such plot: choose another name, or remove it first")
    records: dict[str, list[dict[str, Any]]] = {}
    for path in config.runs:
        if not (path / "metrics.jsonl").is_file():
            raise UserError(f"{path} is not a run: it has no metrics.jsonl")
        label = path.resolve().name
        records[label if label not in records else str(path)] = read_metrics(path / "metrics.jsonl")
    known = {name for metrics in records.values() for record in metrics for name in record}
    for name in config.metrics:
        if name not in known:
            raise UserError(
                f"--metrics {name}: no run has it; there are {', '.join(sorted(known - {'step', 'split'}))}"
            )
    names = list(config.metrics) or sorted(name for name in known if name == "loss" or name.endswith("_loss"))
    if not names:
        raise UserError("the runs have no loss yet: let them train a little longer")
    if not plot_runs(records, names, config.output, ", ".join(records)):
        raise UserError("plots need matplotlib: pip install 'spanbert[plots]'")
    print(f"wrote {config.output}")


def find_runs(top: Path, unreadable: list[str]) -> Iterator[Path]:
    """Folders that hold a config.json beside metrics.jsonl or checkpoints, in alphabetical order.

    Links are followed, but no folder is entered twice. What cannot be read is added to ``unreadable``, with the reason.
    """
    entered: set[Path] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            if folder.resolve() in entered:
                continue
            entered.add(folder.resolve())
            if (folder / "config.json").is_file() and (
                (folder / "metrics.jsonl").exists() or (folder / "checkpoints").is_dir()
            ):
                yield folder
                continue
            waiting += [
                entry
                for entry in sorted(folder.iterdir(), reverse=True)
                if not entry.name.startswith(".") and _is_folder(entry)
            ]
        except (OSError, RuntimeError) as error:  # before Python 3.13, resolve says RuntimeError of a link to itself
            unreadable.append(describe_os_error(error) if isinstance(error, OSError) else f"{folder}: {error}")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link round in a circle
        return False


def inspect(path: Path) -> RunState:
    """How a run stands, from its files alone."""
    try:
        return _inspect(path)
    except (UserError, OSError):
        return RunState(path, "unreadable", 0, {}, None)


def _inspect(path: Path) -> RunState:
    metrics = read_metrics(path / "metrics.jsonl")
    checkpoints = CheckpointStore(path / "checkpoints").all()
    step = max([r["step"] for r in metrics] + [step_of(p) for p in checkpoints], default=0)
    scored = [r for r in metrics if r["split"] == "validation"] or [r for r in metrics if r["split"] == "train"]
    last = scored[-1] if scored else {}
    losses = {k: v for k, v in last.items() if (k == "loss" or k.endswith("_loss")) and _is_number(v)}
    speeds = [speed for r in metrics if _is_number(speed := r.get("tokens_per_second")) and speed]
    if is_locked(path / ".lock"):
        state = "running"
    elif (path / "model").is_dir():
        state = "finished"
    else:
        state = "stopped" if checkpoints else "new"
    return RunState(path, state, step, losses, speeds[-1] if speeds else None)


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)  # a longer one fits no float
