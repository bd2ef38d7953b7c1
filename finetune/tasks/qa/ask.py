"""`spanbert ask`: questions over a text of any length, answered in the text's own words."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from finetune.retrieval.sentences import SENTENCE_REACH, sentence_around
from finetune.tasks.qa.answerer import Answer, QuestionAnswerer
from spanbert.errors import UserError
from spanbert.weights import qa_model_path


@dataclass(frozen=True)
class AskConfig:
    """Answer questions over a text of any length; without questions, ask for them one by one."""

    model: Positional[str | None] = None
    """Model or run folder; left out, the bundled model answers."""
    questions: Positional[tuple[str, ...]] = ()
    """Questions, each in quotation marks."""
    context: Path | None = None
    """Text file (UTF-8) to answer from; - reads it from standard input."""
    n_best: int = 3
    """Answers shown for each question."""
    json: bool = False
    """One JSON object a question instead of text."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""


def highlighted(text: str, answer: Answer, colour: bool) -> str:
    """The sentence with the answer in colour, or between » and «; … marks a sentence that goes on."""
    low, high = sentence_around(text, answer.start, answer.end)
    before, after = text[low : answer.start], text[answer.end : high]
    on, off = ("\x1b[1;32m", "\x1b[0m") if colour else ("»", "«")
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


def one_line(text: str) -> str:
    return " ".join(text.split())


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
    if words and Path(words[0]).is_dir():
        return Path(words[0]), words[1:]
    if words and re.fullmatch(r"[^\s?？]*/[^\s?？]*", words[0]):
        raise UserError(f"{words[0]}: no such model folder.")
    return qa_model_path(), words


def read_context(path: Path | None) -> str:
    """The text to answer from. Raises UserError when it is absent, not UTF-8, or blank."""
    if path is None:
        raise UserError("say what to answer from: --context FILE, or --context - for standard input.")
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    if not text.strip():
        raise UserError(f"{path}: holds no text to answer from.")
    return text


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
    if config.n_best < 1:
        raise UserError(f"--n-best {config.n_best}: give at least 1.")
    folder, questions = model_and_questions(config)
    context = read_context(config.context)
    answerer = QuestionAnswerer.load(folder, device=config.device, precision=config.precision, backend=config.backend)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def reply(question: str, answers: list[Answer]) -> None:
        print(as_json(question, answers, context) if config.json else show(question, answers, context, colour))

    if questions:
        for question, answers in zip(
            questions, answerer.answers(questions, context, n_best=config.n_best), strict=True
        ):
            reply(question, answers)
        return
    if str(config.context) == "-":
        raise UserError("standard input is the context: give the questions on the command line.")
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{len(context):,} characters read from {config.context}; type a question, or nothing to leave.")
    asked = 0
    for question in typed_questions("? " if interactive else ""):
        try:
            reply(question, answerer.answer(question, context, n_best=config.n_best))
        except UserError as error:
            if not interactive:
                raise
            print(f"error: {error}")
        asked += 1
    if not asked and not interactive:
        raise UserError("no question: give one on the command line, or one a line on standard input.")
