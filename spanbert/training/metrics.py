"""Where a run's numbers go besides metrics.jsonl: TensorBoard, Weights & Biases, and a picture of the curves.

All of it is decoration: the packages are extras, imported only when they are used, and what fails here is a warning that
never keeps a run from training or from writing its model.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from spanbert.errors import UserError, describe_os_error, first_line
from spanbert.files import write_atomic

Records = Sequence[Mapping[str, Any]]

STYLES: dict[str, dict[str, Any]] = {
    "train": {"alpha": 0.45, "linewidth": 1},
    "validation": {"marker": "o", "markersize": 3},
}


def plot_curves(
    metrics: Records, names: Sequence[str], output: Path, title: str, baselines: Mapping[str, float] | None = None
) -> bool:
    """Training and validation curves of ``names`` over steps as a PNG → whether it was drawn.

    It is not where matplotlib is not installed; anything else that fails is a warning.
    """
    drawn = False
    with only_warned(str(output)):
        drawn = plot_runs({"": metrics}, names, output, title, baselines)
    return drawn


def plot_runs(
    runs: Mapping[str, Records],
    names: Sequence[str],
    output: Path,
    title: str,
    baselines: Mapping[str, float] | None = None,
) -> bool:
    """Curves of several runs, by label, over one another: a panel for each of ``names``, a colour for each run.

    Training is the thin line, validation the one with points. → False when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5.5 * len(names), 4))
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for number, (label, metrics) in enumerate(runs.items()):
            for split, style in STYLES.items():
                points = [
                    (r["step"], r[name]) for r in metrics if r["split"] == split and type(r.get(name)) in (int, float)
                ]
                if points:
                    colour = f"C{number}" if len(runs) > 1 else ("C0" if split == "train" else "C1")
                    axis.plot(*zip(*points, strict=True), label=f"{label} {split}".strip(), color=colour, **style)
        if baselines and name in baselines:
            axis.axhline(baselines[name], color="gray", linestyle="--", linewidth=1, label="unigram baseline")
        axis.set(xlabel="optimizer step", ylabel=name.replace("_", " "))
        axis.grid(alpha=0.3)
        if axis.has_data():
            for text in axis.legend(frameon=False, fontsize="small").get_texts():
                text.set_parse_math(False)  # a name such as run$_{$x is no formula
    figure.suptitle(title, parse_math=False)
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomic(output, picture.getvalue())
    return True


class Tracker(Protocol):
    """Takes the same records as metrics.jsonl."""

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard. Raises ImportError where the package is not installed."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # after a resume, whatever a lost session logged beyond this step is hidden
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run named after the folder; with WANDB_MODE=offline it is written to RUN/wandb and needs no account."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb: the package wandb is not installed: pip install wandb") from None
        try:
            self._run = wandb.init(
                project="spanbert",
                name=folder.name,
                id=folder.name,
                dir=str(folder),
                config=dict(config),
                resume="allow",
            )
        except Exception as error:  # the network, an account, a name
            raise UserError(f"--wandb: {first_line(error)}") from error

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def open_trackers(folder: Path, config: Mapping[str, Any], step: int, wandb: bool = False) -> list[Tracker]:
    """TensorBoard where it is installed, W&B when asked for."""
    trackers: list[Tracker] = []
    try:
        trackers.append(TensorBoard(folder, step))
    except ImportError:
        pass  # an extra: metrics.jsonl has everything
    except Exception as error:  # a package that is there but broken
        warn("TensorBoard", error)
    if wandb:
        trackers.append(WeightsAndBiases(folder, config))
    return trackers


@contextlib.contextmanager
def only_warned(what: str, unaffected: str = "training") -> Iterator[None]:
    """For what lies beside the work: any error inside the block is a warning of one line about ``what``."""
    try:
        yield
    except Exception as error:
        warn(what, error, unaffected)


def warn(what: str, error: Exception, unaffected: str = "training") -> None:
    """Say that something beside the work went wrong; the work continues."""
    reason = describe_os_error(error) if isinstance(error, OSError) else first_line(error)
    print(f"warning: {what}: {reason}; {unaffected} is not affected", file=sys.stderr, flush=True)
