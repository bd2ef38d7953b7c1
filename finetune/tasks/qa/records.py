"""Reading extractive QA files: SQuAD 1.1 and 2.0 (one JSON object) and MRQA (one JSON object a line), plain or gz.

Every record is checked before anything is made of it. A malformed one is named by article, paragraph and question
id; what the file is read for says whether that ends the command or is skipped and counted (``finetune.records``).
"""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from finetune.records import MalformedRecord, Purpose, RecordReport, has, need, need_text, readable
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

    @property
    def place(self) -> str:
        """For messages."""
        return f'article "{self.article}", paragraph {self.number}'


class AnswerNotAtOffset(MalformedRecord):
    """The context has another text where the file says that the answer stands."""

    advice = "correct the record, or say --ignore-offsets to score by answer texts alone"

    def __init__(self, answer: str, place: str, found: str):
        super().__init__("answer not at its offset", f"{answer!r} at {place}, found {found!r} there")


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
    """All paragraphs of `path` that have a usable question.

    check_offsets: False accepts answers whose text is not at its offset, keeping the text and no span: enough
                   for the official metrics, which never look at offsets, and for files known to be off.

    Raises UserError for a file that is none of the formats or has no usable question, and, unless it is read to train
    on, at the first malformed record. To predict, questions need no answers, and those there are are not looked at.
    """
    path = Path(path)
    reader = _Reader(RecordReport(path, strict=purpose != "train"), purpose == "predict", check_offsets)
    with readable(path) as stream:
        paragraphs = list(reader.paragraphs(path, stream))
    found = QuestionFile(paragraphs, reader.report)
    if not reader.report.examples:
        raise UserError(f"{path}: holds no usable question. {found.summary()}.")
    return found


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
        first = stream.readline()
        try:
            head = json.loads(first)
        except json.JSONDecodeError:
            head = None  # a SQuAD file written over several lines, or not JSON at all
        if isinstance(head, dict) and "data" not in head and ("header" in head or "context" in head):
            yield from self._mrqa(path.name, first, stream)
            return
        if head is None:
            try:
                head = json.loads(first + stream.read())
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: not valid JSON: {error}.") from None
        if not isinstance(head, dict) or not isinstance(head.get("data"), list):
            raise UserError(f'{path}: neither SQuAD (an object with a list "data") nor MRQA (a line per context).')
        yield from self._squad(head["data"])

    def _squad(self, articles: list[Any]) -> Iterator[Paragraph]:
        for place, article in enumerate(articles):
            where = f"article {place}"
            try:
                title = str(need(article, "title", str)) if has(article, "title") else where
                where = f'article "{title}"'
                paragraphs = need(article, "paragraphs", list)
            except MalformedRecord as error:
                self.report.malformed(where, error)
                continue
            for number, paragraph in enumerate(paragraphs):
                yield from self._paragraph(
                    Place(f"{where}, paragraph {number}", title, number), paragraph, _squad_question
                )

    def _mrqa(self, title: str, first: str, stream: io.TextIOBase) -> Iterator[Paragraph]:
        line, number = first, 0
        while line:
            where = f"line {number + 1}"
            if line.strip():
                try:
                    entry = json.loads(line)
                    if not isinstance(entry, dict):
                        raise MalformedRecord("line is not an object")
                except json.JSONDecodeError:
                    self.report.malformed(where, MalformedRecord("line is not valid JSON"))
                except MalformedRecord as error:
                    self.report.malformed(where, error)
                else:
                    if number == 0 and "header" in entry:
                        header = entry["header"]
                        title = str(header.get("dataset", title)) if isinstance(header, dict) else title
                    else:
                        place = Place(f'article "{title}", {where}', title, number)
                        yield from self._paragraph(place, entry, _mrqa_question)
            line, number = stream.readline(), number + 1

    def _paragraph(self, place: Place, entry: Any, parse: Parse) -> Iterator[Paragraph]:
        try:
            context = need_text(entry, "context")
            entries = need(entry, "qas", list)
        except MalformedRecord as error:
            self.report.malformed(place.where, error)
            return
        questions = []
        for number, item in enumerate(entries):
            label = f"{place.where}, question {number}"
            try:
                question_id = need_id(item)
                label = f"{place.where}, id {question_id}"
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
            yield Paragraph(place.article, place.number, context, tuple(questions))


def need_id(entry: Any) -> str:
    """The question's id: `id` in SQuAD, `qid` in MRQA, a string or a whole number."""
    for key in ("qid", "id"):  # an MRQA question has both, and there "id" is often empty
        if has(entry, key):
            value = entry[key]
            if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                raise MalformedRecord("field of the wrong type", f'"{key}" is {type(value).__name__}')
            return str(value)
    raise MalformedRecord("missing field", '"id"')


def _squad_question(question_id: str, entry: dict[str, Any], context: str, check_offsets: bool) -> Question:
    text = need_text(entry, "question")
    answers = need(entry, "answers", list)
    impossible = need(entry, "is_impossible", bool) if "is_impossible" in entry else False
    if impossible and answers:
        raise MalformedRecord("contradiction", "is_impossible is true, yet there are answers")
    if not answers and not impossible:
        raise MalformedRecord("no answer", "answers is empty, yet is_impossible is not true")
    golds, spans = [], []
    for answer in answers:
        gold = need_text(answer, "text")
        start = need(answer, "answer_start", int)
        golds.append(gold)
        found = context[start : start + len(gold)] if start >= 0 else ""
        if found == gold:
            spans.append((start, start + len(gold)))
        elif check_offsets:
            raise AnswerNotAtOffset(gold, f"character {start}", found)
    return Question(question_id, text, tuple(golds), tuple(spans))


def _mrqa_question(question_id: str, entry: dict[str, Any], context: str, check_offsets: bool) -> Question:
    text = need_text(entry, "question")
    spans = []
    for answer in need(entry, "detected_answers", list):
        label = need_text(answer, "text")
        pairs = need(answer, "char_spans", list)
        for pair in pairs:
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(value) is int for value in pair)):
                raise MalformedRecord("field of the wrong type", f"char_spans holds {pair!r}, not [first, last]")
            first, last = pair  # MRQA counts the last character in
            found = context[first : last + 1] if 0 <= first <= last else ""
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
