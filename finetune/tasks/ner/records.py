"""Reading sentences and their entities, plain or gz:

columns        CoNLL's: a word a line, its tag in a column (``conll``); IOB1, IOB2 and BIOES are told apart and converted
JSON lines     ``tokens`` and ``tags`` (or ``ner_tags``), names or, where the names are given, numbers; or ``text`` and character spans ``spans``, ``entities`` or
               ``label``: [start, end, type] or {"start", "end", "label"}, as annotation tools write them
plain lines    to predict: each line is a text, split into words here

Of which document a sentence is: columns have -DOCSTART- lines or "# newdoc" comments, JSON lines the field ``document`` (without
it a line is a document), plain lines a blank line between two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from finetune.tasks.ner.conll import find_layout, looks_like_columns, read_blocks, words_of
from finetune.tasks.ner.schemes import Entity, Tag, begins, check_sentence, entities_of, scheme_of
from finetune.tasks.ner.words import place_words, split_words
from spanbert.errors import UserError

SPAN_KEYS = ("spans", "entities", "label")
TAG_KEYS = ("tags", "ner_tags")


class Span(NamedTuple):
    """An entity as [start, end) characters of a text."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class Sentence:
    """One example: a text, its words, and the entities in it (None where they are not known)."""

    line: int  # from 1
    text: str
    words: tuple[tuple[int, int], ...]  # [start, end) characters of each
    entities: tuple[Entity, ...] | None = None
    spans: tuple[Span, ...] = ()
    """What ``entities`` are in the text: what a prediction is compared with."""
    id: str = ""
    document: int = 0
    """Neighbours of one number are of one document: what a model with context sees around a sentence."""

    def span(self, entity: Entity) -> Span:
        return Span(self.words[entity.first][0], self.words[entity.stop - 1][1], entity.type)


@dataclass
class SentenceFile:
    """The sentences of a file, and what was met while reading it."""

    sentences: list[Sentence]
    report: RecordReport
    notes: list[str] = field(default_factory=list)
    """How it was read: the tags' column and scheme, and what of them was odd."""

    def types(self) -> list[str]:
        """Every type of entity that occurs, sorted."""
        return sorted({entity.type for sentence in self.sentences for entity in sentence.entities or ()})

    def summary(self) -> str:
        entities = sum(len(sentence.entities or ()) for sentence in self.sentences)
        return f"{self.report.examples:,} sentences, {entities:,} entities{self.report.losses}"

    def first(self, limit: int | None) -> SentenceFile:
        """The first ``limit`` sentences. Raises UserError for a limit below 1."""
        if limit is not None and limit < 1:
            raise UserError(f"--limit {limit}: give at least 1 sentence.")
        return replace(self, sentences=self.sentences[:limit])


def read_sentences(
    path: Path,
    purpose: Purpose,
    tag_column: str | None = None,
    known: frozenset[str] = frozenset(),
    tag_names: Sequence[str] = (),
) -> SentenceFile:
    """The sentences of ``path``, or of standard input for ``-``.

    tag_column: of CoNLL's columns, number from 1 or name; None to look for it. known: types there may be; empty when
    any will do. tag_names: what the numbers 0, 1, … in JSON lines mean. Raises UserError for a file without tags or without a usable sentence, and, unless it is read to train
    on, at the first malformed record.
    """
    with readable(path, errors="surrogateescape") as stream:
        lines = list(stream)
    found = SentenceFile([], RecordReport(path, strict=purpose != "train"))
    filled = next((line for line in lines if line.strip()), "")
    labelled = purpose != "predict"
    if filled.lstrip().startswith("{"):
        sentences = _json_lines(lines, found, labelled, tag_names)
    elif labelled or looks_like_columns(lines):
        sentences = _columns(lines, found, tag_column, labelled)
    else:
        sentences = _texts(lines)
    for sentence in sentences:
        try:
            check_text(sentence.text, "text")
            for entity in sentence.entities or ():
                check_text(entity.type, "type")
            unknown = next((e.type for e in sentence.entities or () if known and e.type not in known), None)
            if labelled and unknown is not None:
                raise MalformedRecord("unknown type", f"{unknown!r}; the model knows {', '.join(sorted(known))}")
        except MalformedRecord as error:
            found.report.malformed(f"line {sentence.line}", error)
            continue
        found.sentences.append(sentence)
    found.report.examples = len(found.sentences)
    if not found.sentences:
        skipped = f"; {found.report.lines[0]}" if found.report.lines else ""
        raise UserError(f"{path}: no usable sentence{found.report.losses}{skipped}.")
    return found


def _texts(lines: list[str]) -> Iterator[Sentence]:
    document = 0
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield Sentence(number, text, tuple(split_words(text)), document=document)
        else:
            document += 1


def _columns(lines: list[str], found: SentenceFile, tag_column: str | None, labelled: bool) -> Iterator[Sentence]:
    blocks = read_blocks(lines)
    if not blocks:
        return
    layout = find_layout(found.report.path, blocks, tag_column, labelled=labelled)
    read = []
    for block in blocks:
        line = block.rows[0][0]
        try:
            rows = []
            for at, word, tag in words_of(block, layout):
                line = at
                rows.append((word, Tag.of(tag) if labelled and tag is not None else None))
            read.append((block, [word for word, _ in rows], [tag for _, tag in rows if tag is not None]))
        except MalformedRecord as error:
            found.report.malformed(f"line {getattr(error, 'line', line)}", error)
    scheme = scheme_of(tags for _, _, tags in read)
    if labelled:
        found.notes.append(f"{layout}, {scheme}")
    before: Tag | None = None
    irregular = 0
    for block, words, tags in read:
        line = block.rows[0][0]
        try:
            check_sentence(tags, before, scheme)
        except MalformedRecord as error:
            found.report.malformed(f"line {line}", error)
            before = None
            continue
        before = tags[-1] if tags else None
        irregular += scheme != "IOB1" and sum(
            tag.letter in "IE" and begins(tags[place - 1] if place else None, tag) for place, tag in enumerate(tags)
        )
        comments = block.comments
        sentence = _sentence(line, words, tags if labelled else None, comments.get("text"), comments.get("sent_id", ""))
        yield replace(sentence, document=block.document)
    if irregular:
        found.notes.append(f"{irregular:,} entities begin without B-, read as conlleval reads them")


