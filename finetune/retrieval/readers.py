"""The kinds of files that are read as documents, each by a library that is kept for it (extra ``documents``).

A reader takes the file's bytes and gives the title where the file states one, the text, and the sections. It raises
Unreadable, whose message says in a few words why not; a library's own exceptions are turned into it.
"""

from __future__ import annotations

import importlib
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

from finetune.retrieval.terms import WORD
from spanbert.errors import UserError

LARGEST_UNPACKED = 512 * 2**20  # bytes that a .docx may hold
HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$|^(?=\S)(.+)\n(=+|-+)[ \t]*$", re.MULTILINE)
FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[ \t]*$", re.MULTILINE | re.DOTALL)


class Unreadable(UserError):
    """A file that gives no document; the message is the reason alone, without the file's name."""


@dataclass(frozen=True)
class Section:
    """A page or heading, for citation: it goes on until the next one begins."""

    start: int  # code point where it begins in the document's text
    label: str  # "page 3", or the heading's text


Parsed = tuple[str | None, str, tuple[Section, ...]]  # title, text, sections


def read_text(data: bytes) -> Parsed:
    return None, decoded(data), ()


def read_markdown(data: bytes) -> Parsed:
    """The text as it is written, its headings as sections; what looks like one in a block of code is none."""
    text = decoded(data)
    code = [match.span() for match in FENCE.finditer(text)]
    sections = []
    title = None
    for match in HEADING.finditer(text):
        if any(start <= match.start() < end for start, end in code):
            continue
        label = (match.group(2) or match.group(3)).strip()
        sections.append(Section(match.start(), label))
        if title is None and (match.group(1) == "#" or (match.group(4) or "").startswith("=")):
            title = label
    return title, text, tuple(sections)


def read_html(data: bytes) -> Parsed:
    """What a browser would show, by inscriptis; headings are sections."""
    inscriptis = _library("inscriptis", "HTML")
    lxml_html = _library("lxml.html", "HTML")
    config = _library("inscriptis.model.config", "HTML")
    try:
        data.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None  # what the page declares
    if not data.strip():
        raise Unreadable("holds no text")
    try:
        tree = lxml_html.document_fromstring(data, parser=lxml_html.HTMLParser(encoding=encoding))
        rules = config.ParserConfig(annotation_rules={f"h{level}": ["heading"] for level in range(1, 7)})
        parser = inscriptis.Inscriptis(tree, rules)
        text, headings = parser.get_text(), parser.get_annotations()
    except Exception as error:  # whatever a stranger's page makes two libraries raise
        raise Unreadable(f"not readable as HTML ({error})") from None
    title = tree.findtext(".//title")
    marked = sorted((one.start, text[one.start : one.end]) for one in headings)
    sections = (Section(start, " ".join(label.split())) for start, label in marked)
    return title and " ".join(title.split()), text, tuple(one for one in sections if one.label)


def read_pdf(data: bytes) -> Parsed:
    """The text of the pages, by pypdf; every page is a section. Lines are joined to paragraphs again."""
    pypdf = _library("pypdf", "PDF")
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("locked by a password")
        pages = [joined_lines(page.extract_text()) for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    except Unreadable:
        raise
    except Exception as error:  # pypdf raises many kinds over damaged files
        raise Unreadable(f"not readable as PDF ({error})") from None
    text, sections = "", []
    for number, page in enumerate(pages, 1):
        if page:
            text += "\n\n" if text else ""
            sections.append(Section(len(text), f"page {number}"))
            text += page
    if not text:
        raise Unreadable("holds no text: scanned pages need text recognition (OCR) first")
    return str(title).strip() if title else None, text, tuple(sections)


def read_docx(data: bytes) -> Parsed:
    """Paragraphs and tables in their order, by python-docx; headings are sections."""
    docx = _library("docx", "Word")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST_UNPACKED:
                raise Unreadable(f"unpacks to more than {LARGEST_UNPACKED // 2**20} MB")
        document = docx.Document(io.BytesIO(data))
        text, sections = "", []
        for block in document.iter_inner_content():
            if hasattr(block, "rows"):
                line = "\n".join("\t".join(cell.text for cell in row.cells) for row in block.rows)
            else:
                line = block.text
                if (
                    block.style is not None and (block.style.name or "").startswith(("Heading", "Title"))
                ) and line.strip():
                    sections.append(Section(len(text), line.strip()))
            text += line + "\n"
        title = document.core_properties.title
    except Unreadable:
        raise
    except Exception as error:  # a .docx is XML in a zip: both can be damaged in many ways
        raise Unreadable(f"not readable as a Word document ({error})") from None
    return title.strip() or None, text, tuple(sections)


#: ending → reader; .jsonl holds many documents and is read in ``documents``
READERS: dict[str, Callable[[bytes], Parsed]] = {
    ".txt": read_text,
    ".text": read_text,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
}


def decoded(data: bytes) -> str:
    """UTF-8, or UTF-16 with its mark; line ends as ``\\n``. Raises Unreadable for other encodings."""
    try:
        utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise Unreadable("not a text file (it holds zero bytes)")
    return text.replace("\r\n", "\n")


def joined_lines(page: str) -> str:
    """A page whose lines are a layout's, as paragraphs: a line goes on where it is long and does not end a sentence.

    A word divided at the end of a line is joined again.
    """
    lines = [" ".join(line.split()) for line in page.splitlines()]
    longest = max(map(len, lines), default=0)
    text = lines[0] if lines else ""
    for line, following in pairwise(lines):
        short = 2 * len(line) < longest or (line[-1] in ".!?:。！？" and 10 * len(line) < 8 * longest)
        if short or not following:
            text += "\n" + following
        elif line[-1] == "-" and len(line) > 1 and line[-2].isalpha() and following[0].islower():
            text = text[:-1] + following
        else:
            text += _gap(line[-1], following[0]) + following
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _gap(left: str, right: str) -> str:
    """No space between two characters of a script that has none."""
    unspaced = all(ord(one) >= 0x3000 and ord(one) not in range(0xAC00, 0xD7A4) for one in (left, right))
    return "" if unspaced else " "


def has_word(text: str) -> bool:
    """Whether there is anything to find."""
    return WORD.search(text) is not None


def _library(name: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unreadable(f"{kind} files need the extra packages: pip install 'spanbert[documents]'") from None
