"""Which sequences a step sees, by address: a pure function of (seed, step), split over micro-batches and ranks.

Step s takes the positions s·B … s·B + B − 1 of an endless list: epoch 0 in its random order, epoch 1 in another, and so
on. Each position is an (epoch, index) pair, which is also what addresses its mask. Nothing here is consumed or counted,
so resuming is naming the next step, and the number of workers, ranks or micro-batches changes only who computes what.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.blocks import Blocks
from pretrain.masking import Masker
from spanbert.models import Targets


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes."""

    input_ids_T: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    targets: Targets

    def to(self, device: torch.device) -> MicroBatch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return MicroBatch(
            move(self.input_ids_T), move(self.cu_seqlens), self.max_seqlen, Targets(*map(move, self.targets))
        )

    def pin_memory(self) -> MicroBatch:
        return MicroBatch(
            self.input_ids_T.pin_memory(),
            self.cu_seqlens.pin_memory(),
            self.max_seqlen,
            Targets(*(t.pin_memory() for t in self.targets)),
        )


@dataclass(frozen=True)
class StepBatch:
    """This rank's share of one optimizer step."""

    step: int
    micro_batches: list[MicroBatch]

    @property
    def tokens(self) -> int:
        return sum(m.input_ids_T.numel() for m in self.micro_batches)

    @property
    def target_counts(self) -> tuple[int, int]:
        """MLM and SBO targets in this rank's share."""
        return (
            sum(m.targets.ids_M.numel() for m in self.micro_batches),
            sum(m.targets.sbo_K.numel() for m in self.micro_batches),
        )

    def pin_memory(self) -> StepBatch:
        return StepBatch(self.step, [m.pin_memory() for m in self.micro_batches])


class DataOrder:
    """(seed, step) → the global batch as (epoch, index) pairs."""

    def __init__(self, sequences: int, batch_size: int, seed: int):
        self.sequences, self.batch_size, self.seed = sequences, batch_size, seed
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def addresses(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """→ epochs (B,), indices (B,) int64."""
        position = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epochs, within = position // self.sequences, position % self.sequences
        indices = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[within[here]]
        return epochs, indices

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.sequences)


def split_batch(batch_size: int, micro_batch_size: int, world: int) -> list[np.ndarray]:
    """Positions 0 … B − 1 in the fewest equal parts of at most ``micro_batch_size``, a multiple of ``world`` parts.

    Part a · world + r is micro-batch a of rank r.
    """
    accumulation = max(1, -(-batch_size // (micro_batch_size * world)))
    accumulation = min(accumulation, batch_size // world)
    return np.array_split(np.arange(batch_size), accumulation * world)


class StepBatches(Dataset):
    """Dataset whose item ``step`` is this rank's masked share of that step."""

    def __init__(
        self, blocks: Blocks, masker: Masker, order: DataOrder, micro_batch_size: int, rank: int = 0, world: int = 1
    ):
        self.blocks, self.masker, self.order = blocks, masker, order
        self.parts = split_batch(order.batch_size, micro_batch_size, world)[rank::world]

    def __getitem__(self, step: int) -> StepBatch:
        epochs, indices = self.order.addresses(step)
        return StepBatch(step, [self._micro_batch(epochs[part], indices[part]) for part in self.parts])

    def _micro_batch(self, epochs: np.ndarray, indices: np.ndarray) -> MicroBatch:
        by_length = np.argsort(self.blocks.lengths[indices], kind="stable")  # neighbours of equal length go together
        return masked_micro_batch(self.blocks, self.masker, epochs[by_length], indices[by_length])


def masked_micro_batch(blocks: Blocks, masker: Masker, epochs: np.ndarray, indices: np.ndarray) -> MicroBatch:
    """Fetch sequences, mask them, and make tensors of the result."""
    flat_ids_T, cu_seqlens, spans = blocks.packed(indices)
    masked = masker.mask(flat_ids_T, cu_seqlens, epoch=epochs, indices=indices, spans=spans)
    targets = Targets(
        positions_M=torch.from_numpy(masked.target_positions),
        ids_M=torch.from_numpy(masked.target_ids),
        left_S=torch.from_numpy(masked.span_left),
        right_S=torch.from_numpy(masked.span_right),
        span_M=torch.from_numpy(masked.target_span),
        offset_M=torch.from_numpy(masked.target_offset),
        sbo_K=torch.from_numpy(masked.sbo_targets),
    )
    return MicroBatch(
        input_ids_T=torch.from_numpy(masked.input_ids),
        cu_seqlens=torch.from_numpy(np.ascontiguousarray(masked.cu_seqlens, dtype=np.int32)),
        max_seqlen=int(np.diff(cu_seqlens).max(initial=0)),
        targets=targets,
    )


def load_steps(batches: StepBatches, first: int, last: int, workers: int, pin: bool) -> DataLoader:
    """Iterate over the steps first … last − 1, prepared ahead by ``workers`` processes (0: in this one)."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
    )
