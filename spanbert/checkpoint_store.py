"""The checkpoints of a run: each whole or absent, each proven by its hashes, the newest few and the best kept.

RUN/checkpoints/step-00001000/ is a Hugging Face-layout folder (so it can be loaded and exported as it is) plus
``training_state.safetensors`` (optimizer moments), ``training_state.json`` (counters) and ``manifest.json`` (SHA-256 of
every other file).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spanbert.config import read_json
from spanbert.errors import UserError
from spanbert.files import atomic_folder, remove_leftovers, write_atomic

MANIFEST = "manifest.json"
STATE_TENSORS, STATE_COUNTERS = "training_state.safetensors", "training_state.json"


class CheckpointStore:
    """Saves, finds and prunes the checkpoints below one folder."""

    def __init__(self, folder: Path, keep_last: int = 2):
        self.folder = folder
        self.keep_last = keep_last

    def save(self, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
        """Let ``write`` fill a folder, prove and publish it as the checkpoint of ``step``; lower ``score`` is better."""
        path = self.folder / f"step-{step:08d}"
        remove_leftovers(self.folder)
        with atomic_folder(path) as aside:
            write(aside)
            hashes = {str(f.relative_to(aside)): sha256(f) for f in sorted(aside.rglob("*")) if f.is_file()}
            write_atomic(aside / MANIFEST, json.dumps({"step": step, "score": score, "sha256": hashes}, indent=1))
        self._prune()
        return path

    def all(self) -> list[Path]:
        """Every checkpoint, oldest first (names sort by step)."""
        return sorted(p for p in self.folder.glob("step-*") if (p / MANIFEST).is_file())

    def best(self) -> Path | None:
        """The checkpoint with the lowest score (the newest of equals), or None when none has one."""
        scored = [(read_json(p / MANIFEST)["score"], p) for p in self.all()]
        scored = [(score, p) for score, p in scored if score is not None]
        return min(reversed(scored), key=lambda item: item[0])[1] if scored else None

    def newest_whole(self, say: Callable[[str], None] = print) -> Path | None:
        """The newest checkpoint whose files match their hashes; damaged ones are named and passed over."""
        for path in reversed(self.all()):
            damage = find_damage(path)
            if damage is None:
                return path
            say(f"{path} is damaged ({damage}): going back to the one before")
        return None

    def _prune(self) -> None:
        best, paths = self.best(), self.all()
        for path in paths[: -self.keep_last] if self.keep_last else []:
            if path != best:
                shutil.rmtree(path)


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


def save_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counters: dict[str, Any]
) -> None:
    """Optimizer state under the parameters' names as safetensors, counters as JSON: no pickle."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {
        f"{names[parameter]}|{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    save_file(tensors, folder / STATE_TENSORS)
    (folder / STATE_COUNTERS).write_text(json.dumps(counters, indent=1))


def load_training_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the optimizer back where ``save_training_state`` left it → the counters."""
    tensors = load_file(folder / STATE_TENSORS)
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("|", 1)
        if name not in parameters:
            raise UserError(f"{folder / STATE_TENSORS}: has state for {name!r}, which this model does not have")
        parameter = parameters[name]
        on_host = key == "step" and not parameter.is_cuda
        optimizer.state[parameter][key] = tensor if on_host else tensor.to(parameter.device)
    return read_json(folder / STATE_COUNTERS)
