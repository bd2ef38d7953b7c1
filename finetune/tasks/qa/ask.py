"""`spanbert ask`: questions over a text of any length, answered in the text's own words."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional, UseAppendAction

from finetune.retrieval.answer_documents import READ_WHOLE, DocumentAnswerer, surer_than
from finetune.retrieval.documents import Document, read_documents
from finetune.retrieval.index import Index, Retriever
from finetune.retrieval.opensearch import open_retriever
from finetune.retrieval.sentences import SENTENCE_REACH, sentence_around
from finetune.retrieval.show_answers import answers_as_json, one_line, show_answers
from finetune.tasks.qa.answerer import Answer, QuestionAnswerer
from spanbert.errors import UserError, note
from spanbert.files import TEXT_BYTES, read_bounded
from spanbert.terminal import colour as colour_code
from spanbert.weights import BUNDLED, qa_model_path

PARSED = (".md", ".markdown", ".html", ".htm", ".pdf", ".docx", ".jsonl")
Reply = Callable[[list[str]], None]


@dataclass(frozen=True)
class AskConfig:
    """Answer questions over a text of any length; without questions, ask for them one by one."""

    model: Positional[str | None] = None
    """Model or run folder, or the word for a bundled model: reader (the one that answers where this is left out) or scratch."""
    questions: Positional[tuple[str, ...]] = ()
    """Questions, each in quotation marks."""
    context: UseAppendAction[tuple[Path, ...]] = ()
    """File to answer from: text, Markdown, HTML, PDF, Word, JSON lines; - reads text from standard input. Can be given again."""
    index: str | None = None
    """Answer from the documents of this index, which `spanbert index` made: a folder, or http(s)://HOST:9200/NAME."""
    n_best: int = 3
    """Answers shown for each question."""
    all: float | None = None
    """Show every answer at least this sure, 0 to 1, instead of the best few; for a model with a calibration."""
    passages: int = 5
    """Passages read for each question, where a text is longer than one window of the model."""
    read_all: bool = False
    """Read the whole of one text and compare answers by their scores alone, whatever its length."""
    json: bool = False
    """One JSON object a question instead of text."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Arithmetic of the forward pass; int8 is for CPUs with units for it."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""


def highlighted(text: str, answer: Answer, colour: bool) -> str:
    """The sentence with the answer in colour, or between » and «; … marks a sentence that goes on."""
    low, high = sentence_around(text, answer.start, answer.end)
    before, after = text[low : answer.start], text[answer.end : high]
    on, off = (colour_code("1;32"), colour_code("0")) if colour else ("»", "«")
    cut_before = "… " if answer.start - low >= SENTENCE_REACH else ""
    cut_after = " …" if high - answer.end >= SENTENCE_REACH else ""
    return f"{cut_before}{before}{on}{answer.text}{off}{after}{cut_after}".replace("\n", " ")


def show(question: str, answers: list[Answer], context: str, colour: bool) -> str:
    """Question, best answer with its sentence, and the runners-up."""
    best, rest = answers[0], answers[1:]
    lines = [question]
    if best.no_answer:
        lines.append(f"  no answer in this text   (probability {best.probability:.2f}, score {best.score:.2f})")
    else:
        lines.append(f"  {one_line(best.text)}   (probability {best.probability:.2f}, score {best.score:.2f})")
        lines.append(f"  in: {highlighted(context, best, colour)}")
    for answer in rest:
        text = "no answer" if answer.no_answer else one_line(answer.text)
        lines.append(f"    {answer.probability:.2f}  {text}")
    return "\n".join(lines)


def as_json(question: str, answers: list[Answer], context: str) -> str:
    """The same for programs: offsets count characters of the context."""
    entries = []
    for answer in answers:
        low, high = (0, 0) if answer.no_answer else sentence_around(context, answer.start, answer.end)
        entries.append(dataclasses.asdict(answer) | {"sentence": context[low:high]})
    return json.dumps({"question": question, "answer": answers[0].text, "answers": entries}, ensure_ascii=False)


def model_and_questions(config: AskConfig) -> tuple[Path, list[str]]:
    """The first word is the model if it names a folder; otherwise it is a question for the bundled model."""
    words = [*([] if config.model is None else [config.model]), *config.questions]
    if words and (words[0] in BUNDLED or Path(words[0]).is_dir()):
        return Path(words[0]), words[1:]
    if words and re.fullmatch(r"[^\s?？]*/[^\s?？]*", words[0]):
        raise UserError(f"{words[0]}: no such model folder.")
    return qa_model_path(), words


def read_context(path: Path) -> str:
    """A text to answer from. Raises UserError when it is absent, not UTF-8, or blank."""
    try:
        text = read_bounded(path, TEXT_BYTES, "the text").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    if not text.strip():
        raise UserError(f"{path}: holds no text to answer from.")
    return text


def read_contexts(paths: Sequence[Path]) -> list[Document]:
    """The documents of some files: those of a kind that needs a reader by that, others as text. Raises UserError."""
    documents = []
    for path in paths:
        if path.suffix.lower() in PARSED and path.is_file():
            found, skipped = read_documents([path])
            if skipped:
                raise UserError(f"{skipped[0]}.")
            documents += found
        else:
            documents.append(Document(str(path), path.name, read_context(path)))
    return documents


def typed_questions(prompt: str) -> Iterator[str]:
    """Questions from standard input, one a line, until it ends or an empty line is typed at the prompt."""
    while True:
        try:
            line = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            break
        if line:
            yield line
        elif prompt:
            break


def run_ask(config: AskConfig) -> None:
    """Print answers to the questions given, or to those typed."""
    check(config)
    folder, questions = model_and_questions(config)
    documents = read_contexts(config.context)
    index: Retriever = Index.of(documents) if config.index is None else open_retriever(config.index)
    answerer = QuestionAnswerer.load(folder, device=config.device, precision=config.precision, backend=config.backend)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    whole = config.index is None and len(documents) == 1 and (config.read_all or index.passages <= READ_WHOLE)
    if config.read_all and not whole:
        raise UserError("--read-all reads one text: give one --context.")
    reply = (
        whole_text(config, answerer, documents[0].text, colour)
        if whole
        else by_passages(config, answerer, index, colour)
    )
    if questions:
        reply(questions)
        return
    if "-" in map(str, config.context):
        raise UserError("standard input is the context: give the questions on the command line.")
    interactive = sys.stdin.isatty()
    if interactive:
        amount = f"{index.passages:,} passages of {index.document_count:,} documents"
        if len(documents) == 1:
            amount = f"{len(documents[0].text):,} characters read from {config.context[0]}"
        print(f"{amount}; type a question, or nothing to leave.")
    asked = 0
    for question in typed_questions("? " if interactive else ""):
        try:
            reply([question])
        except UserError as error:
            if not interactive:
                raise
            print(f"error: {error}")
        asked += 1
    if not asked and not interactive:
        raise UserError("no question: give one on the command line, or one a line on standard input.")


def check(config: AskConfig) -> None:
    """UserError for options that make no sense together."""
    for name, value in (("--n-best", config.n_best), ("--passages", config.passages)):
        if value < 1:
            raise UserError(f"{name} {value}: give at least 1.")
    if config.all is not None and not 0 <= config.all <= 1:
        raise UserError(f"--all {config.all}: give a confidence from 0 to 1.")
    if not config.context and config.index is None:
        raise UserError("say what to answer from: --context FILE, --context - for standard input, or --index INDEX.")
    if config.context and config.index is not None:
        raise UserError("give --context or --index, not both.")


def whole_text(config: AskConfig, answerer: QuestionAnswerer, context: str, colour: bool) -> Reply:
    """Prints answers from all windows of one text."""
    if config.all is not None:
        raise UserError("--all needs confidences, which answers from passages have: this text is read as a whole.")

    def reply(questions: list[str]) -> None:
        for question, answers in zip(
            questions, answerer.answers(questions, context, n_best=config.n_best), strict=True
        ):
            print(as_json(question, answers, context) if config.json else show(question, answers, context, colour))

    return reply


def by_passages(config: AskConfig, answerer: QuestionAnswerer, index: Retriever, colour: bool) -> Reply:
    """Prints answers from the passages that fit the question best."""
    documents = DocumentAnswerer(answerer, index)
    if config.all is not None and documents.calibration is None:
        raise UserError(f"--all needs a calibration: spanbert calibrate {answerer.folder} FILE")
    if not documents.can_decline:
        note("this model always gives an answer: it was not trained on questions without one")

    def reply(questions: list[str]) -> None:
        n_best = config.n_best if config.all is None else sys.maxsize
        for found in documents.answer(questions, n_best=n_best, passages=config.passages):
            if config.all is not None:
                found = surer_than(found, config.all)
            if config.json:
                print(answers_as_json(found))
            else:
                named = index.document_count > 1
                print(show_answers(found, documents.calibration, named=named, colour=colour))

    return reply
