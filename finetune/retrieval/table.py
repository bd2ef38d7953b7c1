"""Where the passages of an index stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from finetune.retrieval.passages import Passage


@dataclass(frozen=True)
class PassageTable:
    """N passages, those of a document one after the other, and how many terms each has."""

    document_N: np.ndarray  # int32, ascending
    start_N: np.ndarray  # int32, code points
    end_N: np.ndarray  # int32
    length_N: np.ndarray  # int32, terms, those of the title included

    def __len__(self) -> int:
        return len(self.document_N)

    @classmethod
    def of(cls, document: int, passages: Iterable[Passage]) -> PassageTable:
        """The passages of one document; none is held longer than its row takes to write."""
        rows = ((document, p.start, p.end, len(p.terms)) for p in passages)
        return cls(*np.fromiter(rows, dtype=np.dtype((np.int32, 4))).T.copy())

    @classmethod
    def joined(cls, tables: Sequence[PassageTable]) -> PassageTable:
        """One after the other."""
        empty = cls.of(0, [])
        return cls(*(np.concatenate([getattr(one, f.name) for one in [*tables, empty]]) for f in fields(cls)))

    def rows(self, first: int, stop: int, document: int) -> PassageTable:
        """Passages first … stop − 1, as those of the document of another number."""
        numbers = np.full(stop - first, document, dtype=np.int32)
        return PassageTable(numbers, self.start_N[first:stop], self.end_N[first:stop], self.length_N[first:stop])
