"""Where numbers go besides metrics.jsonl: one small interface, and a body for each service."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from spanbert.errors import UserError


class Tracker(Protocol):
    """Takes the same records as metrics.jsonl."""

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard. Raises ImportError where the package is not installed."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # after a resume, whatever a lost stretch logged beyond this step is hidden
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
        self._run = wandb.init(
            project="spanbert", name=folder.name, id=folder.name, dir=str(folder), config=dict(config), resume="allow"
        )

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def open_trackers(folder: Path, config: Mapping[str, Any], step: int, wandb: bool = False) -> list[Tracker]:
    """TensorBoard where it is installed, W&B when asked for."""
    trackers: list[Tracker] = []
    with contextlib.suppress(ImportError):  # an extra: metrics.jsonl has everything
        trackers.append(TensorBoard(folder, step))
    if wandb:
        trackers.append(WeightsAndBiases(folder, config))
    return trackers
