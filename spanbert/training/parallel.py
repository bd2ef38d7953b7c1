"""One model on several ranks, by PyTorch's own means: replicated (DDP) or sharded (FSDP2).

Both average gradients over ranks, and the loss is made of sums ÷ the targets of all ranks, so the loss is multiplied by
the number of ranks to turn the average back into the sum that it has to be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from spanbert.distributed import Group
from spanbert.errors import UserError

PARALLEL = ("ddp", "fsdp")


def parallelise(model: nn.Module, layers: nn.ModuleList, group: Group, kind: str) -> nn.Module:
    """The module to call in place of ``model``: itself when alone, in DDP, or itself with its parameters sharded.

    Sharding cuts each of ``layers``, then what is left. The optimizer must be made afterwards: it takes this rank's
    slices. Raises UserError for "fsdp" without torchrun.
    """
    if kind == "fsdp":
        if not group.distributed:
            raise UserError(
                "--parallel fsdp: start it with torchrun, e.g. torchrun --nproc-per-node 8 -m spanbert pretrain …"
            )
        mesh = init_device_mesh(group.device.type, (group.world,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)  # in place: the module is an FSDPModule from here on
        return model
    if group.world == 1:
        return model
    ids = [group.device.index] if group.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


@contextlib.contextmanager
def gradient_sync(parallel: nn.Module, enabled: bool) -> Iterator[None]:
    """Whether backward passes inside exchange gradients between ranks; where they do not, they pile up on each rank."""
    if isinstance(parallel, DistributedDataParallel) and not enabled:
        with parallel.no_sync():
            yield
        return
    if isinstance(parallel, FSDPModule):
        parallel.set_requires_gradient_sync(enabled)
    yield
