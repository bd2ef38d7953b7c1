"""Asking a trained model from Python: `QuestionAnswerer.load(folder).answer(question, context)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.predict import Machine, predict
from finetune.tasks.qa.decode import DecodeConfig, Decoded
from finetune.tasks.qa.features import WindowConfig, build_question_set
from finetune.tasks.qa.records import MalformedRecord, Paragraph, Question
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.checkpoint.store import find_model
from spanbert.config import from_dict
from spanbert.device import choose_device, choose_precision
from spanbert.errors import UserError
from spanbert.model.backend import resolve_backend
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer

SETTINGS_KEY = "qa"  # in the checkpoint's config.json


@dataclass(frozen=True)
class QASettings:
    """What a question-answering checkpoint remembers beside its weights, under "qa" in its config.json."""

    window: int = 384
    stride: int = 128
    max_question: int = 64
    max_answer: int = 30
    n_best: int = 20
    null_allowed: bool = False
    """Trained on unanswerable questions (SQuAD 2.0): may answer nothing."""
    null_threshold: float = 0.0
    """Answer nothing when null score − best span score exceeds this; chosen on dev for best F1."""

    @property
    def windows(self) -> WindowConfig:
        return WindowConfig(self.window, self.stride, self.max_question)

    @property
    def decode(self) -> DecodeConfig:
        return DecodeConfig(self.n_best, self.max_answer)

    @property
    def threshold(self) -> float | None:
        """For `Decoded.answer`: None when the model must always give a span."""
        return self.null_threshold if self.null_allowed else None


@dataclass(frozen=True)
class Answer:
    """text == context[start:end]. No answer is text "" and start == end == 0, scored by the null score."""

    text: str
    start: int
    end: int
    score: float
    probability: float

    @property
    def no_answer(self) -> bool:
        return not self.text


class QuestionAnswerer:
    """A model with its tokenizer and settings."""

    def __init__(
        self,
        model: SpanBertForQuestionAnswering,
        tokenizer: Tokenizer,
        settings: QASettings,
        machine: Machine,
    ) -> None:
        settings.windows.check(model.config.max_position_embeddings)
        self.model = model.to(machine.device).eval()
        self.tokenizer = tokenizer
        self.settings = settings
        self.machine = machine

    @classmethod
    def load(
        cls, folder: Path | str, *, device: str = "auto", precision: str = "auto", backend: str = "auto"
    ) -> QuestionAnswerer:
        """A folder that `spanbert finetune qa` wrote, or any Hugging Face BertForQuestionAnswering.

        Raises UserError when it holds no model or one without a trained question-answering head.
        """
        folder = find_model(Path(folder))
        where = choose_device(device)
        model, tokenizer, report = load_model_and_tokenizer(
            folder, SpanBertForQuestionAnswering, backend=resolve_backend(backend, where)
        )
        if not report.has("qa_outputs"):
            raise UserError(
                f"{folder} has no question-answering head; train one: spanbert finetune qa --init {folder} …"
            )
        settings = settings_from(report.config, model.config.max_position_embeddings, f"{folder}/config.json")
        return cls(model, tokenizer, settings, Machine(where, choose_precision(where, precision)))

    def answer(self, question: str, context: str, *, n_best: int = 1) -> list[Answer]:
        """The `n_best` best answers, best first; contexts of any length. See `answers`."""
        return self.answers([question], context, n_best=n_best)[0]

    def answers(self, questions: Sequence[str], context: str, *, n_best: int = 1) -> list[list[Answer]]:
        """For each question its best answers, best first. "No answer" takes part if the model was trained for it.

        Raises UserError when the context or a question holds no text, or a question is longer than the model reads.
        """
        for text in (context, *questions):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"not valid text: character {error.start} of {text[:40]!r} is half a character."
                ) from None
        items = tuple(Question(str(i), text, ("",), ()) for i, text in enumerate(questions))
        question_set = build_question_set(
            [Paragraph("the text", 0, context, items)],
            self.tokenizer,
            self.settings.windows,
            keep_text=True,
            malformed=_refuse,
        )
        if question_set.truncated:
            raise UserError(
                f"a question is longer than the {self.settings.max_question} pieces this model reads; shorten it."
            )
        decode = dataclasses.replace(self.settings.decode, n_best=max(n_best, self.settings.n_best))
        decoded = predict(self.model, question_set, decode, self.machine, null_allowed=self.settings.null_allowed)
        return [ranked_answers(one, self.settings.threshold)[:n_best] for one in decoded]


def ranked_answers(decoded: Decoded, threshold: float | None) -> list[Answer]:
    """All candidates, best first; where a threshold is given also "no answer": first if it wins, else by its score."""
    answers = [Answer(**dataclasses.asdict(candidate)) for candidate in decoded.candidates]
    if threshold is not None:
        share = 1.0 - sum(answer.probability for answer in answers)
        nothing = Answer("", 0, 0, decoded.null_score, max(share, 0.0))
        wins = decoded.null_odds > threshold
        place = 0 if wins else max(1, sum(answer.score >= decoded.null_score for answer in answers))
        answers.insert(place, nothing)
    return answers


def settings_from(config: Mapping[str, Any], max_positions: int, source: str) -> QASettings:
    """The settings in a checkpoint's config; for checkpoints made elsewhere the defaults, fitted to the model."""
    if SETTINGS_KEY in config:
        return from_dict(QASettings, config[SETTINGS_KEY], f'{source}: "{SETTINGS_KEY}"')
    return QASettings(window=min(QASettings.window, max_positions))


def _refuse(where: str, error: MalformedRecord) -> None:
    reason = str(error).partition(": ")[2]
    raise UserError(f"cannot answer: {reason}.")
