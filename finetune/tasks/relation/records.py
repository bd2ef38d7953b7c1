"""Reading texts with two entities and their relation, plain or gz:

SemEval-2010 Task 8   ``1<tab>"… <e1>word</e1> … <e2>word</e2> …"``, the relation in the next line, maybe a comment after it
TACRED                a JSON list, or JSON lines, of objects with ``token``, ``subj_start``, ``subj_end`` (inclusive), ``obj_…``,
                      ``subj_type``, ``obj_type``, ``relation``
JSON lines            ``text``, ``subject`` and ``object`` as [start, end] or [start, end, type] in characters, ``relation``

SemEval's e1 is the subject, e2 the object. To predict, a line with the four marks is enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from finetune.records import (
    MalformedRecord,
    Purpose,
    RecordReport,
    check_text,
    has,
    need,
    need_text,
    parse_line,
    readable,
)
from spanbert.errors import UserError, first_line

NUMBERED = re.compile(r"\s*(\d+)\t(.*)")
MARKED = re.compile(r"<e([12])>(.*?)</e\1>")


class Span(NamedTuple):
    """An entity as [start, end) characters; ``type`` is "" where the file gives none."""

    start: int
    end: int
    type: str = ""


@dataclass(frozen=True)
class Pair:
    """One example: two entities in a text; ``relation`` is None where it is not known."""

    place: str
    """Where in the file, for people."""
    id: str
    text: str
    subject: Span
    object: Span
    relation: str | None


@dataclass
class PairFile:
    """The pairs of a file, and what was met while reading it."""

    pairs: list[Pair]
    report: RecordReport

    def relations(self) -> list[str]:
        """Every relation that occurs, sorted."""
        return sorted({pair.relation for pair in self.pairs if pair.relation is not None})

    def summary(self) -> str:
        return f"{self.report.examples:,} pairs of entities{self.report.losses}"

    def first(self, limit: int | None) -> PairFile:
        """The first ``limit`` pairs. Raises UserError for a limit below 1."""
        if limit is not None and limit < 1:
            raise UserError(f"--limit {limit}: give at least 1 pair.")
        return replace(self, pairs=self.pairs[:limit])


def read_pairs(path: Path, purpose: Purpose, known: tuple[str, ...] = ()) -> PairFile:
    """The pairs of ``path``, or of standard input for ``-``.

    known: relations there may be; empty when any will do. Raises UserError for a file without a usable pair and, unless
    it is read to train on, at the first malformed record.
    """
    with readable(path, errors="surrogateescape") as stream:
        content = stream.read()
    report = RecordReport(path, strict=purpose != "train")
    labelled = purpose != "predict"
    begin = content.lstrip()[:1]
    reader = _json_list if begin == "[" else _json_lines if begin == "{" else _semeval
    found = []
    for pair in reader(content, labelled, report):
        try:
            _check(pair)
            if labelled and known and pair.relation not in known:
                raise MalformedRecord("unknown relation", f"{pair.relation!r}; the model knows {', '.join(known)}")
        except MalformedRecord as error:
            report.malformed(pair.place, error)
            continue
        found.append(pair)
    report.examples = len(found)
    if not found:
        skipped = f"; {report.lines[0]}" if report.lines else ""
        raise UserError(f"{path}: no usable pair of entities{report.losses}{skipped}.")
    return PairFile(found, report)


def _check(pair: Pair) -> None:
    check_text(pair.text, "text")
    for span, which in ((pair.subject, "subject"), (pair.object, "object")):
        if not 0 <= span.start < span.end <= len(pair.text):
            where = f"the {which} is {span.start} to {span.end} of {len(pair.text)} characters"
            raise MalformedRecord("an entity outside the text", where)
        if not pair.text[span.start : span.end].strip():
            raise MalformedRecord("empty entity", f"the {which}")
        if span.type.strip():
            check_text(span.type, f"type of the {which}")
    if pair.subject.start < pair.object.end and pair.object.start < pair.subject.end:
        raise MalformedRecord("entities that overlap", f"at {pair.subject.start} and {pair.object.start}")
    if pair.relation is not None and not pair.relation.strip():
        raise MalformedRecord("empty class", "the relation has no name")
    if pair.relation is not None:
        check_text(pair.relation, "relation")


def _semeval(content: str, labelled: bool, report: RecordReport) -> Iterator[Pair]:
    lines = [(number, line.strip("\r")) for number, line in enumerate(content.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line.strip() and not line.startswith("Comment")]
    place = 0
    while place < len(lines):
        number, line = lines[place]
        place += 1
        numbered = NUMBERED.fullmatch(line)
        if not numbered and not MARKED.search(line) and not labelled:
            continue  # the relation of the text before it, not looked at
        relation: str | None = None
        if place < len(lines) and not NUMBERED.fullmatch(lines[place][1]) and not MARKED.search(lines[place][1]):
            relation = lines[place][1].strip() if labelled else None
            place += 1
        try:
            if labelled and relation is None:
                raise MalformedRecord("no relation", "expected one in the line after the text")
            yield _marked(number, numbered[1] if numbered else "", numbered[2] if numbered else line, relation)
        except MalformedRecord as error:
            report.malformed(f"line {number}", error)


def _marked(number: int, id: str, line: str, relation: str | None) -> Pair:
    """A text whose entities are marked in it, quoted or not."""
    line = line.strip()
    if len(line) > 1 and line[0] == line[-1] == '"':
        line = line[1:-1]
    marks = list(MARKED.finditer(line))
    if sorted(mark[1] for mark in marks) != ["1", "2"]:
        raise MalformedRecord("entities not marked", "expected <e1>…</e1> and <e2>…</e2>, once each")
    text, spans, end = "", {}, 0
    for mark in marks:
        text += line[end : mark.start()]
        spans[mark[1]] = Span(len(text), len(text) + len(mark[2]))
        text += mark[2]
        end = mark.end()
    return Pair(f"line {number}", id or str(number), text + line[end:], spans["1"], spans["2"], relation)


def _json_list(content: str, labelled: bool, report: RecordReport) -> Iterator[Pair]:
    try:
        entries = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{report.path}: line {error.lineno}: not valid JSON ({error.msg}).") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, or nested too deeply
        raise UserError(f"{report.path}: not JSON that can be read ({first_line(error)}).") from None
    for number, entry in enumerate(entries, 1):
        name = entry.get("id") if isinstance(entry, dict) else None
        yield from _json_entry(f"record {number}" + (f", id {name}" if name else ""), entry, labelled, report)


def _json_lines(content: str, labelled: bool, report: RecordReport) -> Iterator[Pair]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = parse_line(line)
        except MalformedRecord as error:
            report.malformed(f"line {number}", error)
            continue
        yield from _json_entry(f"line {number}", entry, labelled, report)


def _json_entry(place: str, entry: Any, labelled: bool, report: RecordReport) -> Iterator[Pair]:
    try:
        relation = need(entry, "relation", str) if labelled else None
        if has(entry, "token"):
            text, subject, object = _tacred(entry)
        else:
            text = need_text(entry, "text")
            subject, object = (_span(need(entry, key, list), key) for key in ("subject", "object"))
        yield Pair(place, str(entry.get("id", place)), text, subject, object, relation)
    except MalformedRecord as error:
        report.malformed(place, error)


def _tacred(entry: dict[str, Any]) -> tuple[str, Span, Span]:
    """The tokens joined by spaces, and the entities in that text."""
    tokens = need(entry, "token", list)
    if not tokens or not all(isinstance(token, str) and token for token in tokens):
        raise MalformedRecord("empty field", '"token" must be a list of words')
    starts = [0]
    for token in tokens:
        starts.append(starts[-1] + len(token) + 1)
    spans = []
    for which in ("subj", "obj"):
        first, last = (need(entry, f"{which}_{end}", int) for end in ("start", "end"))
        if not 0 <= first <= last < len(tokens):
            raise MalformedRecord("an entity outside its tokens", f"{which}: {first} to {last} of {len(tokens)} tokens")
        kind = need(entry, f"{which}_type", str) if f"{which}_type" in entry else ""
        spans.append(Span(starts[first], starts[last] + len(tokens[last]), kind))
    return " ".join(tokens), spans[0], spans[1]


def _span(part: list[Any], key: str) -> Span:
    if [type(value) for value in part] not in ([int, int], [int, int, str]):
        raise MalformedRecord("field of the wrong type", f'"{key}" is [start, end] or [start, end, type]')
    return Span(*part)
