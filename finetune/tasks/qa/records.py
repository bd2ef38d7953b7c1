"""Reading extractive QA files, plain or gz:

SQuAD 1.1, 2.0   an object whose "data" is a list of articles, each of paragraphs, each of a context and questions
MRQA             a line for each context, with its questions; the first line may be a header
flat rows        a row for each question, with its context, as the Hugging Face sets have them: lines, a list, or in "data"

Every record is checked before anything is made of it. A malformed one is named by article, paragraph and question
id; what the file is read for says whether that ends the command or is skipped and counted (``finetune.records``).
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from finetune.json_documents import documents, first_line
from finetune.records import (
    MalformedRecord,
    NoLabel,
    Purpose,
    RecordReport,
    check_object,
    check_text,
    has,
    need,
    need_text,
    readable,
    wrong_type,
)
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
    where: str = ""
    """Where it stands in its file, if not in an article of SQuAD's."""

    @property
    def place(self) -> str:
        """For messages."""
        return self.where or f'article "{self.article}", paragraph {self.number}'


class AnswerNotAtOffset(MalformedRecord):
    """The context has another text where the file says that the answer stands."""

    advice = "correct the record, or say --ignore-offsets to score by answer texts alone"

    def __init__(self, answer: str, place: str, found: str):
        super().__init__("answer not at its offset", f"{answer[:80]!r} at {place}, found {found[:80]!r} there")


@dataclass
class QuestionFile:
    """The paragraphs of a file, and what was met while reading it."""

    paragraphs: list[Paragraph]
    report: RecordReport

    @property
    def questions(self) -> Iterator[Question]:
        return (question for paragraph in self.paragraphs for question in paragraph.questions)

    @property
    def impossible(self) -> int:
        """Questions without an answer."""
        return sum(question.impossible for question in self.questions)

    def golds(self) -> tuple[list[str], list[tuple[str, ...]]]:
        """The ids of the questions, and the answers to score each against."""
        return [question.id for question in self.questions], [question.answers for question in self.questions]

    def summary(self) -> str:
        return f"{self.report.examples:,} questions ({self.impossible:,} unanswerable){self.report.losses}"

    def first(self, limit: int | None) -> QuestionFile:
        """Cut after `limit` questions. Raises UserError for a limit below 1."""
        if limit is None:
            return self
        if limit < 1:
            raise UserError(f"--limit {limit}: give at least 1 question.")
        kept, left = [], limit
        for paragraph in self.paragraphs:
            if not left:
                break
            kept.append(replace(paragraph, questions=tuple(islice(paragraph.questions, left))))
            left -= len(kept[-1].questions)
        return QuestionFile(kept, self.report)


def read_questions(path: Path, purpose: Purpose, *, check_offsets: bool = True) -> QuestionFile:
    """All paragraphs of `path`, or of standard input for `-`, that have a usable question.

    check_offsets: False accepts answers whose text is not at its offset, keeping the text and no span: enough
                   for the official metrics, which never look at offsets, and for files known to be off.

    Raises UserError for a file that is none of the formats or has no usable question, and, unless it is read to train
    on, at the first malformed record. To predict, questions need no answers, and those there are are not looked at.
    """
    path = Path(path)
    report = RecordReport(path, strict=purpose != "train", noun="questions")
    reader = _Reader(report, purpose == "predict", check_offsets)
    with readable(path) as stream:
        paragraphs = [_joined(list(rows)) for _, rows in groupby(reader.paragraphs(path, stream), key=_context_of)]
    found = QuestionFile(paragraphs, report)
    if not report.examples:
        raise report.nothing_left(found.summary())
    return found


def _context_of(paragraph: Paragraph) -> tuple[str, int, str]:
    """The same for neighbouring rows about one context."""
    return paragraph.article, paragraph.number, paragraph.context


def _joined(rows: list[Paragraph]) -> Paragraph:
    return replace(rows[0], questions=tuple(question for row in rows for question in row.questions))


class Parse(Protocol):
    """Makes a question of a checked id and a raw entry."""

    def __call__(self, question_id: str, entry: dict[str, Any], context: str, check_offsets: bool) -> Question: ...


