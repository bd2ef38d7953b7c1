"""A run is a folder: config.json, metrics.jsonl, curves.png, checkpoints/, and TensorBoard events where that is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spanbert.checkpoint_store import CheckpointStore
from spanbert.config import read_json, save_json, to_dict
from spanbert.errors import UserError
from spanbert.files import write_atomic


class RunFolder:
    """One run's folder. Metrics are JSON lines, one a logging event, each with its ``step`` and ``split``."""

    def __init__(self, path: Path, tensorboard: bool = True):
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self._events = _tensorboard_writer(path) if tensorboard else None

    @classmethod
    def start(cls, path: Path, config: Any, tensorboard: bool = True) -> RunFolder:
        """A new run. Raises UserError when ``path`` already holds one."""
        if (path / "config.json").exists():
            raise UserError(f"{path} already holds a run: add --resume to go on with it, or choose another --output")
        path.mkdir(parents=True, exist_ok=True)
        save_json(to_dict(config), path / "config.json")
        return cls(path, tensorboard)

    @classmethod
    def reopen(cls, path: Path, config: Any, may_differ: tuple[str, ...], step: int, tensorboard: bool = True) -> RunFolder:
        """Go on with a run at ``step``: its config must be the same but for ``may_differ``; later metrics are dropped."""
        old, new = read_json(path / "config.json"), to_dict(config)
        changed = [key for key in new if key not in may_differ and old.get(key) != new[key]]
        if changed:
            key = changed[0]
            raise UserError(
                f"{path}: the run was started with {key} = {old.get(key)!r}, now it is {new[key]!r}: resume with the "
                "same options, or start another run in another --output"
            )
        save_json(new, path / "config.json")
        run = cls(path, tensorboard)
        run._cut_metrics(step)
        return run

    def log(self, step: int, split: str, **values: float) -> None:
        """Append one record to metrics.jsonl (and to TensorBoard)."""
        with self.metrics_path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{split}/{name}", value, step)

    def metrics(self) -> list[dict[str, Any]]:
        """All records; a line cut off by a crash is passed over."""
        return read_metrics(self.metrics_path)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def _cut_metrics(self, step: int) -> None:
        if self.metrics_path.exists():
            kept = [record for record in self.metrics() if record["step"] <= step]
            write_atomic(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; lines that are not whole JSON objects are passed over."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def find_model(path: Path, which: str = "last") -> Path:
    """A model folder from whatever a user names: such a folder itself, or a run.

    Of a run: its finished ``model`` when there is one and ``which`` is "last", else its newest whole checkpoint, or the
    best. Raises UserError when there is no model.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    if (path / "checkpoints").is_dir() or (path / "model" / "config.json").is_file():
        store = CheckpointStore(path / "checkpoints", keep_last=0)
        finished = path / "model"
        if which == "last" and (finished / "config.json").is_file():
            return finished
        found = store.best() if which == "best" else store.newest_whole()
        if found is None:
            raise UserError(f"{path} is a run without a whole checkpoint: train it a little longer")
        return found
    if (path / "config.json").is_file():
        return path
    raise UserError(f"{path} is neither a model folder (config.json, model.safetensors) nor a run")


def plot_curves(
    metrics: list[dict[str, Any]], names: list[str], output: Path, title: str, baselines: dict[str, float] | None = None
) -> bool:
    """Training and validation curves of ``names`` over steps as a PNG → False when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(5.5 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for split, style in (("train", dict(alpha=0.45, linewidth=1)), ("validation", dict(marker="o", markersize=3))):
            points = [(r["step"], r[name]) for r in metrics if r["split"] == split and r.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=split, **style)
        if baselines and name in baselines:
            axis.axhline(baselines[name], color="gray", linestyle="--", linewidth=1, label="unigram baseline")
        axis.set(xlabel="optimizer step", ylabel=name.replace("_", " "))
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(frameon=False)
    figure.suptitle(title)
    figure.tight_layout()
    aside = output.with_suffix(".partial.png")
    figure.savefig(aside, dpi=110)
    plt.close(figure)
    aside.replace(output)
    return True


def _tensorboard_writer(path: Path) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path / "tensorboard"))
