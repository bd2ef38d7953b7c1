"""The inverted index: for every term the passages it stands in, as flat arrays, and BM25 over them.

Terms are kept as 64-bit hashes in a sorted array, so the arrays are used as they lie on disk, memory-mapped, and opening
an index reads nothing (a million terms collide with a chance of 3 in 10⁸). Term frequencies are stored, not finished scores:
every new passage changes the mean length and the document frequencies, and with them all scores.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.retrieval.passages import Passage

K1 = 1.2  # how soon more of the same word stops to count
BLOCK = 512  # scores of which the largest is looked at first
MANY = 0.02  # share of all passages above which a term is looked up for the passages in question only
ROUNDING = 1e-3  # of float32 sums
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
        self._numbers_P = array("i")
        self._counts_P = array("i")
        self._distinct = array("i")

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

    def adding(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        """The same passages, each added as it passes."""
        for passage in passages:
            self.add(passage.terms)
            yield passage

    def finish(self) -> Postings:
        """The postings of all passages added, numbered from 0."""
        keys = np.array([term_key(term) for term in self._numbers], dtype=np.uint64)
        order_K = np.argsort(keys, kind="stable")
        rank_K = np.empty(len(keys), dtype=np.int32)
        rank_K[order_K] = np.arange(len(keys))
        rank_P = rank_K[np.frombuffer(self._numbers_P, dtype=np.int32)]
        order_P = np.argsort(rank_P, kind="stable")
        passages_P = np.repeat(np.arange(len(self._distinct), dtype=np.int32), np.array(self._distinct))[order_P]
        counts_P = np.minimum(np.frombuffer(self._counts_P, dtype=np.int32), 65535).astype(np.uint16)[order_P]
        bounds = np.zeros(len(keys) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rank_P, minlength=len(keys)), out=bounds[1:])
        return Postings(keys[order_K], bounds, passages_P, counts_P)


def saturations(lengths_N: np.ndarray) -> np.ndarray:
    """(N,) float32: the count at which a term gives half of what it can, k₁ (1 − b + b · length ÷ mean length)."""
    lengths = lengths_N.astype(np.float32)
    mean = float(lengths.mean(dtype=np.float64)) if len(lengths) else 1.0
    return np.float32(K1) * (np.float32(1 - B) + np.float32(B / mean) * lengths)


def search_postings(
    postings: Postings, saturation_N: np.ndarray, query: Iterable[str], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best passages by BM25 and their scores, best first, each term counted as often as it stands in the query.

    Robertson & Zaragoza 2009 with Lucene's two simplifications: the idf log(1 + (N − n + ½) / (n + ½)), never negative,
    and no factor k₁ + 1. A term gives at most its idf. So rare terms come first, and once a passage cannot reach the
    k best any more, whatever the terms left give it, it is left out (Turtle & Flood 1995, MaxScore): the words that
    stand nearly everywhere are looked up for few passages only.
    """
    scores_N = np.zeros(len(saturation_N), dtype=np.float32)
    found = []
    for term, times in Counter(query).items():
        passages, counts = postings.of(term)
        idf = math.log(1 + (len(scores_N) - len(passages) + 0.5) / (len(passages) + 0.5))
        found.append((times * idf, passages, counts))
    found.sort(key=lambda one: len(one[1]))
    left = sum(weight for weight, _, _ in found)
    alive_N: np.ndarray | None = None
    for weight, passages, counts in found:
        if alive_N is None and len(passages) > MANY * len(scores_N):
            least = kth_bound(scores_N, k) - left - ROUNDING
            alive_N = scores_N >= least if least > 0 else None
        if alive_N is not None:
            kept = np.flatnonzero(alive_N[passages])
            passages, counts = passages[kept], counts[kept]
        part = counts.astype(np.float32)
        part /= saturation_N[passages] + part
        part *= np.float32(weight)
        scores_N[passages] += part
        left -= weight
    best = best_places(scores_N, k)
    return best, scores_N[best]


def kth_bound(scores_N: np.ndarray, k: int) -> float:
    """A number that at least k scores reach: the k-th largest of the maxima of blocks; 0 where there are fewer blocks."""
    starts = np.arange(0, len(scores_N), BLOCK)
    if not 0 < k <= len(starts):
        return 0.0
    return float(np.partition(np.maximum.reduceat(scores_N, starts), len(starts) - k)[len(starts) - k])


def best_places(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest scores above 0, largest first, equal ones in order; fewer where there are fewer."""
    if k < 1:
        return np.zeros(0, dtype=np.int64)
    bound = kth_bound(scores_N, k)
    chosen = np.flatnonzero(scores_N >= bound if bound > 0 else scores_N > 0)
    return chosen[np.argsort(-scores_N[chosen], kind="stable")][:k]
