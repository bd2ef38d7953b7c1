"""CoNLL columns: a word a line, a blank line after each sentence.

The word is the first column, or the second after a running number. The tag is the column asked for by number or name, else
the last one that holds tags. Columns are separated by tabs, or by spaces in a file without tabs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from finetune.records import MalformedRecord
from finetune.tasks.ner.schemes import LETTERS, is_tag
from spanbert.errors import UserError

DOCUMENT = "-DOCSTART-"
NEW_DOCUMENT = re.compile(r"#\s*newdoc\b")
NAMED = re.compile(r"#\s*([\w.:]+)\s*=\s*(.*)")
NUMBER = re.compile(r"\d+")
PART_NUMBER = re.compile(r"\d+[-.]\d+")  # CoNLL-U: a written word that is several (1-2), one that is not written (8.1)
MOST = (
    0.9  # of a column's values must look like tags for it to be the column of the tags; half of the lines must have it
)


@dataclass
class Block:
    """The lines of one sentence."""

    rows: list[tuple[int, list[str]]] = field(default_factory=list)  # (line from 1, columns)
    comments: dict[str, str] = field(default_factory=dict)  # "# sent_id = 7" → {"sent_id": "7"}
    document: int = 0  # -DOCSTART- lines and "# newdoc" comments before it


@dataclass(frozen=True)
class Layout:
    """Where a file has what. Columns count from 0."""

    word: int
    tag: int | None

    @property
    def columns(self) -> int:
        """That a line needs at least."""
        return 1 + max(self.word, self.tag or 0)

    def __str__(self) -> str:
        return f"tags in column {self.tag + 1}" if self.tag is not None else "no tags"


def read_blocks(lines: Sequence[str]) -> list[Block]:
    """Sentences of a file's lines. Raises UserError for none."""
    separator = "\t" if any("\t" in line and not line.startswith("#") for line in lines if line.strip()) else None
    blocks, block = [], Block()
    documents = 0
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith(DOCUMENT):
            if block.rows:
                blocks.append(block)
                block = Block()
            documents += line.startswith(DOCUMENT)
            continue
        if _is_comment(line, separator):
            documents += bool(NEW_DOCUMENT.match(line))
            if found := NAMED.match(line):
                block.comments[found[1]] = found[2]
            continue
        block.document = documents
        block.rows.append((number, line.rstrip().split(separator) if separator is None else line.split(separator)))
    return [*blocks, block] if block.rows else blocks


def _is_comment(line: str, separator: str | None) -> bool:
    """A line of # that is not the word "#" with its columns, nor "#topic" with its own."""
    if not line.startswith("#"):
        return False
    if separator is not None:
        return separator not in line
    columns = line.split()
    return len(columns) < 2 or bool(NAMED.match(line)) or not is_tag(columns[-1])


def find_layout(path: object, blocks: Sequence[Block], wanted: str | None, *, labelled: bool) -> Layout:
    """Which column is which. Raises UserError when none, or not the one asked for, holds tags."""
    word = int(all(_is_numbered(block) for block in blocks))
    rows = [row for block in blocks for row in block.rows]
    columns = max(len(row) for _, row in rows)
    names = next((b.comments["global.columns"].split() for b in blocks if "global.columns" in b.comments), [])
    if "FORM" in names:
        word = names.index("FORM")
    if wanted is not None:
        if wanted in names:
            return Layout(word, names.index(wanted))
        if wanted.isdecimal() and 1 <= int(wanted) <= columns:
            return Layout(word, int(wanted) - 1)
        named = f"names {', '.join(names)}" if names else "names no columns (# global.columns = …)"
        raise UserError(f'{path}: has no column "{wanted}": it has {columns} and {named}.')
    for column in range(columns - 1, word, -1):
        values = [row[column] for _, row in rows if len(row) > column]
        if 2 * len(values) >= len(rows) and sum(map(is_tag, values)) >= MOST * len(values):
            return Layout(word, column)
    if not labelled:
        return Layout(word, None)
    line, row = next((row for row in rows if not is_tag(row[1][-1])), rows[0])
    if columns <= word + 1:
        raise UserError(f"{path}: line {line}: too few columns: {len(row)}, expected a word and a tag.")
    letters = ", ".join(f"{letter}-" for letter in sorted(LETTERS))
    raise UserError(
        f"{path}: line {line}: unknown tag scheme: {row[-1]!r} in the last column; expected a column of O and of "
        f"{letters} with a type (IOB1, IOB2, BIOES), or --tag-column."
    )


def _is_numbered(block: Block) -> bool:
    """Whether the first column counts the words from 0 or 1."""
    numbers = [row[0] for _, row in block.rows]
    counts = all(NUMBER.fullmatch(number) or PART_NUMBER.fullmatch(number) for number in numbers)
    return counts and re.split("[-.]", numbers[0])[0] in ("0", "1")


def words_of(block: Block, layout: Layout) -> Iterator[tuple[int, str, str | None]]:
    """(line, word, tag) of a sentence. Raises MalformedRecord, its line first, for a line that cannot be."""
    for line, row in block.rows:
        if layout.word and PART_NUMBER.fullmatch(row[0]):
            continue
        if len(row) < layout.columns:
            raise MalformedLine(line, "too few columns", f"{len(row)}, expected {layout.columns}")
        if not row[layout.word].strip():
            raise MalformedLine(line, "empty word")
        yield line, row[layout.word], row[layout.tag].strip() if layout.tag is not None else None


class MalformedLine(MalformedRecord):
    """A malformed record that is told by a line of its own, not by the first of its sentence."""

    def __init__(self, line: int, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.line = line


def looks_like_columns(lines: Iterable[str]) -> bool:
    """Whether lines that may be plain text are columns with tags: for prediction, where both may be given."""
    rows = [line.split() for line in lines if line.strip() and not line.startswith(("#", DOCUMENT))]
    return (
        bool(rows)
        and all(len(row) > 1 for row in rows)
        and sum(any(map(is_tag, row[1:])) for row in rows) >= (MOST * len(rows))
    )
