"""The checkpoints of a run: each whole or absent, each proven by its hashes, the newest few and the best kept.

RUN/checkpoints/step-00001000/ is a Hugging Face-layout folder (so it can be loaded and exported as it is) plus the files
of ``training_state`` and ``manifest.json`` (SHA-256 of every other file).
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spanbert.checkpoint.file_kinds import snapshot_of
from spanbert.config import is_finite, read_json, read_json_object
from spanbert.distributed import Group, alone
from spanbert.errors import UserError
from spanbert.files import atomic_folder, remove_folder, remove_leftovers, sha256, write_atomic
from spanbert.weights import BUNDLED, model_path

MANIFEST = "manifest.json"

#: Key of a checkpoint's config.json: {"step": …, "of": …} when its run had not come to its end.
PROGRESS = "training_progress"


class CheckpointStore:
    """Saves, finds and prunes the checkpoints below one folder.

    With several ranks all of them call ``save``; the main one makes, proves, publishes and prunes.
    """

    def __init__(self, folder: Path, keep_last: int = 2, group: Group | None = None):
        self.folder = folder
        self.keep_last = keep_last
        self.group = group or alone()

    def save(self, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
        """Let ``write`` fill a folder, prove and publish it as the checkpoint of ``step``; lower ``score`` is better.

        A score that is not finite counts as none. Raises UserError when the disk is full: what was there then stands.
        """
        path = self.path_of(step)
        score = score if score is not None and math.isfinite(score) else None
        if self.group.is_main:
            remove_leftovers(self.folder)
        with self._folder_for_all(path) as aside:
            write(aside)
            self.group.barrier()
            if self.group.is_main:
                hashes = {str(f.relative_to(aside)): sha256(f) for f in sorted(aside.rglob("*")) if f.is_file()}
                write_atomic(aside / MANIFEST, json.dumps({"step": step, "score": score, "sha256": hashes}, indent=1))
        if self.group.is_main:
            self._prune()
        return path

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step lies, if there is one."""
        return self.folder / f"step-{step:08d}"

    def all(self) -> list[Path]:
        """Every checkpoint, oldest first."""
        return sorted(self.folder.glob("step-*"), key=step_of)

    def best(self) -> Path | None:
        """The checkpoint with the lowest score (the newest of equals), or None when none has one. Files go unread."""
        return next(iter(self._best_first()), None)

    def best_whole(self, say: Callable[[str], None] = print) -> Path | None:
        """The best checkpoint whose files match their hashes; damaged ones are named and passed over."""
        for path in self._best_first():
            damage = find_damage(path)
            if damage is None:
                return path
            say(f"{path} is damaged ({damage}): taking the next best")
        return None

    def _best_first(self) -> list[Path]:
        scored = [(score, path) for path in self.all() if (score := _score(path)) is not None]
        return [path for _, path in sorted(scored, key=lambda item: (item[0], -step_of(item[1])))]

    def newest_whole(self, say: Callable[[str], None] = print, before: int | None = None) -> Path | None:
        """The newest checkpoint whose files match their hashes; damaged ones are named and passed over.

        before: consider only checkpoints of steps below this one.
        """
        for path in reversed(self.all()):
            if before is not None and step_of(path) >= before:
                continue
            damage = find_damage(path)
            if damage is None:
                return path
            say(f"{path} is damaged ({damage}): going back to the one before")
        return None

    def set_aside_after(self, kept: Path | None) -> None:
        """Rename checkpoints newer than ``kept`` (they are damaged), so that they count no more: one that did could
        push a whole one out when only the newest few are kept."""
        for path in self.all():
            if kept is None or step_of(path) > step_of(kept):
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)

    @contextlib.contextmanager
    def _folder_for_all(self, path: Path) -> Iterator[Path]:
        """A folder to fill that every rank knows; published when all have left."""
        if not self.group.is_main:
            yield Path(self.group.broadcast(None))
        else:
            with atomic_folder(path) as aside:
                self.group.broadcast(str(aside))
                yield aside
        self.group.barrier()

    def _prune(self) -> None:
        best, paths = self.best(), self.all()
        for path in paths[: -self.keep_last] if self.keep_last else []:
            if path != best:
                remove_folder(path)


