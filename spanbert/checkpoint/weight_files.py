"""Reading weight files of every layout into one dictionary of tensors, without ever running code found in a file.

safetensors (whole or in shards) and torch-saved files. The latter are pickles: they are read with ``weights_only``, plus
the one harmless class that fairseq puts beside its weights, ``argparse.Namespace``. What a file is, its first bytes say
(``file_kinds``), never its name alone.
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

from spanbert.checkpoint.file_kinds import foreign_globals, kind_of, snapshot_of
from spanbert.config import read_json
from spanbert.errors import UserError

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
#: Where training frameworks nest the weights among optimizer state and arguments ("module" is DeepSpeed's).
NESTS = ("model", "state_dict", "model_state_dict", "module")
#: What PyTorch's reader raises, depending on where a file is broken, or when it asks for something unsafe.
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OSError,
)


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors of a model folder or of a single weight file, and the file name for messages. On the CPU, as stored.

    Raises UserError when there is no weight file, or it is cut off, unsafe, something else, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    return _read_file(path), path.name


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], str]:
    for name in (WHOLE[0], INDEXES[0], WHOLE[1], INDEXES[1]):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder: expected the file with the weights under that name")
        if (folder / name).is_file():
            return (_read_shards(folder / name) if name in INDEXES else _read_file(folder / name)), name
    others = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth") and p.is_file())
    if len(others) == 1:
        return _read_file(others[0]), others[0].name
    found = f"it holds {', '.join(p.name for p in others)}: name one of them" if others else "it holds no weight file"
    snapshot = snapshot_of(folder)
    if snapshot is not None:
        found = f"it is a download cache: name {snapshot}"
    raise UserError(f"{folder} has no {' or '.join(WHOLE)}; {found}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
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
    kind = kind_of(path)
    if kind.advice:
        raise UserError(f"{path} is {kind.name}, not the weights: {kind.advice}")
    if path.suffix == ".safetensors":
        if kind.torch_saved:
            raise UserError(f"{path} is {kind.name}, not safetensors: give it a name that ends in .bin")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file ({error}): get it again") from None
    if kind.safetensors:
        raise UserError(f"{path} is {kind.name}, whatever its name says: give it a name that ends in .safetensors")
    if not kind.torch_saved:
        raise UserError(f"{path} is not a torch-saved file: get it again")
    return _flat_tensors(_read_torch(path), path)


def _read_torch(path: Path) -> Any:
    """What is in a torch-saved file. PyTorch's own messages are not shown: they advise to load it unsafely."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        wanted = foreign_globals(path)
    if wanted is None:
        raise UserError(f"{path} is not a whole torch-saved file: get it again")
    raise UserError(
        f"{path} holds more than tensors (it asks for {', '.join(wanted[:3])}), and loading it could run code that "
        "somebody put there: save only its state_dict, or use a safetensors file"
    )


def _flat_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The dictionary with tensors in it, out of the nests that frameworks put around one another."""
    while isinstance(content, dict):
        nest = next((name for name in NESTS if isinstance(content.get(name), dict)), None)
        if nest is None:
            break
        content = content[nest]
    tensors = {}
    if isinstance(content, dict):
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(
            f"{path} holds no tensors by name: expected a state dict, flat or under one of {', '.join(NESTS)}"
        )
    return tensors