class Place(NamedTuple):
    """Where a paragraph stands: for messages, and for the paragraph itself."""

    where: str
    article: str
    number: int


@dataclass
class _Reader:
    """One pass through one file."""

    report: RecordReport
    without_answers: bool
    check_offsets: bool
    seen: set[str] = field(default_factory=set)

    def paragraphs(self, path: Path, stream: io.TextIOBase) -> Iterator[Paragraph]:
        """Those with a usable question. A row about one question is a paragraph with that one."""
        dataset = path.name
        for count, document in enumerate(documents(path, *first_line(stream), stream)):
            entry, line = document.value, f"line {document.line}"
            if document.broken is not None:
                self.report.malformed(line, document.broken)
            elif isinstance(entry, list) and (count or not entry or isinstance(entry[0], dict)):
                yield from self._data(entry, f"{line}, " if count else "")
            elif has(entry, "data") and isinstance(entry["data"], list):
                yield from self._data(entry["data"], f"{line}, " if count else "")
            elif has(entry, "header"):  # of MRQA; joined files have several
                header = entry["header"]
                dataset = _title(header.get("dataset")) or path.name if isinstance(header, dict) else path.name
            elif has(entry, "question") and "qas" not in entry:
                yield from self._row(line, entry)
            elif count or has(entry, "context"):
                place = Place(f'article "{dataset[:80]}", {line}', dataset, document.line - 1)
                yield from self._paragraph(place, entry, _mrqa_question)
            else:
                raise UserError(
                    f'{path}: neither SQuAD (an object with a list "data"), nor MRQA (a line per context), nor rows with '
                    '"question" and "context".'
                )

    def _data(self, entries: list[Any], document: str) -> Iterator[Paragraph]:
        """Articles, or flat rows. document: of several in a file, which one."""
        for number, entry in enumerate(entries):
            if isinstance(entry, dict) and "paragraphs" not in entry and ("question" in entry or "context" in entry):
                yield from self._row(f"{document}row {number}", entry)
                continue
            title = _title(entry.get("title")) if isinstance(entry, dict) else ""
            where = f'{document}article "{title[:80]}"' if title else f"{document}article {number}"
            try:
                paragraphs = need(entry, "paragraphs", list)
            except MalformedRecord as error:
                error.examples = 0  # as far as anybody knows
                self.report.malformed(where, error)
                continue
            for place, paragraph in enumerate(paragraphs):
                yield from self._paragraph(
                    Place(f"{where}, paragraph {place}", title or where, place), paragraph, _squad_question
                )

    def _row(self, where: str, row: dict[str, Any]) -> Iterator[Paragraph]:
        article = _title(row.get("title")) or self.report.path.name
        yield from self._paragraph(Place(where, article, 0), {**row, "qas": [row]}, _squad_question)

    def _paragraph(self, place: Place, entry: Any, parse: Parse) -> Iterator[Paragraph]:
        try:
            entries = need(entry, "qas", list)
        except MalformedRecord as error:
            error.examples = 0  # as far as anybody knows
            self.report.malformed(place.where, error)
            return
        try:
            context = need_text(entry, "context")
        except MalformedRecord as error:
            error.examples = len(entries)
            self.report.malformed(place.where, error)
            return
        questions = []
        for number, item in enumerate(entries):
            label = f"{place.where}, question {number}"
            try:
                question_id = need_id(item)
                label = f"{place.where}, id {question_id[:80]}"
                if question_id in self.seen:
                    raise MalformedRecord("duplicate id")
                if self.without_answers:
                    question = Question(question_id, need_text(item, "question"), (), ())
                else:
                    question = parse(question_id, item, context, self.check_offsets)
            except MalformedRecord as error:
                self.report.malformed(label, error)
                continue
            self.seen.add(question_id)
            self.report.examples += 1
            questions.append(question)
        if questions:
            yield Paragraph(place.article, place.number, context, tuple(questions), place.where)


