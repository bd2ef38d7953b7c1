"""One step's share of the data as masked micro-batches, and loading them ahead in worker processes.

Which sequences those are is ``pretrain.data.sampler``'s: nothing here is consumed or counted, so resuming is naming the
next step, and the number of workers, ranks or micro-batches changes only who computes what.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pretrain.data.blocks import Blocks
from pretrain.data.sampler import DataOrder, shifted_positions, split_batch
from pretrain.masking.counter_rng import sequence_keys
from pretrain.masking.masker import Masker
from spanbert.errors import UserError
from spanbert.model.batch import MaskedBatch, as_tensor


@dataclass(frozen=True)
class StepBatch:
    """This rank's share of one optimizer step, as arrays: they go through a pipe when a worker made them.

    (Tensors would go through shared memory, at the price of an open file each: hundreds a step.)
    """

    step: int
    masked: list[MaskedBatch[np.ndarray]]
    addresses: list[tuple[np.ndarray, np.ndarray]]
    """(epochs, indices) of the sequences of each micro-batch."""
    pinned: list[MaskedBatch[Tensor]] | None = None
    cursor: Any = None
    """Where the data continues after this step, for data that is a stream (``pretrain.data.streaming``)."""

    def micro_batches(self, seed: int = 0, shift_within: int | None = None) -> list[MaskedBatch[Tensor]]:
        """What the forward passes take. shift_within: rows of the table within which positions are shifted (by seed)."""
        made = [part.tensors() for part in self.masked] if self.pinned is None else self.pinned
        if shift_within is None:
            return made
        keys = [sequence_keys(seed, epochs, indices) for epochs, indices in self.addresses]
        shifted = []
        for part, tensors, keys_B in zip(self.masked, made, keys, strict=True):
            positions_T = shifted_positions(part.packed.cu_seqlens, keys_B, shift_within)
            packed = tensors.packed._replace(position_ids_T=as_tensor(positions_T, pin=self.pinned is not None))
            shifted.append(tensors._replace(packed=packed))
        return shifted

    @property
    def tokens(self) -> int:
        return sum(part.packed.tokens for part in self.masked)

    @property
    def target_counts(self) -> tuple[int, int]:
        """MLM and SBO targets in this rank's share."""
        return sum(m.targets.ids_M.size for m in self.masked), sum(m.targets.sbo_K.size for m in self.masked)

    def states(self, with_sbo: bool) -> int:
        """Last states that the heads look at (``Targets.states``)."""
        boundaries = 2 * sum(m.targets.left_S.size for m in self.masked) if with_sbo else 0
        return self.target_counts[0] + boundaries

    def pin_memory(self) -> StepBatch:
        return dataclasses.replace(self, pinned=[part.tensors(pin=True) for part in self.masked])


class StepBatches(Dataset):
    """Dataset whose item ``step`` is this rank's masked share of that step."""

    def __init__(self, blocks: Blocks, masker: Masker, order: DataOrder, budget: int, rank: int = 0, world: int = 1):
        self.blocks, self.masker, self.order, self.budget = blocks, masker, order, budget
        self.rank, self.world = rank, world

    def __getitem__(self, step: int) -> StepBatch:
        addresses = self.addresses(step)
        return StepBatch(step, [self.mask(*part) for part in addresses], addresses)

    def addresses(self, step: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(epochs, indices) of each of this rank's micro-batches, longest sequence first."""
        epochs, indices = self.order.addresses(step)
        parts = split_batch(self.blocks.lengths[indices], self.budget, self.world)
        return [(epochs[part], indices[part]) for part in parts[self.rank :: self.world]]

    def mask(self, epochs: np.ndarray, indices: np.ndarray) -> MaskedBatch:
        """Fetch sequences and mask them."""
        packed, spans = self.blocks.packed(indices)
        return self.masker.mask(packed, epoch=epochs, indices=indices, spans=spans)


def load_steps(batches: Dataset, first: int, last: int, workers: int, pin: bool) -> Iterator[StepBatch]:
    """Iterate over the steps first … last − 1, prepared ahead by ``workers`` processes (0: in this one).

    A dataset that is a stream knows itself where it begins, and has one worker at most: it can only be read in order.
    """
    streams = isinstance(batches, IterableDataset)
    workers = min(workers, 1) if streams else workers
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=None if streams else range(first, last),
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_leave_signals_to_the_loop,
        )
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_loop(_worker: int) -> None:
    """Signals that reach the whole process group (Ctrl-C, a closed terminal, a scheduler) are for the loop to answer: it
    still wants its batches to end in good order. SIGTERM from the loop's own process is its word that it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_loop_says_so, args=(os.getppid(),), daemon=True).start()


def _end_when_the_loop_says_so(loop: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != loop:
        pass
    os._exit(0)


@contextlib.contextmanager
def report_lost_worker() -> Iterator[None]:
    """Turn what PyTorch raises of a worker, wherever the loop happens to be, into one sentence (UserError).

    The death of one; and an error of what it reads, whose message then is PyTorch's traceback with ours at the end.
    """
    try:
        yield
    except (UserError, OSError) as error:
        if not str(error).startswith("Caught "):
            raise
        raise UserError(str(error).strip().rpartition("\n")[2].partition(": ")[2]) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            "a process that prepares batches was killed, perhaps because memory ran out: continue from the last "
            "checkpoint with the same command and --resume, with fewer --workers if it happens again"
        ) from error
