"""What a file holds: by its name, and by its first bytes, which count where the two differ."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from spanbert.errors import UserError

Format = Literal["text", "tagged text", "JSON lines", "JSON", "parquet"]
COMPRESSIONS = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh"}
FORMATS: dict[str, Format] = {
    ".txt": "text", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON", ".parquet": "parquet",
}  # fmt: skip
NAMES = ".txt, .jsonl, .ndjson, .json or .parquet (or those + .gz/.bz2/.xz/.zst)"
#: First bytes of what is certainly no text.
NO_TEXT = {
    b"PK\x03\x04": "a zip archive", b"%PDF-": "a PDF", b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a RAR archive",
    b"ARROW1": "an Arrow file", b"SQLite format 3": "a database", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
}  # fmt: skip
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: A line of a Wikipedia extractor that begins or ends a document.
TAG_LINES = re.compile(rb"^[ \t]*(?:<doc(?: [^>\n]*)?>|</doc>)[ \t\r]*(?:\n|\Z)", re.MULTILINE)
_ARRAY_OF_OBJECTS = re.compile(rb'\s*\[\s*\{\s*"')
_FIRST_TAG = re.compile(rb"\s*<doc [^>\n]*>[ \t\r]*\n")


def name_suffixes(path: Path) -> tuple[str, str | None]:
    """(inner suffix, compression) of a name, in lower case: "A.TXT.GZ" gives (".txt", ".gz")."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return path.with_suffix("").suffix.lower(), suffix
    return suffix, None


def compression_of(head: bytes) -> str | None:
    """The suffix that belongs to the first bytes of compressed data."""
    return next((suffix for suffix, magic in COMPRESSIONS.items() if head.startswith(magic)), None)


def format_of(head: bytes, by_name: Format | None) -> Format:
    """What the first bytes of a file, once decompressed, are. by_name: what its name promises, None if nothing."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if by_name == "JSON lines":
        return "JSON" if _ARRAY_OF_OBJECTS.match(_start(head)) else "JSON lines"
    head = _start(head)
    if _is_json_line(head):
        return "JSON lines"
    if by_name == "JSON" or _ARRAY_OF_OBJECTS.match(head):
        return "JSON"
    return "tagged text" if _FIRST_TAG.match(head) else "text"


def refuse_no_text(source: str, head: bytes) -> None:
    """Raise UserError when the first bytes are those of an archive, a picture or UTF-16 text."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{source} is UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8")
    for magic, kind in NO_TEXT.items():
        if head.startswith(magic):
            raise UserError(f"{source} is {kind}, not text: name files that end in {NAMES}")


def looks_like_text(head: bytes) -> bool:
    """Whether a file without a suffix may be read: not when its first bytes hold NUL or are mostly no UTF-8."""
    if any(head.startswith(magic) for magic in NO_TEXT) or b"\x00" in head:
        return False
    return head.decode("utf-8", "replace").count("\ufffd") <= len(head) // 20 + 1


def _start(head: bytes) -> bytes:
    return head.removeprefix(BYTE_ORDER_MARK)


def _is_json_line(head: bytes) -> bool:
    """Whether the first line is one JSON object, or begins as one that is longer than what was looked at."""
    line, end, _ = head.lstrip().partition(b"\n")
    if not re.match(rb'\{\s*"', line):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return not end and len(head) >= 1 << 16 and re.match(rb'\{\s*"[^"\n]*"\s*:', line) is not None
