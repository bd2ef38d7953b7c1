"""The inverted index: for every term the passages it stands in, as flat arrays, and BM25 over them.

Terms are kept as 64-bit hashes in a sorted array, so the arrays are used as they lie on disk, memory-mapped, and opening
an index reads nothing (a million terms collide with a chance of 3 in 10⁸). Term frequencies are stored, not finished scores:
every new passage changes the mean length and the document frequencies, and with them all scores.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

K1 = 1.2  # how soon more of the same word stops to count
B = 0.75  # how much a passage's length is taken into account


@dataclass(frozen=True)
class Postings:
    """K terms over passages: those of term keys[i] are passages[bounds[i] : bounds[i + 1]], ascending."""

    keys_K: np.ndarray  # uint64, ascending
    bounds_K1: np.ndarray  # int64, K + 1
    passages_P: np.ndarray  # int32
    counts_P: np.ndarray  # uint16, how often the term stands in the passage

    def of(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """Passages and counts of a term; empty for one that is not there."""
        key = term_key(term)
        place = int(np.searchsorted(self.keys_K, key))
        if place == len(self.keys_K) or self.keys_K[place] != key:
            return self.passages_P[:0], self.counts_P[:0]
        part = slice(int(self.bounds_K1[place]), int(self.bounds_K1[place + 1]))
        return self.passages_P[part], self.counts_P[part]


def term_key(term: str) -> np.uint64:
    """The term's hash, the same on every machine."""
    return np.uint64(int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little"))


class PostingsBuilder:
    """Collects passages term by term and sorts them at the end."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # term → number, in the order of first appearance
        self._numbers_P: list[int] = []
        self._counts_P: list[int] = []
        self._distinct: list[int] = []

    def __len__(self) -> int:
        """Postings held."""
        return len(self._numbers_P)

    def add(self, terms: Sequence[str]) -> None:
        """One passage."""
        numbers = self._numbers
        counts = Counter(terms)
        self._numbers_P.extend([numbers.setdefault(term, len(numbers)) for term in counts])
        self._counts_P.extend(counts.values())
        self._distinct.append(len(counts))

    def finish(self) -> Postings:
        """The postings of all passages added, numbered from 0."""
        keys = np.array([term_key(term) for term in self._numbers], dtype=np.uint64)
        order_K = np.argsort(keys, kind="stable")
        rank_K = np.empty(len(keys), dtype=np.int64)
        rank_K[order_K] = np.arange(len(keys))
        rank_P = rank_K[np.array(self._numbers_P, dtype=np.int64)]
        order_P = np.argsort(rank_P, kind="stable")
        passages_P = np.repeat(np.arange(len(self._distinct), dtype=np.int32), self._distinct)[order_P]
        counts_P = np.minimum(np.array(self._counts_P, dtype=np.int64), 65535).astype(np.uint16)[order_P]
        bounds = np.zeros(len(keys) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rank_P, minlength=len(keys)), out=bounds[1:])
        return Postings(keys[order_K], bounds, passages_P, counts_P)


def bm25(postings: Postings, lengths_N: np.ndarray, mean_length: float, query: Iterable[str]) -> np.ndarray:
    """(N,) float32 scores of all passages for the terms of a query, each counted as often as it stands there.

    Robertson & Zaragoza 2009 with Lucene's two simplifications: the idf log(1 + (N − n + ½) / (n + ½)), never negative,
    and no factor k₁ + 1.
    """
    scores_N = np.zeros(len(lengths_N), dtype=np.float32)
    for term, times in Counter(query).items():
        passages, counts = postings.of(term)
        if not len(passages):
            continue
        idf = math.log(1 + (len(lengths_N) - len(passages) + 0.5) / (len(passages) + 0.5))
        frequency = counts.astype(np.float32)
        saturation = np.float32(K1) * (np.float32(1 - B) + np.float32(B / mean_length) * lengths_N[passages])
        scores_N[passages] += np.float32(times * idf) * frequency / (frequency + saturation)
    return scores_N
