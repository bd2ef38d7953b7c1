"""What the question-answering pipeline is asked: its arguments, in all forms, as pairs of question and context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import GeneratorType
from typing import Any, Literal, NamedTuple

from torch.utils.data import Dataset

#: How the results are handed back: the one by itself, a list, or one after the other as they are asked for.
Form = Literal["one", "list", "stream"]


class Pair(NamedTuple):
    question: str
    context: str


@dataclass(frozen=True)
class Inputs:
    pairs: Iterable[Pair]
    form: Form


def inputs_of(positional: Sequence[Any], question: Any, context: Any) -> Inputs:
    """The pairs of a call. A stream (a generator, a torch data set) is read and checked as its pairs are taken.

    Raises ValueError for what cannot be understood, and KeyError for a dictionary that lacks a key.
    """
    if not positional:
        if question is None or context is None:
            raise ValueError("give question and context")
        return _listed(_zipped(question, context), bare=True)
    if question is not None or context is not None:
        raise ValueError("give a dictionary or a list of them, or question and context by name, not both")
    if len(positional) == 2 and all(isinstance(text, str) for text in positional):
        return _listed([Pair(*positional)], bare=True)
    inputs = positional[0] if len(positional) == 1 else list(positional)
    if isinstance(inputs, GeneratorType | Dataset):
        return Inputs((_pair_of(entry, place) for place, entry in enumerate(_entries(inputs))), "stream")
    if isinstance(inputs, Mapping) and not isinstance(inputs.get("question"), str | None):
        return _listed(_zipped(*_both(inputs, 0)), bare=False)
    if isinstance(inputs, Mapping) or _is_example(inputs):
        inputs = [inputs]
    if isinstance(inputs, str) or not isinstance(inputs, Iterable):
        raise ValueError(f"cannot answer {inputs!r}: give question and context")
    return _listed([_pair_of(entry, place) for place, entry in enumerate(inputs)], bare=True)


def _listed(pairs: list[Pair], *, bare: bool) -> Inputs:
    """bare: a list of one pair has its result by itself, as that pipeline gave it."""
    for place, pair in enumerate(pairs):
        _check(pair, place)
    return Inputs(pairs, "one" if bare and len(pairs) == 1 else "list")


def _entries(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, Dataset) and hasattr(inputs, "__len__"):  # one without __iter__ need not end by itself
        return (inputs[place] for place in range(len(inputs)))
    return iter(inputs)


def _zipped(questions: Any, contexts: Any) -> list[Pair]:
    """One context for several questions will do."""
    if isinstance(questions, str) and isinstance(contexts, str):
        return [Pair(questions, contexts)]
    if isinstance(questions, str) or not isinstance(questions, Iterable) or not isinstance(contexts, Iterable):
        raise ValueError(
            "question and context must be strings or lists of them, and a list of contexts wants as many questions"
        )
    questions = list(questions)
    contexts = [contexts] * len(questions) if isinstance(contexts, str) else list(contexts)
    if len(questions) != len(contexts):
        raise ValueError(f"{len(questions)} questions and {len(contexts)} contexts: give as many, or one context")
    return [Pair(*pair) for pair in zip(questions, contexts, strict=True)]


def _is_example(entry: Any) -> bool:
    """Whether it is a SquadExample, or another object with its two texts."""
    return hasattr(entry, "question_text") and hasattr(entry, "context_text")


def _both(entry: Mapping[str, Any], place: int) -> tuple[Any, Any]:
    for key in ("question", "context"):
        if key not in entry:
            raise KeyError(f'input {place} has no "{key}": give dictionaries with the keys "question" and "context"')
    return entry["question"], entry["context"]


def _pair_of(entry: Any, place: int) -> Pair:
    """Other keys, such as the id and the answers of a SQuAD record, are passed over."""
    if _is_example(entry):
        pair = Pair(entry.question_text, entry.context_text)
    elif isinstance(entry, Mapping):
        pair = Pair(*_both(entry, place))
    else:
        raise ValueError(
            f'input {place} must be a dictionary with the keys "question" and "context", not {entry!r:.100}'
        )
    _check(pair, place)
    return pair


def _check(pair: Pair, place: int) -> None:
    for name, text in pair._asdict().items():
        if not isinstance(text, str):
            raise ValueError(f"the {name} of input {place} must be a string, not {text!r:.100}")
        if not text:
            raise ValueError(f"the {name} of input {place} is empty")
