"""Reading extractive QA files: SQuAD 1.1 and 2.0 (one JSON object) and MRQA (one JSON object a line), plain or gz.

Every record is checked before anything is made of it. A malformed one is named by article, paragraph and question
id; the caller says whether that ends the run (evaluation) or is skipped and counted (training).
"""

from __future__ import annotations

import gzip
import io
import json
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.tasks.qa.metrics import normalize_answer
from spanbert.errors import UserError


@dataclass(frozen=True)
class Question:
    """One question with its gold answers.

    `answers` are the texts to score against; `spans` the (start, end) character spans in the context, end
    exclusive, in the file's order (a question is trained on the first). Both are empty when it is unanswerable.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def impossible(self) -> bool:
        return not self.answers


@dataclass(frozen=True)
class Paragraph:
    """A context and the questions about it. `number` is its place in the article, from 0."""

    article: str
    number: int
    context: str
    questions: tuple[Question, ...]


class MalformedRecord(ValueError):
    """What is wrong with one record; the reader adds where."""


@dataclass
class RecordReport:
    """What a reader met: questions read, records skipped by reason, and a line for each skipped record."""

    questions: int = 0
    impossible: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def summary(self) -> str:
        text = f"{self.questions:,} questions ({self.impossible:,} unanswerable)"
        if self.skipped:
            reasons = ", ".join(f"{count:,} × {reason}" for reason, count in self.skipped.most_common())
            text += f"; skipped {sum(self.skipped.values()):,} malformed records: {reasons}"
        return text


class QAReader:
    """Iterates over the paragraphs of one file. `report` fills while it is read.

    skip_malformed: True leaves malformed records out and reports them; False raises UserError at the first.
    check_offsets:  False accepts answers whose text is not at its offset, keeping the text and no span: enough
                    for the official metrics, which never look at offsets, and for files known to be off.
    """

    def __init__(self, path: Path, *, skip_malformed: bool, check_offsets: bool = True) -> None:
        self.path = Path(path)
        self.skip_malformed = skip_malformed
        self.check_offsets = check_offsets
        self.report = RecordReport()
        self._seen: set[str] = set()

    def __iter__(self) -> Iterator[Paragraph]:
        self.report = RecordReport()
        self._seen = set()
        try:
            yield from self._paragraphs()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.path}: the gzip file is damaged or cut short ({error}).") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error}).") from None
        if not self.report.questions:
            raise UserError(f"{self.path}: holds no usable question. {self.report.summary()}.")

    def _paragraphs(self) -> Iterator[Paragraph]:
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file.")
        with open_text(self.path) as stream:
            first = stream.readline()
            try:
                head = json.loads(first)
            except json.JSONDecodeError:
                head = None  # a SQuAD file written over several lines, or not JSON at all
            if isinstance(head, dict) and "data" not in head and ("header" in head or "context" in head):
                yield from self._mrqa(first, stream)
                return
            if head is None:
                try:
                    head = json.loads(first + stream.read())
                except json.JSONDecodeError as error:
                    raise UserError(f"{self.path}: not valid JSON: {error}.") from None
        if not isinstance(head, dict) or not isinstance(head.get("data"), list):
            raise UserError(f'{self.path}: neither SQuAD (an object with a list "data") nor MRQA (a line per context).')
        yield from self._squad(head["data"])

    def _squad(self, articles: list[Any]) -> Iterator[Paragraph]:
        for place, article in enumerate(articles):
            where = f"article {place}"
            try:
                title = str(need(article, "title", str)) if has(article, "title") else where
                where = f'article "{title}"'
                paragraphs = need(article, "paragraphs", list)
            except MalformedRecord as error:
                self.malformed(where, error)
                continue
            for number, paragraph in enumerate(paragraphs):
                yield from self._paragraph(f"{where}, paragraph {number}", title, number, paragraph, _squad_question)

    def _mrqa(self, first: str, stream: io.TextIOBase) -> Iterator[Paragraph]:
        title = self.path.name
        line, number = first, 0
        while line:
            where = f"line {number + 1}"
            if line.strip():
                try:
                    entry = json.loads(line)
                    if not isinstance(entry, dict):
                        raise MalformedRecord("line is not an object")
                except json.JSONDecodeError:
                    self.malformed(where, MalformedRecord("line is not valid JSON"))
                except MalformedRecord as error:
                    self.malformed(where, error)
                else:
                    if number == 0 and "header" in entry:
                        header = entry["header"]
                        title = str(header.get("dataset", title)) if isinstance(header, dict) else title
                    else:
                        where = f'article "{title}", {where}'
                        yield from self._paragraph(where, title, number, entry, _mrqa_question)
            line, number = stream.readline(), number + 1

    def _paragraph(self, where: str, title: str, number: int, entry: Any, parse: Any) -> Iterator[Paragraph]:
        try:
            context = need_text(entry, "context")
            entries = need(entry, "qas", list)
        except MalformedRecord as error:
            self.malformed(where, error)
            return
        questions = []
        for place, item in enumerate(entries):
            label = f"{where}, question {place}"
            try:
                question_id = need_id(item)
                label = f"{where}, id {question_id}"
                if question_id in self._seen:
                    raise MalformedRecord("duplicate id")
                question = parse(question_id, item, context, self.check_offsets)
            except MalformedRecord as error:
                self.malformed(label, error)
                continue
            self._seen.add(question_id)
            self.report.questions += 1
            self.report.impossible += question.impossible
            questions.append(question)
        if questions:
            yield Paragraph(title, number, context, tuple(questions))

    def malformed(self, where: str, error: MalformedRecord) -> None:
        """Report one record: UserError, or a count and a line in the report."""
        line = f"{self.path}: {where}: {error}"
        if not self.skip_malformed:
            hint = "; correct the record"
            if str(error).startswith("answer not at its offset"):
                hint += ", or say --ignore-offsets to score by answer texts alone"
            raise UserError(line + hint + ".")
        self.report.skipped[str(error).partition(":")[0]] += 1
        self.report.lines.append(line)


def open_text(path: Path) -> io.TextIOWrapper:
    """`path` as UTF-8 text, gunzipped when it starts with gzip's magic number, whatever its name."""
    with path.open("rb") as probe:
        compressed = probe.read(2) == b"\x1f\x8b"
    binary = gzip.open(path, "rb") if compressed else path.open("rb")  # noqa: SIM115 (closed by the wrapper)
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="\n")


