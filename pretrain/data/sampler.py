"""Which sequences a step sees: a pure function of (seed, step), split over micro-batches and ranks.

Step s takes the positions s·B … s·B + B − 1 of an endless list: epoch 0 in its random order, epoch 1 in another, and so
on. Each position is an (epoch, index) pair, which is also what its mask is a function of.
"""

from __future__ import annotations

import heapq

import numpy as np

from pretrain.masking.counter_rng import below, draw, stream

SHIFT = 32  # purpose of the stream of shifts; those below are the masks'


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
