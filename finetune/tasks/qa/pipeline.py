"""The question-answering pipeline that transformers had until 5.3, over a model of this project.

    qa = spanbert.pipeline("question-answering")
    qa(question="Who?", context="…")  →  {"score": 0.9, "start": 3, "end": 9, "answer": "…"}

Names, defaults and results are those of its public documentation and, where that is silent, of its release 4.57. An
answer's score is the product of the softmax over the starts and the softmax over the ends of its window. Answers of the
same text, but for case, are one answer: the scores of those among a window's 2 × top_k + 10 best spans (top_k, where
answers are not whole words) are added up, and it stands where it came first. Over the windows of a long context such a
sum may pass 1 (`spanbert.pipeline` is for short contexts; `DocumentAnswerer` is for long ones).

What is otherwise here than there, on purpose:

* Questions are cut to ``max_question_len``, as the documentation says; there, no fast tokenizer did so.
* With ``top_k`` above 1 the result is a list, even of one answer; and it holds answers only, where there were also some
  of score 0 that were no stretch of the context when the context had fewer than were asked for.
* With ``align_to_words`` a word that the edge of a window cuts is given whole.
* "[SEP]" and its like in a text are text; there they became special tokens.
* ``max_seq_len`` above what the model reads is lowered to that; a negative ``doc_stride`` is a ValueError, as is one
  that leaves windows no room to go on.
* One context given for a dictionary's list of questions is that of them all.
* Unknown options are refused; unknown keys of a record, such as its id, are not.
* A question without any token is refused, not only an empty one.
* The precision is the fastest of the machine unless ``precision="fp32"`` is given; scores in bf16 are rounded so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.predict import window_logits
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.decode import best_pairs
from finetune.tasks.qa.encode import encode_with_texts
from finetune.tasks.qa.features import SPECIALS, TextQuestionSet, WindowConfig, Windows
from finetune.tasks.qa.pipeline_inputs import Pair, inputs_of
from finetune.tasks.qa.records import Paragraph, Question
from finetune.tasks.qa.task import QATask
from spanbert.errors import UserError
from spanbert.weights import qa_model_path

TASK = "question-answering"
TOGETHER = 256  # questions of a list that are tokenized and read at a time, so that memory is bounded
Result = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Of one call; the names are the pipeline's."""

    top_k: int = 1
    doc_stride: int | None = None  # tokens that two windows share; half a window, at most 128
    max_answer_len: int = 15  # tokens
    max_seq_len: int | None = None  # tokens of a window; 384
    max_question_len: int = 64  # tokens; longer questions are cut
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "max_question_len", "max_seq_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.doc_stride is not None and not 0 <= self.doc_stride <= (self.max_seq_len or 384):
            raise ValueError(f"doc_stride must be 0 to max_seq_len {self.max_seq_len or 384}, not {self.doc_stride}")

    def given(self, options: dict[str, Any]) -> Options:
        """These with others in their place where they are not None. Raises TypeError for one that there is not."""
        options = dict(options)
        alias = options.pop("topk", None)
        if alias is not None and options.get("top_k") is None:
            options["top_k"] = alias
        unknown = options.keys() - {field.name for field in fields(self)}
        if unknown:
            raise TypeError(f"the question-answering pipeline has no option {', '.join(sorted(unknown))}")
        return replace(self, **{name: value for name, value in options.items() if value is not None})


