"""The processes of one run: one alone, or the ranks that ``torchrun`` started.

Numbers that the host needs (how many targets a step has, whether somebody was asked to stop) travel between hosts by
gloo and never touch a GPU, so that agreeing on them does not make the GPU wait; gradients travel by NCCL.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from spanbert.device import choose_device
from spanbert.errors import UserError, describe_os_error

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process's place among all."""

    rank: int
    world: int
    device: torch.device
    distributed: bool

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over ranks of a few host numbers, in fp64, the same on every rank."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def all_reduce_max(self, value: Tensor) -> Tensor:
        """Maximum over ranks of a device tensor, in place, without waiting for it."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def broadcast(self, value: Any) -> Any:
        """The main rank's ``value`` on every rank."""
        if self.world == 1:
            return value
        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def on_main(self, function: Callable[[], T]) -> T:
        """Call ``function`` on the main rank only → its result on every rank, or its UserError (or OSError, in words) raised
        on every rank."""
        result, error = None, None
        if self.is_main:
            try:
                result = function()
            except UserError as raised:
                error = raised
            except OSError as raised:
                error = UserError(describe_os_error(raised))
        result, message = self.broadcast((result, error and str(error)))
        if message is not None:
            raise error or UserError(message)
        return result

    def barrier(self) -> None:
        """Wait until all ranks are here (hosts only)."""
        self.sum([0.0])

    def print_main(self, text: str) -> None:
        """Print, once for all ranks."""
        if self.is_main:
            print(text, flush=True)


def alone(device: torch.device | str = "cpu") -> Group:
    """A group of one."""
    return Group(0, 1, torch.device(device), distributed=False)


def restarts() -> int:
    """How often ``torchrun --max-restarts`` has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def join_group(device_name: str = "auto", timeout_minutes: float = 30) -> Iterator[Group]:
    """Join the ranks named by torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK), or be alone without it.

    Raises UserError when the device does not exist or there are more ranks on a machine than GPUs.
    """
    device = choose_device(device_name)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield alone(device)
        return
    rank, world, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"rank {rank} is number {local} on this machine, which has {torch.cuda.device_count()} GPUs: "
                "give torchrun a smaller --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(minutes=timeout_minutes)
    store, rank, world = next(dist.rendezvous("env://", rank, world, timeout=timeout))
    # torchrun keeps one store over restarts: without a name of its own, an attempt may read where a dead rank listened
    store = dist.PrefixStore(f"attempt-{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    try:
        yield Group(rank, world, device, distributed=True)
    except BaseException as error:
        # what the frames of an error hold (DDP) must go before the group does, or its end waits for ever
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        dist.destroy_process_group()
