"""Documents: files and folders of several kinds as plain text, with the pages or headings that an answer cites.

Files come one at a time, so that a collection of any size is read in the memory of its largest file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetune.retrieval.readers import READERS, Section, Unreadable, has_word
from spanbert.errors import UserError

LARGEST_FILE = 256 * 2**20  # bytes of a file that is one document, and of a line of a .jsonl file


@dataclass(frozen=True)
class Document:
    """A text to answer from."""

    id: str  # stable: the path relative to the indexed folder, or given by the caller
    title: str
    text: str
    sections: tuple[Section, ...] = ()
    offset: int = 0
    """Code point of the whole text at which this one begins, where a retriever gives a part alone."""

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
    """A file, or a line of one, that gives no document, and why; as a string a line for people."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Source:
    """A file that holds one document, or as .jsonl one a line."""

    path: Path
    id: str

    def sha256(self) -> str:
        """Of its content."""
        with self.path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()

    def documents(self, skipped: list[Skipped]) -> Iterator[Document]:
        """What can be read of it; the rest goes onto the list ``skipped``."""
        try:
            if self.path.suffix.lower() == ".jsonl":
                yield from self._lines(skipped)
            else:
                yield parse_document(self.id, self._bytes())
        except OSError as error:
            skipped.append(Skipped(str(self.path), f"cannot be read ({error.strerror or error})"))
        except Unreadable as error:
            skipped.append(Skipped(str(self.path), str(error)))

    def _bytes(self) -> bytes:
        with self.path.open("rb") as handle:
            data = handle.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise Unreadable(f"larger than {LARGEST_FILE // 2**20} MB")
        return data

    def _lines(self, skipped: list[Skipped]) -> Iterator[Document]:
        with self.path.open("rb") as handle:
            for number, line in enumerate(iter(lambda: handle.readline(LARGEST_FILE + 1), b""), 1):
                if not line.strip():
                    continue
                try:
                    if len(line) > LARGEST_FILE:
                        while line and not line.endswith(b"\n"):
                            line = handle.readline(LARGEST_FILE)
                        raise Unreadable(f"longer than {LARGEST_FILE // 2**20} MB")
                    yield self._line(number, line)
                except Unreadable as error:
                    skipped.append(Skipped(f"{self.path}, line {number}", str(error)))

    def _line(self, number: int, line: bytes) -> Document:
        try:
            entry = json.loads(line)
        except ValueError:
            raise Unreadable("not valid JSON in UTF-8") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise Unreadable('not an object with a "text"')
        text = clean(entry["text"])
        if not has_word(text):
            raise Unreadable("holds no text")
        name = str(entry.get("id", number))
        return Document(f"{self.id}#{name}", clean(str(entry.get("title") or name)), text)


@dataclass
class Sources:
    """The files below some paths."""

    files: list[Source] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @classmethod
    def under(cls, paths: Iterable[Path | str], *, without: Path | None = None) -> Sources:
        """Files by name, in order; hidden ones and links to folders are passed over, other kinds are listed.

        without: a folder that is passed over, too: the index's own may lie among the documents.

        Raises UserError for a path that does not exist.
        """
        found = cls()
        seen: set[str] = set()
        for path in map(Path, paths):
            if path.is_dir():
                for file in _files(path, without):
                    found._add(file, file.relative_to(path).as_posix(), seen)
            elif path.is_file():
                found._add(path, path.name, seen)
            else:
                wrong = "neither a file nor a folder" if path.exists() else "no such file or folder"
                raise UserError(f"{path}: {wrong}.")
        return found

    def _add(self, path: Path, name: str, seen: set[str]) -> None:
        kind = path.suffix.lower()
        if kind != ".jsonl" and kind not in READERS:
            kinds = ", ".join(sorted([*READERS, ".jsonl"]))
            self.skipped.append(Skipped(str(path), f"of a kind that is not read (those read: {kinds})"))
            return
        if not path.is_file():
            self.skipped.append(Skipped(str(path), "no file: a pipe, a device, or a link to nothing"))
            return
        if name in seen:  # two folders with the same names in them
            name = path.as_posix()
        if name in seen:
            self.skipped.append(Skipped(str(path), "given twice"))
            return
        seen.add(name)
        self.files.append(Source(path, name))


def read_documents(paths: Iterable[Path | str]) -> tuple[list[Document], list[Skipped]]:
    """All documents of files and folders, and what was left out.

    Raises UserError for a path that does not exist. Documents of equal ids, which only .jsonl files can bring about, are
    left out but for the first.
    """
    sources = Sources.under(paths)
    skipped = list(sources.skipped)
    documents: dict[str, Document] = {}
    for source in sources.files:
        for document in source.documents(skipped):
            if document.id in documents:
                skipped.append(Skipped(document.id, "a second document of this id"))
            else:
                documents[document.id] = document
    return list(documents.values()), skipped


def document_of_bytes(name: str, data: bytes) -> Document:
    """A file's content, its kind known by its name's ending, as one document with the name as id.

    Raises UserError for a kind that is not read, for one whose library is not installed, for damaged content, and where
    there is no text.
    """
    try:
        return parse_document(name, data)
    except Unreadable as error:
        raise UserError(f"{name}: {error}.") from None


def parse_document(name: str, data: bytes) -> Document:
    """The same, with the reason alone as the error's message."""
    kind = Path(name).suffix.lower()
    if kind not in READERS:
        raise Unreadable(f"of a kind that is not read (those read: {', '.join(sorted(READERS))})")
    title, text, sections = READERS[kind](data)
    text = clean(text)
    if not has_word(text):
        raise Unreadable("holds no text")
    labelled = tuple(Section(one.start, clean(one.label)) for one in sections)
    return Document(name, clean(title or "") or Path(name).stem, text, labelled)


def clean(text: str) -> str:
    """Without halves of characters, which JSON and PDF files can hold and nothing can encode; the length stays."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)


def _files(folder: Path, without: Path | None) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        if without is not None and Path(root).resolve() == without.resolve():
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