def _title(value: Any) -> str:
    """What a file calls an article; "" where that is no name. It is for messages alone, so nothing is wrong about it."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def need_id(entry: Any) -> str:
    """The question's id: `id` in SQuAD, `qid` in MRQA, a string or a whole number."""
    check_object(entry)
    given = [
        key for key in ("qid", "id") if entry.get(key) not in (None, "")
    ]  # MRQA has both; there "id" is often empty
    key = given[0] if given else "qid" if "qid" in entry else "id"
    if key not in entry:
        raise MalformedRecord('missing field "id"')
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise wrong_type(key, value, "a string or a whole number")
    check_text(str(value), key)
    return str(value)


def _squad_question(question_id: str, entry: dict[str, Any], context: str, check_offsets: bool) -> Question:
    text = need_text(entry, "question")
    impossible = need(entry, "is_impossible", bool) if "is_impossible" in entry else None
    answers = entry.get("answers")
    if answers is None and not impossible:
        raise NoLabel("answers")
    if isinstance(answers, dict):  # as in flat rows, where two empty lists say that there is no answer
        impossible = impossible is not False if not answers.get("text") else impossible
        answers = _from_columns(answers)
    elif answers is not None:
        answers = need(entry, "answers", list)
    if impossible and answers:
        raise MalformedRecord("contradiction", "is_impossible is true, yet there are answers")
    if not answers and not impossible:
        raise MalformedRecord("no answer", "answers is empty, yet is_impossible is not true")
    golds, spans = [], []
    for answer in answers or []:
        gold = need_text(answer, "text")
        start = need(answer, "answer_start", int)
        golds.append(gold)
        found = context[start : start + len(gold)] if start >= 0 else ""
        if found == gold:
            spans.append((start, start + len(gold)))
        elif check_offsets:
            raise AnswerNotAtOffset(gold, f"character {start}", found)
    return Question(question_id, text, tuple(golds), tuple(spans))


def _from_columns(answers: dict[str, Any]) -> list[dict[str, Any]]:
    """An object of two lists as SQuAD's list of objects."""
    texts, starts = need(answers, "text", list), need(answers, "answer_start", list)
    if len(texts) != len(starts):
        lengths = f"{len(texts)} of text, {len(starts)} of answer_start"
        raise MalformedRecord('lists of different lengths in "answers"', lengths)
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _mrqa_question(question_id: str, entry: dict[str, Any], context: str, check_offsets: bool) -> Question:
    text = need_text(entry, "question")
    for label in ("detected_answers", "answers"):
        if entry.get(label) is None:
            raise NoLabel(label)
    spans = []
    for answer in need(entry, "detected_answers", list):
        label = need_text(answer, "text")
        pairs = need(answer, "char_spans", list)
        for pair in pairs:
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(value) is int for value in pair)):
                raise MalformedRecord('field "char_spans" of the wrong type', "expected pairs [first, last]")
            first, last = pair  # MRQA counts the last character in
            found = context[first : last + 1] if 0 <= first <= last < len(context) else ""
            # MRQA found its spans by normalised search: case, articles and accents may differ from the text.
            if found and _loose(found) == _loose(label):
                spans.append((first, last + 1))
            elif check_offsets:
                raise AnswerNotAtOffset(label, str(pair), found)
    golds = [need_text({"answers": gold}, "answers") for gold in need(entry, "answers", list)]
    if not golds or (check_offsets and not spans):
        raise MalformedRecord("no answer", "answers or detected_answers is empty")
    return Question(question_id, text, tuple(golds), tuple(spans))


def _loose(text: str) -> str:
    """Letters and digits of the normalised answer, without accents; the text itself when nothing is left."""
    folded = unicodedata.normalize("NFKD", normalize_answer(text))
    return "".join(character for character in folded if character.isalnum()) or text


def paragraphs_of(context: str, questions: Iterable[str], where: str = "the text") -> list[Paragraph]:
    """Questions that somebody asks about a text, as a file would hold them; their ids count from 0."""
    items = tuple(Question(str(number), text, (), ()) for number, text in enumerate(questions))
    return [Paragraph(where, 0, context, items)]