def step_of(checkpoint: Path) -> int:
    """Folder name → step; −1 for a name that is not a checkpoint's."""
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _manifest(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's manifest; empty when it is missing or broken."""
    try:
        content = read_json(checkpoint / MANIFEST)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _score(checkpoint: Path) -> float | None:
    """A damaged manifest has no score: the damage is for ``newest_whole`` to name."""
    score = _manifest(checkpoint).get("score")
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        return None
    return score if is_finite(score) else None


def find_damage(checkpoint: Path) -> str | None:
    """None when every file is there with its hash, else a phrase that names the first that is not."""
    hashes = _manifest(checkpoint).get("sha256")
    if not isinstance(hashes, dict) or not hashes:
        return f"{MANIFEST} is missing or unreadable"
    for name, expected in hashes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if sha256(file) != expected:
            return f"{name} does not match its SHA-256"
    return None


def prove_weights(folder: Path) -> None:
    """Write the hashes of a finished model's weights beside them, for ``find_model`` to compare."""
    hashes = {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))}
    write_atomic(folder / MANIFEST, json.dumps({"sha256": hashes}, indent=1))


def _check_weights(folder: Path) -> None:
    """Raises UserError when a finished model's weights are not those that were written. Other folders say nothing of it."""
    if isinstance(_manifest(folder).get("sha256"), dict) and (damage := find_damage(folder)):
        raise UserError(
            f"{folder} is damaged ({damage}): copy or train it again; if its weights were changed on purpose, remove its "
            f"{MANIFEST}"
        )


def stopped_early(config: Mapping[str, Any]) -> str | None:
    """One phrase on a checkpoint from before the end of its run, from config.json; None for a finished model."""
    match config.get(PROGRESS):
        case {"step": int(step), "of": int(of)}:
            return f"its training had come to step {step:,} of {of:,}"
    return None


def find_model(path: Path, which: str = "last") -> Path:
    """A model folder from whatever a user names: such a folder itself, a run, one of its checkpoints, a download cache, or
    the word for a bundled model (``spanbert.weights.BUNDLED``).

    Of a run: its finished ``model`` when there is one and ``which`` is "last", else its newest whole checkpoint, or the
    best whole one. Raises UserError when there is no model, or what was named is damaged.
    """
    path = model_path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; the bundled models are called {', '.join(BUNDLED)}")
    if (path / "checkpoints").is_dir() or (path / "model" / "config.json").is_file():
        store = CheckpointStore(path / "checkpoints", keep_last=0)
        finished = path / "model"
        if which == "last" and (finished / "config.json").is_file():
            _check_weights(finished)
            return finished
        found = store.best_whole() if which == "best" else store.newest_whole()
        if found is None:
            scored = " that was validated" if which == "best" else ""
            raise UserError(f"{path} is a run without a whole checkpoint{scored}: train it a little longer")
        _say_if_stopped_early(found)
        return found
    if (path / MANIFEST).is_file() and step_of(path) >= 0:
        damage = find_damage(path)
        if damage is not None:
            raise UserError(f"{path} is damaged ({damage}): name the run, and another checkpoint is taken")
        _say_if_stopped_early(path)
    else:
        _check_weights(path)
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return path
    snapshot = snapshot_of(path)
    if snapshot is not None:
        return snapshot
    raise UserError(f"{path} is neither a model folder (config.json, model.safetensors) nor a run")


def _say_if_stopped_early(checkpoint: Path) -> None:
    """On standard error: what a command prints may be read by a program."""
    stopped = stopped_early(read_json_object(checkpoint / "config.json", "BERT's keys"))
    if stopped:
        print(f"note: {checkpoint} is not a finished model: {stopped}", file=sys.stderr)
