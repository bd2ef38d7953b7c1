"""The question-answering pipeline that transformers had until 5.3, over a model of this project.

    qa = spanbert.pipeline("question-answering")
    qa(question="Who?", context="…")  →  {"score": 0.9, "start": 3, "end": 9, "answer": "…"}

Names, defaults and results are those of its public documentation. An answer's score is the product of the softmax over the
starts and the softmax over the ends of its window; of the windows of a long context the best scores come first, whatever
they are worth between windows (`spanbert.pipeline` is for short contexts; `DocumentAnswerer` is for long ones).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.predict import window_logits
from finetune.records import MalformedRecord
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.decode import best_pairs
from finetune.tasks.qa.encode import encode_with_texts
from finetune.tasks.qa.features import SPECIALS, TextQuestionSet, WindowConfig
from finetune.tasks.qa.records import paragraphs_of
from finetune.tasks.qa.task import QATask
from spanbert.errors import UserError
from spanbert.weights import qa_model_path

TASK = "question-answering"
Result = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Of one call; the names are the pipeline's."""

    top_k: int = 1
    doc_stride: int | None = None  # tokens that two windows share; half a window, at most 128
    max_answer_len: int = 15  # tokens
    max_seq_len: int | None = None  # tokens of a window; 384, or what the model reads
    max_question_len: int = 64  # tokens; longer questions are cut
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "max_question_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def window(self, positions: int) -> int:
        """Raises ValueError for one that the model cannot read."""
        window = min(self.max_seq_len or 384, positions) if self.max_seq_len is None else self.max_seq_len
        if window > positions:
            raise ValueError(f"max_seq_len {window} is more than the {positions} tokens that the model reads")
        return window


