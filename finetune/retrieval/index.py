"""An index of passages: built in memory over some documents, or opened from a folder that `spanbert index` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from finetune.retrieval.documents import Document
from finetune.retrieval.merge_postings import open_postings
from finetune.retrieval.passages import document_passages
from finetune.retrieval.postings import Postings, PostingsBuilder, saturations, search_postings
from finetune.retrieval.store import SETTINGS, StoredDocuments, check_generation, generation_of, open_table
from finetune.retrieval.table import PassageTable
from finetune.retrieval.terms import terms
from spanbert.errors import UserError


@dataclass(frozen=True)
class Hit:
    """A passage that was found: [start:end] of the text of the retriever's ``document_of`` it."""

    document: int  # the same for all passages of one document, or of one part that the retriever gives alone
    start: int
    end: int
    score: float
    rank: int  # from 1


class Retriever(Protocol):
    """What finds passages for a question. Raises SearchFailed where it depends on others that do not answer."""

    @property
    def passages(self) -> int:
        """How many there are."""
        ...

    @property
    def document_count(self) -> int: ...

    def search(self, question: str, k: int) -> list[Hit]:
        """The k passages that fit best, best first; fewer where fewer share a term with the question."""
        ...

    def passage(self, number: int) -> Hit:
        """The passage of that number, 0 … passages − 1, with score 0 and its number + 1 as rank."""
        ...

    def document_of(self, hit: Hit) -> Document:
        """What hit.start and hit.end count in: the document, or a part of it that holds the passage."""
        ...

    def document(self, name: str) -> Document | None:
        """The document of that id with its whole text, or None."""
        ...


class SearchFailed(UserError):
    """The search itself failed, whatever was asked: asking the same again later may help."""


class Index:
    """Passages of documents, found by BM25."""

    def __init__(self, documents: Sequence[Document], table: PassageTable, postings: Postings) -> None:
        self.documents = documents
        self.table = table
        self.postings = postings

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Index:
        """An index in memory."""
        builder = PostingsBuilder()
        tables = []
        for number, document in enumerate(documents):
            passages = document_passages(document.title, document.text)
            tables.append(PassageTable.of(number, builder.adding(passages)))
        return cls(list(documents), PassageTable.joined(tables), builder.finish())

    @classmethod
    def open(cls, folder: Path | str) -> Index:
        """An index that `spanbert index` wrote, memory-mapped. Raises UserError where there is none or it is damaged."""
        folder = Path(folder)
        for last in (False, True):
            generation, manifest = generation_of(folder)
            if manifest.get("settings") != SETTINGS:
                raise UserError(
                    f"{folder}: the index is of another version; make it anew: spanbert index PATHS --output {folder}"
                )
            damage = check_generation(generation, manifest) if generation.is_dir() else None
            if damage and (last or generation_of(folder)[0] == generation):
                raise UserError(f"{folder}: the index is damaged ({damage}); make it anew.")
            try:
                return cls(StoredDocuments(generation), open_table(generation), open_postings(generation))
            except FileNotFoundError:  # replaced since its name was read: read the new name
                if last:
                    break
            except (ValueError, OSError) as error:
                raise UserError(f"{folder}: the index is damaged ({error}); make it anew.") from None
        raise UserError(f"{folder}: the index is damaged (files are missing); make it anew.")

    @property
    def passages(self) -> int:
        return len(self.table)

    @property
    def document_count(self) -> int:
        return len(self.documents)

    def document_of(self, hit: Hit) -> Document:
        return self.documents[hit.document]

    def document(self, name: str) -> Document | None:
        number = self._numbers.get(name)
        return None if number is None else self.documents[number]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        documents = self.documents
        if isinstance(documents, StoredDocuments):  # without reading their texts
            return {record.id: number for number, record in enumerate(documents.records())}
        return {document.id: number for number, document in enumerate(documents)}

    @cached_property
    def _saturation_N(self) -> np.ndarray:
        return saturations(self.table.length_N)

    def search(self, question: str, k: int) -> list[Hit]:
        """The k best passages by BM25, best first; those without a term of the question are not among them."""
        best, scores = search_postings(self.postings, self._saturation_N, terms(question), k)
        return [self._hit(int(number), float(scores[rank - 1]), rank) for rank, number in enumerate(best, 1)]

    def passage(self, number: int) -> Hit:
        return self._hit(number, 0.0, number + 1)

    def _hit(self, number: int, score: float, rank: int) -> Hit:
        table = self.table
        return Hit(int(table.document_N[number]), int(table.start_N[number]), int(table.end_N[number]), score, rank)
