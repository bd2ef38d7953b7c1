"""Linguistic spans beside a corpus (§6.1): a JSON-lines file that the user's own tagger wrote."""

from __future__ import annotations

import json
from pathlib import Path

from pretrain.data.corpus import Document
from spanbert.errors import UserError

LONGEST_LINE = 64 << 20  # characters: some four million spans


class SpanSidecar:
    """Line n holds [[start, end], ...] of document n: half-open, in characters of the document.

    Lines are read as documents come by. Raises UserError naming the line that is missing, malformed, too long or too
    many.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = path.open(encoding="utf-8", errors="replace")
        self._line = 0
        self._spans: list[tuple[int, int]] = []

    def take(self, documents: list[Document]) -> list[list[tuple[int, int]]]:
        """The spans of each document (or part), counted from the part's first character."""
        taken = []
        for document in documents:
            while self._line <= document.index:
                self._spans = self._read()
            end = document.start + len(document.text)
            taken.append(
                [
                    (start - document.start, stop - document.start)
                    for start, stop in self._spans
                    if document.start <= start and stop <= end
                ]
            )
        return taken

    def finish(self, documents: int) -> None:
        """Read what belongs to empty documents at the end and check that no line is left."""
        while self._line < documents:
            self._read()
        if self._handle.readline(LONGEST_LINE).strip():
            raise UserError(f"{self.path} has more lines than the input has documents ({documents:,}): one line each")
        self._handle.close()

    def _read(self) -> list[tuple[int, int]]:
        line = self._handle.readline(LONGEST_LINE + 1)
        self._line += 1
        if len(line) > LONGEST_LINE:
            raise UserError(
                f"{self.path}:{self._line}: longer than {LONGEST_LINE:,} characters, the most for a document"
            )
        if not line:
            raise UserError(
                f"{self.path} ends at line {self._line - 1}, but document {self._line} exists: one line each"
            )
        try:
            given = json.loads(line)
            spans = [(start, end) for start, end in given]
            good = isinstance(given, list) and all(type(s) is int and type(e) is int and 0 <= s < e for s, e in spans)
        except (ValueError, TypeError):
            good = False
        if not good:
            raise UserError(
                f"{self.path}:{self._line}: expected [[start, end], ...] with 0 <= start < end, got {line[:60]!r}"
            )
        return spans
