"""An index of passages: built in memory over some documents, or opened from a folder that `spanbert index` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from finetune.retrieval.documents import Document
from finetune.retrieval.passages import cut_passages
from finetune.retrieval.postings import Postings, PostingsBuilder, bm25
from finetune.retrieval.terms import terms


@dataclass(frozen=True)
class Hit:
    """A passage that was found: documents[document].text[start:end]."""

    document: int
    start: int
    end: int
    score: float
    rank: int  # from 1


class Retriever(Protocol):
    """What finds passages for a question."""

    @property
    def documents(self) -> Sequence[Document]: ...

    @property
    def passages(self) -> int:
        """How many there are."""
        ...

    def search(self, question: str, k: int) -> list[Hit]:
        """The k passages that fit best, best first; fewer where fewer share a term with the question."""
        ...

    def passage(self, number: int) -> Hit:
        """The passage of that number, 0 … passages − 1, with score 0 and its number + 1 as rank."""
        ...


@dataclass(frozen=True)
class PassageTable:
    """Where N passages stand, and how many terms each has."""

    document_N: np.ndarray  # int32
    start_N: np.ndarray  # int32, code points
    end_N: np.ndarray  # int32
    length_N: np.ndarray  # int32, terms, those of the title included

    def __len__(self) -> int:
        return len(self.document_N)


class Index:
    """Passages of documents, found by BM25."""

    def __init__(self, documents: Sequence[Document], table: PassageTable, postings: Postings) -> None:
        self.documents = documents
        self.table = table
        self.postings = postings
        self.mean_length = float(np.mean(table.length_N)) if len(table) else 1.0

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Index:
        """An index in memory."""
        part = IndexPart()
        for document in documents:
            part.add(document)
        return cls(list(documents), part.table(), part.postings.finish())

    @property
    def passages(self) -> int:
        return len(self.table)

    def search(self, question: str, k: int) -> list[Hit]:
        """The k best passages by BM25, best first; those without a term of the question are not among them."""
        scores_N = bm25(self.postings, self.table.length_N, self.mean_length, terms(question))
        k = min(k, len(scores_N))
        if k < 1:
            return []
        worst = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
        chosen = np.flatnonzero((scores_N >= worst) & (scores_N > 0))
        chosen = chosen[np.argsort(-scores_N[chosen], kind="stable")][:k]
        return [self._hit(int(number), float(scores_N[number]), rank) for rank, number in enumerate(chosen, 1)]

    def passage(self, number: int) -> Hit:
        return self._hit(number, 0.0, number + 1)

    def _hit(self, number: int, score: float, rank: int) -> Hit:
        table = self.table
        return Hit(int(table.document_N[number]), int(table.start_N[number]), int(table.end_N[number]), score, rank)


class IndexPart:
    """Passages of some documents on their way into an index. A document's title counts as a part of each passage."""

    def __init__(self) -> None:
        self.documents = 0
        self.postings = PostingsBuilder()
        self._places: list[tuple[int, int, int]] = []  # document, start, end

    def add(self, document: Document) -> int:
        """→ how many passages the document has."""
        before, title = len(self._places), terms(document.title)
        for passage in cut_passages(document.text):
            self._places.append((self.documents, passage.start, passage.end))
            self.postings.add([*title, *passage.terms])
        self.documents += 1
        return len(self._places) - before

    def table(self) -> PassageTable:
        places = np.array(self._places, dtype=np.int32).reshape(-1, 3)
        return PassageTable(places[:, 0], places[:, 1], places[:, 2], np.array(self.postings.lengths, dtype=np.int32))
