"""Documents: files and folders of several kinds read as plain text with the pages or headings that an answer cites."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A page or heading, for citation: it goes on until the next one begins."""

    start: int  # code point where it begins in the document's text
    label: str  # "page 3", or the heading's text


@dataclass(frozen=True)
class Document:
    """A text to answer from."""

    id: str  # stable: the path relative to the indexed folder, or given by the caller
    title: str
    text: str
    sections: tuple[Section, ...] = ()

    def section_at(self, place: int) -> str | None:
        """Label of the section that the character ``place`` stands in; None before the first one."""
        label = None
        for section in self.sections:
            if section.start > place:
                break
            label = section.label
        return label


@dataclass(frozen=True)
class Skipped:
    """A file that could not be read, and why: ``path: reason`` is a line for people."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