class QuestionAnsweringPipeline:
    """Callable as that of transformers was."""

    def __init__(self, answerer: QuestionAnswerer) -> None:
        self.answerer = answerer

    def __call__(
        self,
        inputs: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
        *,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        max_question_len: int = 64,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Result | list[Result] | list[Result | list[Result]]:
        """Answers to one question or to several.

        inputs: {"question": …, "context": …}, or a list of such; or question and context by name, each a string or a list
        (one context for several questions will do).
        Returns {"score", "start", "end", "answer"} with context[start:end] == answer, for top_k > 1 a list of them, best
        first; a list with one of these an input where a list was given. handle_impossible_answer: "" at 0 … 0 takes part,
        with the smallest score that any window gives it.
        Raises ValueError for arguments that make no sense, and UserError for texts that hold nothing.
        """
        options = Options(
            top_k, doc_stride, max_answer_len, max_seq_len, max_question_len, handle_impossible_answer, align_to_words
        )
        pairs, several = pairs_of(inputs, question, context)
        found = [self._answers(*pair, options) for pair in pairs]
        results: list[Any] = [one[0] if top_k == 1 else one for one in found]
        return results if several else results[0]

    def _answers(self, question: str, context: str, options: Options) -> list[Result]:
        """At least one answer, at most top_k, best first."""
        windows, logits = self._read(question, context, options)
        spans: dict[tuple[int, int], float] = {}
        nothing = 1.0
        skip = int(windows.questions.texts.lengths[0]) + 2
        for window, (start, end) in enumerate(logits):
            first, count = int(windows.windows.first_W[window]), int(windows.windows.count_W[window])
            # as many scores as context tokens, and that of [CLS], which a reader gives what has no answer
            starts, ends = (_log_softmax(np.append(one[skip : skip + count], one[0])) for one in (start, end))
            nothing = min(nothing, float(np.exp(starts[-1] + ends[-1])))
            begins, lasts, scores = best_pairs(starts[:-1], ends[:-1], options.max_answer_len, options.top_k)
            for begin, last, score in zip(begins + first, lasts + first, scores, strict=True):
                place = self._characters(windows, int(begin), int(last), options.align_to_words)
                spans[place] = max(spans.get(place, 0.0), float(np.exp(score)))
        found: list[Result] = [
            {"score": score, "start": start, "end": end, "answer": context[start:end]}
            for (start, end), score in spans.items()
        ]
        if options.handle_impossible_answer:
            found.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
        return sorted(found, key=lambda one: -one["score"])[: options.top_k]

    def _read(self, question: str, context: str, options: Options) -> tuple[TextQuestionSet, list[np.ndarray]]:
        """The windows, and for each start and end logits (2, tokens)."""
        answerer = self.answerer
        window = options.window(answerer.model.config.max_position_embeddings)
        tokens = len(answerer.tokenizer.encode_ids(question)[: options.max_question_len])
        shared = options.doc_stride if options.doc_stride is not None else min(window // 2, 128)
        step = window - SPECIALS - tokens - shared
        if step < 1:
            raise ValueError(
                f"doc_stride {shared} and a question of {tokens} tokens leave nothing of a window of {window} tokens"
            )
        encoded = encode_with_texts(
            paragraphs_of(context, [question]),
            answerer.tokenizer,
            WindowConfig(window, step, options.max_question_len),
            _refuse,
        )
        task = QATask(answerer.settings)
        return encoded, window_logits(task, answerer.model, encoded, np.arange(len(encoded.windows)), answerer.machine)

    def _characters(self, windows: TextQuestionSet, begin: int, last: int, whole_words: bool) -> tuple[int, int]:
        """Characters of tokens begin … last, with the rest of the words that these are parts of."""
        if whole_words:
            starts = self.answerer.tokenizer.starts_word[windows.contexts[0]]
            while begin > 0 and not starts[begin]:
                begin -= 1
            while last + 1 < len(starts) and not starts[last + 1]:
                last += 1
        return int(windows.offsets[begin, 0]), int(windows.offsets[last, 1])


def pipeline(
    task: str,
    model: Path | str | None = None,
    *,
    device: int | str = "auto",
    precision: str = "auto",
    backend: str = "auto",
) -> QuestionAnsweringPipeline:
    """See ``spanbert.pipeline``."""
    if task != TASK:
        raise UserError(f"no pipeline {task!r}: there is {TASK!r}.")
    where = device if isinstance(device, str) else "cpu" if device < 0 else f"cuda:{device}"
    folder = qa_model_path() if model is None else Path(model)
    return QuestionAnsweringPipeline(QuestionAnswerer.load(folder, device=where, precision=precision, backend=backend))


def pairs_of(
    inputs: Mapping[str, str] | Sequence[Mapping[str, str]] | None,
    question: str | Sequence[str] | None,
    context: str | Sequence[str] | None,
) -> tuple[list[tuple[str, str]], bool]:
    """(question, context) of every input, and whether a list was given. Raises ValueError for what is neither."""
    if inputs is not None:
        if question is not None or context is not None:
            raise ValueError("give a dictionary or a list of them, or question and context by name, not both")
        entries = [inputs] if isinstance(inputs, Mapping) else list(inputs)
        for entry in entries:
            if not isinstance(entry, Mapping) or not {"question", "context"} <= entry.keys():
                raise ValueError('each input needs the keys "question" and "context"')
        pairs = [(entry["question"], entry["context"]) for entry in entries]
        several = not isinstance(inputs, Mapping)
    elif question is None or context is None:
        raise ValueError("give question and context")
    else:
        several = not (isinstance(question, str) and isinstance(context, str))
        questions = [question] if isinstance(question, str) else list(question)
        contexts = [context] * len(questions) if isinstance(context, str) else list(context)
        if len(questions) != len(contexts):
            raise ValueError(f"{len(questions)} questions and {len(contexts)} contexts: give as many, or one context")
        pairs = list(zip(questions, contexts, strict=True))
    for pair in pairs:
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise ValueError("questions and contexts must be strings that hold text")
    return pairs, several


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores.astype(np.float64)
    return scores - np.logaddexp.reduce(scores)


def _refuse(where: str, error: MalformedRecord) -> None:
    raise UserError(f"cannot answer: {error.detail}.")
