"""Documents out of text, JSON, parquet, Hugging Face data sets or standard input, one at a time.

Memory is bounded whatever the input: a document above PART_BYTES (a 50 MB line is such) is handed on in parts, cut at
white space. Bad data within a source is repaired or left out, and counted; a source that is another thing than it was
named for stops the reading.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.data.columns import text_column
from pretrain.data.formats import FORMATS, TAG_LINES, format_of, name_suffixes, refuse_no_text
from pretrain.data.json_records import MISSING, check_first, get_field, read_values
from pretrain.data.readers import (
    HEAD_BYTES,
    Progress,
    Stream,
    describe_left_out,
    find_files,
    open_seekable,
    open_stream,
    read_blocks,
    read_lines,
    whole_lines,
)
from spanbert.errors import UserError, first_line, note
from spanbert.tokenizer.wordpiece import whole_characters

PART_BYTES = 16 << 20
BLANK_LINES = re.compile(rb"\n(?:[ \t\r]*\n)+")
LEADING_BLANK_LINES = re.compile(rb"\A(?:[ \t\r]*\n)+")


class Document(NamedTuple):
    """A document, or a part of a very long one.

    index: position in the whole input, empty documents included (line n of a .jsonl is its n-th document whatever
    it holds). start: character of the document at which this part begins (0 except for later parts). hash: of the
    document's first part, below 2^64, so that all parts fall on the same side of a split by content. input: which of the
    corpus's inputs it is from; a folder is one.
    """

    index: int  # type: ignore[assignment]  # tuple.index is not needed
    start: int
    text: str
    hash: int
    input: int = 0


@dataclass
class ReadCounts:
    """What was met while reading; `first_malformed` names the first bad JSON line."""

    files: int = 0
    empty_files: int = 0
    documents: int = 0
    empty_documents: int = 0
    long_documents: int = 0
    invalid_utf8: int = 0
    nul_characters: int = 0
    malformed_lines: int = 0
    first_malformed: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    """Files of folders that were not read, by kind."""
    read_as: dict[str, int] = field(default_factory=dict)
    """Files that hold something else than their names say."""
    documents_of_input: list[int] = field(default_factory=list)
    """`documents`, for each input."""


class Corpus:
    """The documents of some inputs, in a fixed order.

    inputs: files, folders, "hf:NAME[:CONFIG[:SPLIT]]", "-" (standard input).
    text_field: the field of JSON records, the column of parquet and Hugging Face data sets; dots lead into objects.
    document_per_file: a text file is one document; otherwise blank lines separate documents.
    Iterating gives Documents that are not empty; `counts` and `progress` grow while it goes.
    """

    def __init__(self, inputs: tuple[str, ...], *, text_field: str = "text", document_per_file: bool = False) -> None:
        self.inputs = inputs
        self.sources, self.left_out, self._input_of = find_files(inputs)
        if self.left_out:
            note(f"files left out of the folders named: {describe_left_out(self.left_out)}")
        self.text_field = text_field
        self.document_per_file = document_per_file
        self.counts = ReadCounts()
        self.progress = Progress()
        self._index = 0
        self._hash = 0
        self._input = 0

    @property
    def stored_bytes(self) -> int | None:
        """Size of all inputs on disk; None when an input has no size beforehand."""
        if any(s == "-" or s.startswith("hf:") for s in self.sources):
            return None
        return sum(Path(s).stat().st_size for s in self.sources)

    def identity(self) -> list[list]:
        """Name, size and time of change of every source: equal lists mean the same input (standard input: never)."""
        known: list[list] = []
        for source in self.sources:
            if source == "-" or source.startswith("hf:"):
                known.append([source])
            else:
                status = Path(source).stat()
                known.append([source, status.st_size, status.st_mtime_ns])
        return known

    def __iter__(self) -> Iterator[Document]:
        self.counts = ReadCounts(left_out=self.left_out, documents_of_input=[0] * len(self.inputs))
        self._index, self.progress.bytes = 0, 0
        for source, number in zip(self.sources, self._input_of, strict=True):
            self._input = number
            self.counts.files += 1
            if source.startswith("hf:"):
                yield from self._hugging_face(source)
                continue
            before = self.progress.bytes
            with open_stream(source, self.progress) as stream:
                yield from self._file(source, stream)
            if source != "-":  # parquet is not read from end to end
                self.progress.bytes = before + Path(source).stat().st_size

    def _file(self, source: str, stream: Stream) -> Iterator[Document]:
        """The documents of one file, read as what its first bytes are."""
        head = stream.peek(HEAD_BYTES)
        if not head:
            self.counts.empty_files += 1
            if self.document_per_file:
                yield from self._emit("", 0)
            return
        refuse_no_text(source, head)
        suffix, _ = name_suffixes(Path(source))
        promised = FORMATS.get(suffix)
        found = format_of(head, promised)
        if promised == "parquet" and found != "parquet":
            raise UserError(f"{source} is not a whole parquet file: it does not begin as one")
        if found not in (promised or "text", "text") and (promised, found) != ("JSON", "JSON lines"):
            if found not in self.counts.read_as:
                note(f"{source} holds {found}, whatever its name says: read as that, as are others like it")
            self.counts.read_as[found] = self.counts.read_as.get(found, 0) + 1
        if found == "JSON lines":
            yield from self._json_lines(source, stream)
        elif found == "JSON":
            yield from self._json(source, stream)
        elif found == "parquet":
            yield from self._parquet(source, stream)
        else:
            yield from self._text(stream, tagged=found == "tagged text")

    # --- formats -------------------------------------------------------------------------------------------------

    def _text(self, stream: Stream, *, tagged: bool) -> Iterator[Document]:
        """Documents between blank lines, the whole file, or what stands between the tags of an extractor."""
        separator = TAG_LINES if tagged else None if self.document_per_file else BLANK_LINES
        blocks = read_blocks(stream)
        pending, part_start = b"", None
        for block in whole_lines(blocks, PART_BYTES) if tagged else blocks:
            pending += block
            if separator:
                *whole, pending = separator.split(pending)
                for data in whole:
                    if self._has_text(data) or part_start is not None:
                        yield from self._finish(data, part_start)
                    part_start = None
            while len(pending) > PART_BYTES:
                part, pending = _cut(pending)
                start = part_start or 0
                if part_start is None:
                    part = LEADING_BLANK_LINES.sub(b"", part)
                    self.counts.long_documents += 1
                text = self._decode(part)
                yield from self._part(start, text)
                part_start = start + len(text)
        if self._has_text(pending) or part_start is not None or (self.document_per_file and not tagged):
            yield from self._finish(pending, part_start)

    @staticmethod
    def _has_text(data: bytes) -> bool:
        return bool(data) and not data.isspace()

    def _finish(self, data: bytes, part_start: int | None) -> Iterator[Document]:
        """The last (mostly the only) part of a text document."""
        if part_start is None:
            data = LEADING_BLANK_LINES.sub(b"", data)
        yield from self._emit(self._decode(data.rstrip(b" \t\r\n")), part_start or 0)

    def _json_lines(self, source: str, stream: Stream) -> Iterator[Document]:
        is_first = True
        for number, line in enumerate(read_lines(stream), start=1):
            try:
                record = json.loads(self._decode(line, count_nul=False))
            except (ValueError, RecursionError):
                record = MISSING
            if is_first and record is not MISSING:
                check_first(f"{source}:{number}", record, self.text_field)
                is_first = False
            yield from self._json_record(record, f"{source}:{number}")

    def _json(self, source: str, stream: Stream) -> Iterator[Document]:
        for number, record in enumerate(read_values(read_blocks(stream), source), start=1):
            if isinstance(record, str):
                yield from self._record(record)
                continue
            if number == 1:
                check_first(source, record, self.text_field)
            yield from self._json_record(record, f"{source} record {number}")

    def _json_record(self, record: Any, place: str) -> Iterator[Document]:
        text = get_field(record, self.text_field)
        if not isinstance(text, str):
            self.counts.malformed_lines += 1
            if self.counts.first_malformed is None:
                self.counts.first_malformed = place
            text = ""
        yield from self._record(text)

    def _parquet(self, source: str, stream: Stream) -> Iterator[Document]:
        import pyarrow as pa
        from pyarrow import parquet

        with open_seekable(source, stream) as handle:
            try:
                file = parquet.ParquetFile(handle)
                column = text_column(file.schema_arrow, self.text_field, source)
                if file.metadata.num_rows == 0:
                    self.counts.empty_files += 1
                for batch in file.iter_batches(batch_size=64, columns=[column]):
                    for value in batch.column(0).to_pylist():
                        text = get_field({column: value}, self.text_field)
                        yield from self._record(None if text is MISSING else text)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                if isinstance(error, OSError) and error.errno is not None:  # the system's; pyarrow's has no number
                    raise
                raise UserError(f"{source} is not a whole parquet file: {first_line(error)}") from error

    def _hugging_face(self, source: str) -> Iterator[Document]:
        import datasets

        name, config, split, *rest = [*source.removeprefix("hf:").split(":"), "", ""]
        if not name or any(rest):
            raise UserError(f"{source!r} is not of the form hf:NAME[:CONFIG[:SPLIT]]")
        try:
            rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        except Exception as error:  # the library raises many kinds: no such name, no network, gated, bad config
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"cannot open the data set {source}: {reason}") from error
        for row in rows:
            check_first(source, row, self.text_field)
            yield from self._record(get_field(row, self.text_field))

    # --- from raw to clean ---------------------------------------------------------------------------------------

    def _record(self, text: str | bytes | None) -> Iterator[Document]:
        """One document that came as a value: missing counts as empty, bytes are UTF-8, long ones are cut."""
        text = self._decode(text, count_nul=False) if isinstance(text, bytes) else text or ""
        if "\x00" in text:
            self.counts.nul_characters += text.count("\x00")
            text = text.replace("\x00", "")
        if not text.isascii():
            repaired = whole_characters(text)
            self.counts.invalid_utf8 += repaired.count("\ufffd") - text.count("\ufffd")
            text = repaired
        start = 0
        if len(text) > PART_BYTES:
            self.counts.long_documents += 1
        while len(text) > PART_BYTES:
            cut = max(text.rfind(" ", 0, PART_BYTES), text.rfind("\n", 0, PART_BYTES))
            cut = cut if cut > 0 else PART_BYTES
            yield from self._part(start, text[:cut])
            text, start = text[cut:], start + cut
        yield from self._emit(text, start)

    def _emit(self, text: str, start: int) -> Iterator[Document]:
        """The last part of a document, mostly the only one."""
        self.counts.documents += 1
        self.counts.documents_of_input[self._input] += 1
        self.counts.empty_documents += start == 0 and (not text or text.isspace())
        yield from self._part(start, text)
        self._index += 1

    def _part(self, start: int, text: str) -> Iterator[Document]:
        if start == 0:
            self._hash = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        if text and not text.isspace():
            yield Document(self._index, start, text, self._hash, self._input)

    def _decode(self, data: bytes, *, count_nul: bool = True) -> str:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("utf-8", "replace")
            self.counts.invalid_utf8 += text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
        if count_nul and "\x00" in text:
            self.counts.nul_characters += text.count("\x00")
            text = text.replace("\x00", "")
        return text


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """Cut at the last white space within PART_BYTES, else between two characters."""
    cut = max(data.rfind(b" ", 0, PART_BYTES), data.rfind(b"\n", 0, PART_BYTES))
    if cut <= 0:
        cut = PART_BYTES
        while cut > PART_BYTES - 4 and data[cut] & 0xC0 == 0x80:
            cut -= 1
    return data[:cut], data[cut:]