def has(entry: Any, key: str) -> bool:
    return isinstance(entry, dict) and key in entry


def need(entry: Any, key: str, kind: type) -> Any:
    """entry[key], or MalformedRecord when it is absent or not of `kind`."""
    if not has(entry, key):
        raise MalformedRecord(f'missing field: "{key}"')
    value = entry[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise MalformedRecord(f'field of the wrong type: "{key}" is {type(value).__name__}')
    return value


def need_text(entry: Any, key: str) -> str:
    """A non-blank string that can be encoded (JSON allows lone surrogates; no tokenizer does)."""
    text = need(entry, key, str)
    if not text.strip():
        raise MalformedRecord(f'empty field: "{key}"')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedRecord(f'lone surrogate: in "{key}" at character {error.start}') from None
    return text


def need_id(entry: Any) -> str:
    """The question's id: `id` in SQuAD, `qid` in MRQA, a string or a whole number."""
    for key in ("qid", "id"):  # an MRQA question has both, and there "id" is often empty
        if has(entry, key):
            value = entry[key]
            if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                raise MalformedRecord(f'field of the wrong type: "{key}" is {type(value).__name__}')
            return str(value)
    raise MalformedRecord('missing field: "id"')


def _squad_question(question_id: str, entry: dict[str, Any], context: str, check_offsets: bool) -> Question:
    text = need_text(entry, "question")
    answers = need(entry, "answers", list)
    impossible = need(entry, "is_impossible", bool) if "is_impossible" in entry else False
    if impossible and answers:
        raise MalformedRecord("contradiction: is_impossible is true, yet there are answers")
    if not answers and not impossible:
        raise MalformedRecord("no answer: answers is empty, yet is_impossible is not true")
    golds, spans = [], []
    for answer in answers:
        gold = need_text(answer, "text")
        start = need(answer, "answer_start", int)
        golds.append(gold)
        found = context[start : start + len(gold)] if start >= 0 else ""
        if found == gold:
            spans.append((start, start + len(gold)))
        elif check_offsets:
            raise MalformedRecord(f"answer not at its offset: {gold!r} at character {start}, found {found!r} there")
    return Question(question_id, text, tuple(golds), tuple(spans))


def _mrqa_question(question_id: str, entry: dict[str, Any], context: str, check_offsets: bool) -> Question:
    text = need_text(entry, "question")
    spans = []
    for answer in need(entry, "detected_answers", list):
        label = need_text(answer, "text")
        pairs = need(answer, "char_spans", list)
        for pair in pairs:
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(value) is int for value in pair)):
                raise MalformedRecord(f"field of the wrong type: char_spans holds {pair!r}, not [first, last]")
            first, last = pair  # MRQA counts the last character in
            found = context[first : last + 1] if 0 <= first <= last else ""
            # MRQA found its spans by normalised search: case, articles and accents may differ from the text.
            if found and _loose(found) == _loose(label):
                spans.append((first, last + 1))
            elif check_offsets:
                raise MalformedRecord(f"answer not at its offset: {label!r} at {pair}, found {found!r} there")
    golds = [need_text({"answers": gold}, "answers") for gold in need(entry, "answers", list)]
    if not golds or (check_offsets and not spans):
        raise MalformedRecord("no answer: answers or detected_answers is empty")
    return Question(question_id, text, tuple(golds), tuple(spans))


def _loose(text: str) -> str:
    """Letters and digits of the normalised answer, without accents; the text itself when nothing is left."""
    folded = unicodedata.normalize("NFKD", normalize_answer(text))
    return "".join(character for character in folded if character.isalnum()) or text
