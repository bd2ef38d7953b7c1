"""Joining the postings of several parts into one file each, in bounded memory.

A part numbers its passages from 0; a map says what each is called in the whole, or that it is dropped. An index that
is updated is itself the first part: what did not change is copied and renumbered, not read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from finetune.retrieval.postings import Postings

BLOCK_POSTINGS = 4 * 2**20  # of a part are in memory at a time
#: file name → field of Postings
FILES = {"keys": "keys_K", "bounds": "bounds_K1", "passages": "passages_P", "counts": "counts_P"}


@dataclass(frozen=True)
class Part:
    """Some postings, and the number in the whole of each of their passages: int32, −1 for one that is dropped."""

    postings: Postings
    numbers_N: np.ndarray


def save_postings(folder: Path, postings: Postings) -> None:
    for name, field in FILES.items():
        np.save(folder / f"{name}.npy", getattr(postings, field))


def open_postings(folder: Path) -> Postings:
    """Memory-mapped."""
    return Postings(**{field: np.load(folder / f"{name}.npy", mmap_mode="r") for name, field in FILES.items()})


def merge_postings(parts: Sequence[Part], folder: Path) -> None:
    """Write the postings of all parts into ``folder``; terms that no kept passage has are dropped."""
    kept = [np.concatenate([counts for _, counts, _, _ in _blocks(part)] or [np.zeros(0, np.int64)]) for part in parts]
    present = [part.postings.keys_K[counts > 0] for part, counts in zip(parts, kept, strict=True)]
    keys_K = np.unique(np.concatenate([*present, np.zeros(0, np.uint64)]))
    bounds_K1 = np.zeros(len(keys_K) + 1, dtype=np.int64)
    for keys, counts in zip(present, kept, strict=True):
        bounds_K1[1:][np.searchsorted(keys_K, keys)] += counts[counts > 0]
    np.cumsum(bounds_K1, out=bounds_K1)
    np.save(folder / "keys.npy", keys_K)
    np.save(folder / "bounds.npy", bounds_K1)
    total = int(bounds_K1[-1])
    passages_P = _writable(folder / "passages.npy", np.int32, total)
    counts_P = _writable(folder / "counts.npy", np.uint16, total)
    filled_K = bounds_K1[:-1].copy()
    for part in parts:
        for keys, counts, passages, times in _blocks(part):
            held = counts > 0
            place_K = np.searchsorted(keys_K, keys[held])
            counts = counts[held]
            within = np.arange(len(passages)) - np.repeat(np.cumsum(counts) - counts, counts)
            target_P = np.repeat(filled_K[place_K], counts) + within
            passages_P[target_P], counts_P[target_P] = passages, times
            filled_K[place_K] += counts
    for array in (passages_P, counts_P):
        if isinstance(array, np.memmap):
            array.flush()


def _writable(file: Path, dtype: type, size: int) -> np.ndarray:
    """A new .npy file of so many values; one of none cannot be mapped, and is written at once."""
    if not size:
        np.save(file, np.zeros(0, dtype))
        return np.zeros(0, dtype)
    return open_memmap(file, mode="w+", dtype=dtype, shape=(size,))


def _blocks(part: Part) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Keys of a stretch of terms, how many postings each keeps, and those: passages in the whole, counts."""
    postings = part.postings
    bounds = np.asarray(postings.bounds_K1)
    first = 0
    while first < len(bounds) - 1:
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + BLOCK_POSTINGS, side="right")) - 1)
        stretch = slice(int(bounds[first]), int(bounds[last]))
        numbers = part.numbers_N[postings.passages_P[stretch]]
        keep = numbers >= 0
        term = np.repeat(np.arange(last - first), np.diff(bounds[first : last + 1]))
        counts = np.bincount(term[keep], minlength=last - first)
        yield postings.keys_K[first:last], counts, numbers[keep], postings.counts_P[stretch][keep]
        first = last
