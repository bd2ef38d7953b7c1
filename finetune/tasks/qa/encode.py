"""From paragraphs to a question set: contexts tokenized once, questions cut, answers found among the tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from finetune.records import MalformedRecord, NoTokens
from finetune.tasks.qa.features import Questions, QuestionSet, TextQuestionSet, WindowConfig, Windows
from finetune.tasks.qa.records import Paragraph, Question
from finetune.token_texts import TokenTexts
from spanbert.tokenizer.wordpiece import Encoded, Tokenizer

#: Told where a text lies in which the tokenizer finds no token; the record is left out if it returns.
Malformed = Callable[[str, MalformedRecord], None]

PARAGRAPHS_AT_ONCE = 256

#: Characters of a text that the tokenizer sees at once, except for longer words: it takes some 150 bytes for each.
PART = 1 << 16


@dataclass
class _Collected:
    """What has been tokenized so far."""

    max_question: int
    malformed: Malformed
    contexts: list[np.ndarray] = field(default_factory=list)
    question_texts: list[np.ndarray] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    context_of: list[int] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)

    def add(self, paragraph: Paragraph, context: Encoded, questions: Iterable[tuple[Question, Encoded]]) -> list[int]:
        """→ places in the paragraph of the questions that were taken."""
        taken = []
        if not len(context.ids):
            self.malformed(paragraph.place, NoTokens("context", len(paragraph.questions)))
        for place, (question, encoded) in enumerate(questions):
            span = tokens_of(context.offsets, question.spans[0]) if question.spans else (-1, -1)
            where = f"{paragraph.place}, id {question.id}"
            if not len(context.ids):
                continue
            if not len(encoded.ids):
                self.malformed(where, NoTokens("question"))
                continue
            if question.spans and span[0] > span[1]:
                self.malformed(where, NoTokens("answer"))
                continue
            self.ids.append(question.id)
            self.question_texts.append(encoded.ids[: self.max_question])
            self.cut.append(len(encoded.ids) > self.max_question or len(question.text) > PART)
            self.context_of.append(len(self.contexts))
            self.answers.append(span)
            taken.append(place)
        self.contexts.append(context.ids)
        return taken

    def parts(self) -> tuple[TokenTexts, Questions]:
        questions = Questions(
            self.ids,
            TokenTexts.of(self.question_texts),
            np.array(self.context_of, dtype=np.int64),
            np.array(self.answers, dtype=np.int64).reshape(-1, 2),
            np.array(self.cut, dtype=bool),
        )
        return TokenTexts.of(self.contexts), questions


def encode_questions(
    paragraphs: Iterable[Paragraph], tokenizer: Tokenizer, config: WindowConfig, malformed: Malformed
) -> QuestionSet:
    """Tokenize paragraphs and lay out their windows; texts are not kept."""
    collected = _Collected(config.max_question, malformed)
    for paragraph, context, asked in _tokenized(paragraphs, tokenizer):
        collected.add(paragraph, context, asked)
    contexts, questions = collected.parts()
    windows = Windows.over(questions, contexts, config)
    return QuestionSet(config, tokenizer.cls_id, tokenizer.sep_id, contexts, questions, windows)


def encode_with_texts(
    paragraphs: Iterable[Paragraph], tokenizer: Tokenizer, config: WindowConfig, malformed: Malformed
) -> TextQuestionSet:
    """The same with contexts, character offsets and gold answers beside it, which decoding and scoring need."""
    collected = _Collected(config.max_question, malformed)
    texts: list[str] = []
    offsets = [np.zeros((0, 2), dtype=np.int32)]
    golds: list[tuple[str, ...]] = []
    for paragraph, context, asked in _tokenized(paragraphs, tokenizer):
        taken = collected.add(paragraph, context, asked)
        texts.append(paragraph.context)
        offsets.append(context.offsets)
        golds += [paragraph.questions[place].answers for place in taken]
    contexts, questions = collected.parts()
    windows = Windows.over(questions, contexts, config)
    return TextQuestionSet(
        config, tokenizer.cls_id, tokenizer.sep_id, contexts, questions, windows, texts, np.concatenate(offsets), golds
    )


def tokens_of(offsets: np.ndarray, span: tuple[int, int]) -> tuple[int, int]:
    """First and last token that touch the characters [start, end) of `span`; first > last when none does."""
    first = int(np.searchsorted(offsets[:, 1], span[0], side="right"))
    last = int(np.searchsorted(offsets[:, 0], span[1], side="left")) - 1
    return first, last


def encode_long(tokenizer: Tokenizer, text: str) -> Encoded:
    """``tokenizer.encode(text)``, but in bounded memory however long the text is: it is encoded part by part.

    The end of a part may cut a word, so a part's last word is encoded again with the next part.
    """
    if tokenizer.added:  # they are found in the text as it stands, and may hold several words
        return tokenizer.encode(text)
    ids, offsets = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
    begin, size = 0, PART
    while begin < len(text):
        part = tokenizer.encode(text[begin : begin + size])
        kept, end = len(part.ids), size
        if kept and begin + size < len(text):
            kept = int(np.flatnonzero(tokenizer.starts_word[part.ids])[-1])
            end = int(part.offsets[kept, 0])
        if not end:  # one word, longer than the part
            size *= 2
            continue
        ids.append(part.ids[:kept])
        offsets.append(part.offsets[:kept] + begin)
        begin, size = begin + end, PART
    return Encoded(np.concatenate(ids), np.concatenate(offsets))


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[Encoded]:
    """Short texts together, on all cores, and long ones part by part."""
    short = iter(tokenizer.encode_batch([text for text in texts if len(text) <= PART]))
    return (next(short) if len(text) <= PART else encode_long(tokenizer, text) for text in texts)


def _tokenized(
    paragraphs: Iterable[Paragraph], tokenizer: Tokenizer
) -> Iterator[tuple[Paragraph, Encoded, list[tuple[Question, Encoded]]]]:
    """Each paragraph with its context and its questions as tokens; of a question, those of its first PART characters."""
    iterator = iter(paragraphs)
    while group := list(itertools.islice(iterator, PARAGRAPHS_AT_ONCE)):
        contexts = _encode(tokenizer, [paragraph.context for paragraph in group])
        questions = [question for paragraph in group for question in paragraph.questions]
        encoded = _encode(tokenizer, [question.text[:PART] for question in questions])
        for paragraph, context in zip(group, contexts, strict=True):
            yield paragraph, context, [(question, next(encoded)) for question in paragraph.questions]
