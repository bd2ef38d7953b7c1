"""The checkpoints of a run: each whole or absent, each proven by its hashes, the newest few and the best kept.

RUN/checkpoints/step-00001000/ is a Hugging Face-layout folder (so it can be loaded and exported as it is) plus
``training_state.safetensors`` (optimizer moments), ``training_state.json`` (counters) and ``manifest.json`` (SHA-256 of
every other file). Of a sharded run the moments, and the weights again, are in ``sharded/`` (``sharded_state``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spanbert.config import read_json
from spanbert.distributed import Group, alone
from spanbert.errors import UserError
from spanbert.files import atomic_folder, remove_folder, remove_leftovers, write_atomic

MANIFEST, SHARDS = "manifest.json", "sharded"
STATE_TENSORS, STATE_COUNTERS = "training_state.safetensors", "training_state.json"


class CheckpointStore:
    """Saves, finds and prunes the checkpoints below one folder.

    With several ranks all of them call ``save``; the leader makes, proves, publishes and prunes.
    """

    def __init__(self, folder: Path, keep_last: int = 2, group: Group | None = None):
        self.folder = folder
        self.keep_last = keep_last
        self.group = group or alone()

    def save(self, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
        """Let ``write`` fill a folder, prove and publish it as the checkpoint of ``step``; lower ``score`` is better.

        A score that is not finite counts as none. Raises UserError when the disk is full: what was there then stands.
        """
        path = self.folder / f"step-{step:08d}"
        score = score if score is not None and math.isfinite(score) else None
        if self.group.leads:
            remove_leftovers(self.folder)
        with self._folder_for_all(path) as aside:
            write(aside)
            self.group.wait()
            if self.group.leads:
                hashes = {str(f.relative_to(aside)): sha256(f) for f in sorted(aside.rglob("*")) if f.is_file()}
                write_atomic(aside / MANIFEST, json.dumps({"step": step, "score": score, "sha256": hashes}, indent=1))
        if self.group.leads:
            self._prune()
        return path

    def all(self) -> list[Path]:
        """Every checkpoint, oldest first."""
        return sorted(self.folder.glob("step-*"), key=step_of)

    def best(self) -> Path | None:
        """The checkpoint with the lowest score (the newest of equals), or None when none has one."""
        scored = [(score, path) for path in self.all() if (score := _score(path)) is not None]
        return min(reversed(scored), key=lambda item: item[0])[1] if scored else None

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
        if not self.group.leads:
            yield Path(self.group.tell(None))
        else:
            with atomic_folder(path) as aside:
                self.group.tell(str(aside))
                yield aside
        self.group.wait()

    def _prune(self) -> None:
        best, paths = self.best(), self.all()
        for path in paths[: -self.keep_last] if self.keep_last else []:
            if path != best:
                remove_folder(path)


def step_of(checkpoint: Path) -> int:
    """Folder name → step; −1 for a name that is not a checkpoint's."""
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _score(checkpoint: Path) -> float | None:
    """A damaged manifest has no score: the damage is for ``newest_whole`` to name."""
    try:
        return json.loads((checkpoint / MANIFEST).read_text())["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def find_damage(checkpoint: Path) -> str | None:
    """None when every file is there with its hash, else a phrase that names the first that is not."""
    try:
        hashes = json.loads((checkpoint / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, expected in hashes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if sha256(file) != expected:
            return f"{name} does not match its SHA-256"
    return None


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has cut the model's parameters (``spanbert.training.parallel``)."""
    return hasattr(model, "set_requires_gradient_sync")


def save_training_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: dict[str, Any],
    group: Group | None = None,
) -> None:
    """Optimizer state under the parameters' names as safetensors, counters as JSON: no pickle.

    Of a sharded model every rank writes its slices; otherwise the leader writes all.
    """
    if is_sharded(model):
        from spanbert.checkpoint.sharded_state import save_shards  # takes a second to import, and few runs are sharded

        save_shards(folder / SHARDS, model, optimizer)
    elif group is None or group.leads:
        names = {parameter: name for name, parameter in model.named_parameters()}
        tensors = {
            f"{names[parameter]}|{key}": torch.as_tensor(value).detach().cpu().contiguous()
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
        save_file(tensors, folder / STATE_TENSORS)
    if group is None or group.leads:
        (folder / STATE_COUNTERS).write_text(json.dumps(counters, indent=1))


def load_training_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the optimizer back where ``save_training_state`` left it, on any number of ranks → the counters.

    Raises UserError when the state is of another model.
    """
    parameters = dict(model.named_parameters())
    if (folder / SHARDS).is_dir():
        from spanbert.checkpoint.sharded_state import load_shards

        load_shards(folder / SHARDS, model, optimizer)
        return read_json(folder / STATE_COUNTERS)
    for full_name, tensor in load_file(folder / STATE_TENSORS).items():
        name, key = full_name.rsplit("|", 1)
        if name not in parameters:
            raise UserError(f"{folder / STATE_TENSORS}: has state for {name!r}, which this model does not have")
        parameter = parameters[name]
        state = tensor.to(parameter.device)
        if is_sharded(model) and key != "step":
            from spanbert.checkpoint.sharded_state import cut_like

            state = cut_like(parameter.detach(), state)
        optimizer.state[parameter][key] = state
    return read_json(folder / STATE_COUNTERS)
