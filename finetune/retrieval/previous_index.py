"""The index that an update starts from: what of it can be kept, and whether anything has to be done at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.retrieval.documents import Sources
from finetune.retrieval.merge_postings import Part, open_postings
from finetune.retrieval.store import (
    MANIFEST,
    SETTINGS,
    StoredDocument,
    StoredDocuments,
    check_generation,
    generation_of,
    open_table,
)
from finetune.retrieval.table import PassageTable
from spanbert.errors import UserError


@dataclass
class PreviousIndex:
    """The index that there was; empty where there was none, or one made with other settings."""

    generation: Path | None
    documents: StoredDocuments | None
    parts: list[Part]
    table: PassageTable | None
    first_D: np.ndarray  # the first passage of each document
    records: dict[str, tuple[int, StoredDocument]]  # by id
    by_source: dict[str, list[str]]  # source → ids
    hashes: dict[str, str]  # of sources that were read without loss

    @classmethod
    def open(cls, folder: Path) -> PreviousIndex:
        nothing = cls(None, None, [], None, np.zeros(0, np.int64), {}, {}, {})
        if not (folder / MANIFEST).is_file():
            return nothing
        try:
            generation, manifest = generation_of(folder)
            if manifest.get("settings") != SETTINGS or check_generation(generation, manifest, read=True):
                return nothing
        except UserError:
            return nothing
        try:
            documents, table, postings = StoredDocuments(generation), open_table(generation), open_postings(generation)
            lines = (generation / "sources.jsonl").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return nothing  # damaged: made anew
        records = {one.id: (number, one) for number, one in enumerate(documents.records())}
        by_source: dict[str, list[str]] = {}
        for name, (_, record) in records.items():
            by_source.setdefault(record.source, []).append(name)
        numbers = np.full(len(table), -1, dtype=np.int32)
        first_D = np.searchsorted(table.document_N, np.arange(len(documents) + 1))
        hashes = dict(json.loads(line) for line in lines)
        return cls(generation, documents, [Part(postings, numbers)], table, first_D, records, by_source, hashes)

    @property
    def passages(self) -> int:
        return 0 if self.table is None else len(self.table)

    def holds(self, sources: Sources) -> bool:
        """Whether it was made of exactly these files, by their hashes, without loss: then there is nothing to write."""
        if (
            self.hashes.keys() != {source.id for source in sources.files}
            or not self.by_source.keys() <= self.hashes.keys()
        ):
            return False
        try:
            return all(source.sha256() == self.hashes[source.id] for source in sources.files)
        except OSError:  # the update says which file cannot be read
            return False