def _sentence(line: int, words: list[str], tags: list[Tag] | None, text: str | None, id: str) -> Sentence:
    text, places = place_words(words, text)
    sentence = Sentence(line, text, tuple(places), id=id)
    if tags is None:
        return sentence
    entities = tuple(entities_of(tags))
    return replace(sentence, entities=entities, spans=tuple(map(sentence.span, entities)))


def _json_lines(lines: list[str], found: SentenceFile, labelled: bool, tag_names: Sequence[str]) -> Iterator[Sentence]:
    tagged: list[tuple[int, dict[str, Any], list[str], list[Tag], int]] = []
    inside = 0  # spans that begin or end inside a word
    named: Any = None  # document of the line before
    document = 0  # its first line
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = parse_line(line)
            before, named = named, entry["document"] if has(entry, "document") else None
            if named is None or named != before:
                document = number
            if has(entry, "tokens"):
                words, tags = _tokens(entry, labelled, tag_names)
                tagged.append((number, entry, words, tags, document))
                continue
            sentence = Sentence(number, need_text(entry, "text"), (), id=str(entry.get("id", "")), document=document)
            sentence = replace(sentence, words=tuple(split_words(sentence.text)))
            if labelled:
                sentence = _with_spans(sentence, entry)
                inside += sum(sentence.span(e) != s for e, s in zip(sentence.entities or (), sentence.spans))
            yield sentence
        except MalformedRecord as error:
            found.report.malformed(f"line {number}", error)
    scheme = scheme_of(tags for _, _, _, tags, _ in tagged)
    for number, entry, words, tags, document in tagged:
        try:
            check_sentence(tags, None, scheme)
        except MalformedRecord as error:
            found.report.malformed(f"line {number}", error)
            continue
        text = entry.get("text") if isinstance(entry.get("text"), str) else None
        sentence = _sentence(number, words, tags if labelled else None, text, str(entry.get("id", "")))
        yield replace(sentence, document=document)
    if tagged and labelled:
        found.notes.append(scheme)
    if inside:
        found.notes.append(
            f"{inside:,} entities begin or end inside a word: learned as the whole words, and never found exactly"
        )


def _tokens(entry: dict[str, Any], labelled: bool, tag_names: Sequence[str]) -> tuple[list[str], list[Tag]]:
    words = need(entry, "tokens", list)
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise MalformedRecord("empty word" if words else "empty field", '"tokens" must be a list of words')
    if not labelled:
        return words, []
    key = next((key for key in TAG_KEYS if key in entry), TAG_KEYS[0])
    tags = need(entry, key, list)
    if len(tags) != len(words):
        raise MalformedRecord("another number of tags", f"{len(tags)} for {len(words)} tokens")
    return words, [Tag.of(_tag_name(tag, key, tag_names)) for tag in tags]


def _tag_name(tag: Any, key: str, tag_names: Sequence[str]) -> str:
    """A tag that is written as its name, or as its number among ``tag_names``."""
    if isinstance(tag, str):
        return tag
    if type(tag) is not int:
        raise MalformedRecord(
            "tags without names", f'"{key}" must hold names such as B-PER, not {json.dumps(tag)[:80]}'
        )
    if not tag_names:
        raise MalformedRecord(
            "tags without names",
            f'"{key}" holds numbers; name them in their order, 0 first, such as --tag-names O,B-PER,I-PER',
        )
    if not 0 <= tag < len(tag_names):
        raise MalformedRecord(
            "a tag number without a name", f'{tag} in "{key}"; --tag-names has {len(tag_names)} names, from 0'
        )
    return tag_names[tag]


def _with_spans(sentence: Sentence, entry: dict[str, Any]) -> Sentence:
    """The entities of a text with character spans: the words that a span touches."""
    key = next((key for key in SPAN_KEYS if key in entry), SPAN_KEYS[0])
    spans = sorted(_span(part, sentence.text) for part in need(entry, key, list))
    entities: list[Entity] = []
    for span in spans:
        touched = [n for n, (start, end) in enumerate(sentence.words) if start < span.end and end > span.start]
        if entities and touched[0] < entities[-1].stop:
            raise MalformedRecord("entities that overlap", f"{span.type} at {span.start}")
        entities.append(Entity(touched[0], touched[-1] + 1, span.type))
    return replace(sentence, entities=tuple(entities), spans=tuple(spans))


def _span(part: Any, text: str) -> Span:
    """[start, end, type] or an object with these, without white space at either side."""
    if isinstance(part, dict):
        part = [part.get("start"), part.get("end"), part.get("label", part.get("type"))]
    if not isinstance(part, list) or [type(value) for value in part] != [int, int, str]:
        raise MalformedRecord("field of the wrong type", f"an entity is [start, end, type], not {json.dumps(part)}")
    start, end, kind = part
    if not kind.strip():
        raise MalformedRecord("empty class", f"the entity at {start} has no type")
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        raise MalformedRecord("a span outside the text", f"{start} to {end} of {len(text)} characters")
    inner = text[start:end]
    return Span(start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip()), kind.strip())
