"""Weights and optimizer moments of sharded models, saved by every rank at once (``torch.distributed.checkpoint``).

The files are safetensors, so no pickle here either, and they say which slice of which tensor they hold: any number of
ranks, one included, reads them back.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor


def save_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write this rank's slices below ``folder``. All ranks must call it."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {name: parameter.detach() for parameter, name in names.items()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"{names[parameter]}|{key}": torch.as_tensor(value) for key, value in state.items()}
    folder.mkdir(exist_ok=True)
    dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


def load_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read weights and moments, however they were cut, into a model that may be cut in another way, or not at all."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    stored = set(reader.read_metadata().state_dict_metadata)
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {name: parameter.detach() for name, parameter in parameters.items()}
    for full_name in stored - set(tensors):
        name, key = full_name.rsplit("|", 1)
        like = parameters[name].detach()
        tensors[full_name] = torch.zeros((), device=like.device) if key == "step" else torch.zeros_like(like)
        optimizer.state[parameters[name]][key] = tensors[full_name]
    dcp.load(tensors, storage_reader=reader, no_dist=not torch.distributed.is_initialized())


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight in one piece on the host of the first rank (elsewhere: empty). All ranks must call it."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def cut_like(target: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, which is on ``target``'s device, cut as ``target`` is."""
    if not isinstance(target, DTensor):
        return whole
    return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
