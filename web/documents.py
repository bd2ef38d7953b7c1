"""Uploaded documents, kept in memory until they are deleted or the server ends."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

from finetune.retrieval.documents import Document, document_of_bytes
from spanbert.errors import UserError
from web.config import Limits
from web.problems import Problem


class DocumentStore:
    """Documents by id. An id is a hash of name and content: the same file uploaded twice is one document."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._documents: dict[str, Document] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def characters(self) -> int:
        """Of all texts together."""
        return sum(len(document.text) for document in self.all())

    def all(self) -> list[Document]:
        """In the order of uploading."""
        with self._lock:
            return list(self._documents.values())

    def add(self, name: str, data: bytes) -> tuple[Document, bool]:
        """→ the document, and whether it is new. Raises Problem when it is empty or unreadable, or there is no room."""
        if not data.strip():
            raise Problem("empty", f"{name} is empty", field="body")
        try:
            read = document_of_bytes(name, data)
        except UserError as error:
            raise Problem("unreadable-document", str(error), field="body") from None
        if not read.text.strip():
            raise Problem("empty", f"{name} holds no text", field="body")
        number = hashlib.sha256(name.encode() + b"\0" + data).hexdigest()[:16]
        document = Document(number, read.title, read.text, read.sections)
        with self._lock:
            if number in self._documents:
                return self._documents[number], False
            if len(self._documents) >= self.limits.documents:
                raise Problem("store-full", f"{self.limits.documents:,} documents are kept already; delete some")
            kept = sum(len(one.text) for one in self._documents.values())
            if kept + len(document.text) > self.limits.stored:
                detail = f"{kept:,} of {self.limits.stored:,} characters are taken, {name} has {len(document.text):,}"
                raise Problem("store-full", f"{detail}; delete some documents", field="body")
            self._documents[number] = document
        return document, True

    def get(self, number: str, field: str | None = None) -> Document:
        """Raises Problem when it is not there."""
        with self._lock:
            document = self._documents.get(number)
        if document is None:
            raise Problem("unknown-document", f"no uploaded document has the id {number[:80]!r}", field=field)
        return document

    def select(self, numbers: Sequence[str]) -> tuple[Document, ...]:
        """These documents, each once. Raises Problem for one that is not there, named as documents[i]."""
        chosen = {number: self.get(number, f"documents[{place}]") for place, number in enumerate(numbers)}
        return tuple(chosen.values())

    def remove(self, number: str) -> None:
        """Raises Problem when it is not there."""
        self.get(number)
        with self._lock:
            self._documents.pop(number, None)

    def clear(self) -> int:
        """→ how many there were."""
        with self._lock:
            count = len(self._documents)
            self._documents.clear()
        return count
