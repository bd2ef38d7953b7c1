"""What a checkpoint holds beside the model: optimizer moments as safetensors, counters as JSON. No pickle.

Of a sharded run the moments, and the weights again, are in ``sharded/`` (``sharded_state``, imported only then).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spanbert.config import read_json_object
from spanbert.distributed import Group
from spanbert.errors import UserError

SHARDS = "sharded"
STATE_TENSORS, STATE_COUNTERS = "training_state.safetensors", "training_state.json"


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

    Of a sharded model every rank writes its slices; otherwise the main rank writes all.
    """
    if is_sharded(model):
        from spanbert.checkpoint.sharded_state import save_shards  # takes a second to import, and few runs are sharded

        save_shards(folder / SHARDS, model, optimizer)
    elif group is None or group.is_main:
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        tensors = {
            f"{names[parameter]}|{key}": torch.as_tensor(value).detach().cpu().contiguous()
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
        save_file(tensors, folder / STATE_TENSORS)
    if group is None or group.is_main:
        (folder / STATE_COUNTERS).write_text(json.dumps(counters, indent=1))


def load_training_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the optimizer back where ``save_training_state`` left it, on any number of ranks → the counters.

    Raises UserError when the state is of another model.
    """
    parameters = dict(model.named_parameters())
    if (folder / SHARDS).is_dir():
        from spanbert.checkpoint.sharded_state import load_shards

        load_shards(folder / SHARDS, model, optimizer)
        return read_json_object(folder / STATE_COUNTERS, "the counters of a run")
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
    return read_json_object(folder / STATE_COUNTERS, "the counters of a run")
