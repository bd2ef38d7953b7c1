"""Which sequences a step sees, by address: a pure function of (seed, step), split over micro-batches and ranks.

Step s takes the positions s·B … s·B + B − 1 of an endless list: epoch 0 in its random order, epoch 1 in another, and so
on. Each position is an (epoch, index) pair, which is also what addresses its mask. Nothing here is consumed or counted,
so resuming is naming the next step, and the number of workers, ranks or micro-batches changes only who computes what.
"""

from __future__ import annotations

import dataclasses
import heapq
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pretrain.data.blocks import Blocks
from pretrain.masking.counter_rng import below, draw, sequence_keys, stream
from pretrain.masking.masker import Masker
from spanbert.model.batch import MaskedBatch, as_tensor

SHIFT = 32  # purpose of the stream of shifts; those below are the masks'


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

    def pin_memory(self) -> StepBatch:
        return dataclasses.replace(self, pinned=[part.tensors(pin=True) for part in self.masked])


def shifted_positions(cu_seqlens: np.ndarray, keys_B: np.ndarray, table: int) -> np.ndarray:
    """(T,) int64: each sequence's positions begin at a random place where it still fits into the table of positions.

    Attention then cannot learn *where* but only *how far*, and short blocks train the whole table: what it learns holds
    in longer ones (Kiyono et al. 2021, shifted absolute position embeddings). keys_B: ``sequence_keys``.
    """
    lengths_B = np.diff(cu_seqlens)
    shift_B = below(draw(stream(keys_B, SHIFT), np.zeros(1, np.int64)), table - lengths_B + 1)
    return np.arange(cu_seqlens[-1]) + np.repeat(shift_B - cu_seqlens[:-1], lengths_B)


class DataOrder:
    """(seed, step) → the global batch as (epoch, index) pairs."""

    def __init__(self, sequences: int, batch_size: int, seed: int):
        self.sequences, self.batch_size, self.seed = sequences, batch_size, seed
        self._orders: dict[int, np.ndarray] = {}

    def addresses(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """→ epochs (B,), indices (B,) int64."""
        position = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epochs, within = position // self.sequences, position % self.sequences
        indices = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[within[here]]
        return epochs, indices

    def locate(self, step: int) -> dict[str, list[int]]:
        """A step's address for a log."""
        epochs, indices = self.addresses(step)
        return {"epochs": np.unique(epochs).tolist(), "blocks": indices.tolist()}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            bits = np.random.Philox(key=[self.seed, epoch])
            self._orders[epoch] = np.random.Generator(bits).permutation(self.sequences)
        return self._orders[epoch]


def split_batch(lengths_B: np.ndarray, budget: int, world: int = 1) -> list[np.ndarray]:
    """Cut a batch into micro-batches of at most ``budget`` tokens, equally many for each of ``world`` ranks.

    The encoder knows no padding, so a micro-batch is a row budget that sequences of any lengths share; attention never
    crosses from one into the next. Longest first, each into the lightest part: parts come out equally heavy, which
    keeps ranks in step. Returns positions 0 … B − 1; part a · world + r is micro-batch a of rank r. Parts are as few
    as the budget allows, never empty (B must be at least ``world``), and may go over the budget only when a sequence
    alone does or when B is so small that one sequence more would be missing elsewhere.
    """
    longest_first = np.argsort(-lengths_B, kind="stable").tolist()
    rounds = max(1, -(-int(lengths_B.sum()) // (budget * world)))
    rounds = min(rounds, len(lengths_B) // world)
    while True:
        loads = [(0, number) for number in range(rounds * world)]
        parts: list[list[int]] = [[] for _ in loads]
        for position in longest_first:
            load, number = loads[0]
            parts[number].append(position)
            heapq.heapreplace(loads, (load + int(lengths_B[position]), number))
        if max(loads)[0] <= budget or (rounds + 1) * world > len(lengths_B):
            return [np.array(part, dtype=np.int64) for part in parts]
        rounds += 1


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


def _as_it_is(batch: StepBatch) -> StepBatch:
    return batch


def _leave_signals_to_the_loop(_worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach workers too; the loop still wants its batches to end in good order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
