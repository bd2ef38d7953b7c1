"""Reading weight files of every layout into one dictionary of tensors, without ever running code found in a file.

safetensors (whole or in shards) and torch-saved files. The latter are pickles: they are read with ``weights_only``, plus
the one harmless class that fairseq puts beside its weights, ``argparse.Namespace``.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spanbert.config import read_json
from spanbert.errors import UserError

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
#: Where training frameworks nest the weights among optimizer state and arguments.
NESTS = ("model", "state_dict", "model_state_dict")


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors of a model folder or of a single weight file, and the file name for messages. On the CPU, as stored.

    Raises UserError when there is no weight file, or it is cut off, unsafe, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    return _read_file(path), path.name


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], str]:
    for name in (WHOLE[0], INDEXES[0], WHOLE[1], INDEXES[1]):
        if not (folder / name).is_file():
            continue
        return (_read_shards(folder / name) if name in INDEXES else _read_file(folder / name)), name
    others = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(others) == 1:
        return _read_file(others[0]), others[0].name
    found = f"it holds {', '.join(p.name for p in others)}: name one of them" if others else "it holds no weight file"
    raise UserError(f"{folder} has no {' or '.join(WHOLE)}; {found}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: expected a 'weight_map' from tensor names to file names")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index} names the shard {name!r}, which is not in {index.parent}: get the missing file")
        tensors.update(_read_file(index.parent / name))
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise UserError(f"{index} promises {missing[0]!r} in {places[missing[0]]}, which does not hold it")
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as handle:
        start = handle.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the weights: fetch the real file (git lfs pull)")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file ({error}): get it again") from None
    return _flat_tensors(_read_torch(path), path)


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise UserError(
                f"{path} holds more than tensors, and loading it could run code that somebody put there: "
                f"save only its state_dict, or use a safetensors file ({reason})"
            ) from None
        raise UserError(f"{path} is not a torch-saved file ({reason})") from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a whole torch-saved file ({reason}): get it again") from None


def _flat_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for nest in NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
            break
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(
            f"{path} holds no tensors by name: expected a state dict, flat or under one of {', '.join(NESTS)}"
        )
    return tensors