class QuestionAnsweringPipeline:
    """Callable as that of transformers was."""

    def __init__(
        self, answerer: QuestionAnswerer, options: Options | None = None, batch_size: int | None = None
    ) -> None:
        """options: for the calls that do not say otherwise; batch_size: likewise."""
        self.answerer = answerer
        self.options = options or Options()
        self.batch_size = batch_size

    def __call__(
        self,
        *inputs: Any,
        question: str | Iterable[str] | None = None,
        context: str | Iterable[str] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        padding: Any = None,
        **options: Any,
    ) -> Any:
        """Answers to one question or to several.

        inputs: {"question": …, "context": …}, a list of such, a generator or a torch data set of such; both texts; or
        question and context by name, each a string or a list (one context for several questions will do).
        options: those of `Options`, with ``topk`` for top_k; None is the default.
        batch_size: questions that are read together; left out, up to 256 of a list and one of a generator.
        num_workers and padding change nothing: nothing is padded, and no other process has to help.

        Returns {"score", "start", "end", "answer"} with context[start:end] == answer, for top_k > 1 a list of them,
        best first; where several questions were asked a list with one of these for each, and for a generator or a data
        set an iterator over them, which asks for a question when its answer is wanted. One question in a list has its
        result by itself, as there. handle_impossible_answer: "" at 0 … 0 takes part, with the smallest score that any
        window gives it.
        A context without any token, such as " ", has the answer "" of score 0, or 1 if it may take part.
        Raises ValueError for arguments that make no sense, KeyError for a dictionary without question or context,
        TypeError for an option that there is not.
        """
        chosen = self.options.given(options)
        asked = inputs_of(inputs, question, context)
        size = batch_size or self.batch_size
        if asked.form == "stream":
            return self._results(asked.pairs, chosen, size or 1)
        results = list(self._results(asked.pairs, chosen, size or TOGETHER))
        return results[0] if asked.form == "one" else results

    def _results(self, pairs: Iterable[Pair], options: Options, size: int) -> Iterator[Result | list[Result]]:
        remaining = iter(pairs)
        while group := list(islice(remaining, size)):
            for found in self._answers(group, options):
                yield found[0] if options.top_k == 1 else found

    def _answers(self, pairs: Sequence[Pair], options: Options) -> Iterator[list[Result]]:
        """For each pair at least one answer, at most top_k, best first."""
        questions = self._encode(pairs, options)
        machine, task = self.answerer.machine, QATask(self.answerer.settings)
        logits = window_logits(task, self.answerer.model, questions, np.arange(len(questions.windows)), machine)
        place_of = {name: place for place, name in enumerate(questions.questions.ids)}
        for number in range(len(pairs)):
            place = place_of.get(str(number))
            if place is None:  # no token to be found in the context
                yield [{"score": float(options.handle_impossible_answer), "start": 0, "end": 0, "answer": ""}]
            else:
                yield self._decode(questions, place, logits, options)

    def _encode(self, pairs: Sequence[Pair], options: Options) -> TextQuestionSet:
        """The questions, called by their number, with windows that share what the options say."""
        tokenizer, positions = self.answerer.tokenizer, self.answerer.model.config.max_position_embeddings
        window = min(options.max_seq_len or 384, positions)
        shared = options.doc_stride if options.doc_stride is not None else min(window // 2, 128)
        asked = [Question(str(number), pair.question, (), ()) for number, pair in enumerate(pairs)]
        paragraphs = []
        for context, group in groupby(range(len(pairs)), key=lambda number: pairs[number].context):
            paragraphs.append(Paragraph("the text", 0, context, tuple(asked[number] for number in group)))
        config = WindowConfig(window, window, options.max_question_len)
        encoded = encode_with_texts(paragraphs, tokenizer, config, lambda where, error: None)
        for name in {one.id for one in asked} - set(encoded.questions.ids):
            if not len(tokenizer.encode_ids(pairs[int(name)].question)):
                raise ValueError(f"the question of input {name} holds no text")
        room_Q = window - SPECIALS - encoded.questions.texts.lengths
        cut_Q = encoded.contexts.lengths[encoded.questions.context_Q] > room_Q
        if (cut_Q & (room_Q <= shared)).any():
            tokens = int(encoded.questions.texts.lengths[cut_Q].max())
            raise ValueError(
                f"doc_stride {shared} and a question of {tokens} tokens leave nothing of a window of {window} tokens"
            )
        windows = Windows.over(encoded.questions, encoded.contexts, config, np.maximum(room_Q - shared, 1))
        return replace(encoded, windows=windows)

    def _decode(
        self, questions: TextQuestionSet, question: int, logits: Sequence[np.ndarray], options: Options
    ) -> list[Result]:
        context = int(questions.questions.context_Q[question])
        text, base = questions.context_texts[context], int(questions.contexts.bounds[context])
        tokens = questions.contexts[context]
        first_of_word, last_of_word = word_edges(self.answerer.tokenizer.starts_word[tokens])
        candidates = 2 * options.top_k + 10 if options.align_to_words else options.top_k
        answers: dict[str, Result] = {}
        nothing = 1.0
        skip = int(questions.questions.texts.lengths[question]) + 2
        for window in range(questions.bounds[question], questions.bounds[question + 1]):
            first, count = int(questions.windows.first_W[window]), int(questions.windows.count_W[window])
            # as many scores as context tokens, and that of [CLS], which a reader gives what has no answer
            starts, ends = (_log_softmax(np.append(one[skip : skip + count], one[0])) for one in logits[window])
            nothing = min(nothing, float(np.exp(starts[-1] + ends[-1])))
            for begin, last, score in zip(*best_pairs(starts[:-1], ends[:-1], options.max_answer_len, candidates)):
                begin, last = begin + first, last + first
                if options.align_to_words:
                    begin, last = first_of_word[begin], last_of_word[last]
                start, end = int(questions.offsets[base + begin, 0]), int(questions.offsets[base + last, 1])
                answer = text[start:end]
                new = {"score": 0.0, "start": start, "end": end, "answer": answer}
                answers.setdefault(answer.lower(), new)["score"] += float(np.exp(score))
        found = list(answers.values())
        if options.handle_impossible_answer:
            found.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
        return sorted(found, key=lambda one: -one["score"])[: options.top_k]


def word_edges(starts_word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of n tokens the first and the last token of its word: (n,) int64 each.

    starts_word: (n,) bool. Tokens before the first that starts a word are one word.
    """
    places = np.arange(len(starts_word))
    first = np.maximum.accumulate(np.where(starts_word, places, 0))
    ends_word = np.append(starts_word[1:], True)
    last = np.minimum.accumulate(np.where(ends_word, places, len(places))[::-1])[::-1]
    return first, last


def pipeline(
    task: str,
    model: Path | str | None = None,
    *,
    device: int | str | torch.device | None = None,
    precision: str = "auto",
    backend: str = "auto",
    batch_size: int | None = None,
    num_workers: int | None = None,
    **options: Any,
) -> QuestionAnsweringPipeline:
    """See ``spanbert.pipeline``."""
    if task != TASK:
        raise UserError(f"no pipeline {task!r}: there is {TASK!r}.")
    chosen = Options().given(options)
    folder = qa_model_path() if model is None else Path(model)
    answerer = QuestionAnswerer.load(folder, device=device_name(device), precision=precision, backend=backend)
    return QuestionAnsweringPipeline(answerer, chosen, batch_size)


def device_name(device: int | str | torch.device | None) -> str:
    """A device as this project names it: a number is a CUDA device, a negative one the CPU, None the best there is."""
    if device is None:
        return "auto"
    if isinstance(device, int):
        return "cpu" if device < 0 else f"cuda:{device}"
    return str(device)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores.astype(np.float64)
    return scores - np.logaddexp.reduce(scores)
