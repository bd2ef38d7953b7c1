"""A run is a folder: config.json, metrics.jsonl, curves.png, checkpoints/, and what trackers write."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from spanbert.config import read_json_lines, read_json_object, save_json, to_dict
from spanbert.errors import UserError
from spanbert.files import check_writable, remove_leftovers, report_full_disk, write_atomic
from spanbert.locks import try_lock
from spanbert.training.metrics import open_trackers, warn

#: How long to wait for a run that another process still holds.
PATIENCE_SECONDS = 15


class RunFolder:
    """One run's folder, held by this process alone until ``close``.

    Metrics are JSON lines, one a logging event, each with its ``step`` and ``split``.
    """

    def __init__(self, path: Path, config: Any, step: int = 0, lock: IO[str] | None = None):
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self._lock = lock or hold_run(path)
        values = to_dict(config)
        self._trackers = open_trackers(path, values, step, wandb=bool(values.get("wandb")))

    @classmethod
    def start(cls, path: Path, config: Any) -> RunFolder:
        """A new run. Raises UserError when ``path`` already holds one, is a file, or cannot be made."""
        refuse_existing_run(path)
        with report_lost_folder(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = hold_run(path)
        try:
            refuse_existing_run(path)  # another process may have begun one since
            run = cls(path, config, lock=lock)
            save_json(to_dict(config), path / "config.json")
        except BaseException:
            lock.close()
            raise
        return run

    @classmethod
    def reopen(
        cls, path: Path, config: Any, may_differ: tuple[str, ...], step: int, lock: IO[str] | None = None
    ) -> RunFolder:
        """Continue a run at ``step``: its config must be the same but for ``may_differ``; later metrics are dropped.

        lock: what ``hold_run`` gave, when the run is held already. Raises UserError when the config is not the same,
        or when another process is at work on the run.
        """
        lock = lock or hold_run(path)
        try:
            check_same_config(path, config, may_differ)
            run = cls(path, config, step, lock)
            remove_leftovers(path)
            save_json(to_dict(config), path / "config.json")
            run._cut_metrics(step)
        except BaseException:
            lock.close()
            raise
        return run

    def log(self, step: int, split: str, **values: Any) -> None:
        """Append one record to metrics.jsonl, and its numbers to the trackers. What is not finite is written as null.

        Raises UserError when the folder is gone, read-only or full. A tracker that fails is left out from then on.
        """
        record = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with (
            report_lost_folder(self.path),
            report_full_disk(self.metrics_path),
            self.metrics_path.open("a", encoding="utf-8") as handle,
        ):
            handle.write(json.dumps({"step": step, "split": split, **record}) + "\n")
        numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
        for tracker in list(self._trackers):
            try:
                tracker.log(step, split, numbers)
            except Exception as error:  # metrics.jsonl has everything
                warn(f"{type(tracker).__name__} is left out from step {step} on", error)
                self._trackers.remove(tracker)

    def check_there(self) -> None:
        """Raises UserError when the folder was removed: writing below it would make a new one that is no run."""
        with report_lost_folder(self.path):
            (self.path / "config.json").stat()

    def metrics(self) -> list[dict[str, Any]]:
        """All records; a line cut off by a crash is passed over."""
        return read_metrics(self.metrics_path)

    def close(self) -> None:
        """Let go of the folder; may be called again."""
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            try:
                tracker.close()
            except Exception as error:
                warn(type(tracker).__name__, error)
        self._lock.close()

    def _cut_metrics(self, step: int) -> None:
        if self.metrics_path.exists():
            kept = [record for record in self.metrics() if record["step"] <= step]
            write_atomic(self.metrics_path, "".join(json.dumps(record) + "\n" for record in kept))


def refuse_existing_run(path: Path) -> None:
    """Raises UserError when ``path`` already holds a run, is a file, or cannot be written."""
    check_writable(path, "files inside")
    if (path / "config.json").exists():
        raise UserError(f"{path} already holds a run: add --resume to continue it, or choose another --output")


def check_same_config(path: Path, config: Any, may_differ: tuple[str, ...]) -> None:
    """Raises UserError when the run at ``path`` was started with other options (those in ``may_differ`` aside).

    An option that the version which began it did not have yet was at its default.
    """
    old, new = with_defaults(read_json_object(path / "config.json", "a run's options"), config), to_dict(config)
    for key in new:
        if key in old and key not in may_differ and old[key] != new[key]:
            raise UserError(
                f"{path}: the run was started with {_difference(key, old[key], new[key])}: resume with the "
                "same options, or start another run in another --output"
            )


def with_defaults(stored: dict[str, Any], config: Any) -> dict[str, Any]:
    """Stored options, and the defaults of those that ``config`` has beside; one without a default stays missing."""
    found = dict(stored)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and isinstance(found.get(field.name), dict):
            found[field.name] = with_defaults(found[field.name], value)
        elif field.name not in found and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
            found[field.name] = to_dict(default) if dataclasses.is_dataclass(default) else default
        elif field.name not in found and field.default is not dataclasses.MISSING:
            found[field.name] = json.loads(json.dumps(field.default, default=str))
    return found


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(name for name in {**old, **new} if old.get(name) != new.get(name))
        return _difference(f"{key}.{inner}", old.get(inner), new.get(inner))
    return f"{key} = {old!r}, now it is {new!r}"


def hold_run(path: Path) -> IO[str]:
    """An open lock: a second process in the same run would tear the first one's checkpoints down.

    A run that was killed leaves data workers behind for a few seconds, which still hold it; so there is some patience.
    Raises UserError when another process keeps it.
    """
    handle = try_lock(path / ".lock", PATIENCE_SECONDS)
    if handle is None:
        raise UserError(f"another process is training {path}: wait for it, or choose another --output")
    return handle


@contextlib.contextmanager
def report_lost_folder(path: Path) -> Iterator[None]:
    """Turn a run folder that is gone or may not be written to into one sentence (UserError)."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UserError(
            f"{error.filename or path} cannot be written ({error.strerror}): was the run's folder {path} removed, or made "
            "read-only?"
        ) from error
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        raise UserError(f"{path} cannot be written: its file system is read-only") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl: those with a step and a split. Lines that are none, or are damaged, are passed over."""
    records = [r for r in read_json_lines(path) if type(r.get("step")) is int and isinstance(r.get("split"), str)]
    return [r for r in records if abs(r["step"]) < 1 << 63]
