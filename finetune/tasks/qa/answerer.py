"""Asking a trained model from Python: `QuestionAnswerer.load(folder).answer(question, context)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from finetune.predict import Machine, load_trained, predict
from finetune.records import MalformedRecord
from finetune.tasks.qa.decode import Decoded
from finetune.tasks.qa.encode import encode_with_texts
from finetune.tasks.qa.records import Paragraph, paragraphs_of
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.device import choose_device
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.model.quantized import choose_answering_precision
from spanbert.tokenizer.wordpiece import Tokenizer


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
        folder: Path | None = None,
    ) -> None:
        settings.windows.check(model.config.max_position_embeddings)
        self.model = model.to(machine.device).eval()
        self.tokenizer = tokenizer
        self.settings = settings
        self.machine = machine
        self.folder = folder  # where the model lies, and its calibration with it

    @classmethod
    def load(
        cls, folder: Path | str, *, device: str = "auto", precision: str = "auto", backend: str = "auto"
    ) -> QuestionAnswerer:
        """A folder that `spanbert finetune qa` wrote, or any Hugging Face BertForQuestionAnswering.

        precision: "auto" is the fastest that keeps its scores on this machine: bf16, else int8, else fp32.
        Raises UserError when it holds no model or one without a trained question-answering head.
        """
        precision = choose_answering_precision(choose_device(device), precision, backend)
        trained = load_trained(QATask, Path(folder), device=device, precision=precision, backend=backend)
        assert isinstance(trained.model, SpanBertForQuestionAnswering)
        return cls(trained.model, trained.tokenizer, trained.task.settings, trained.machine, trained.folder)

    def answer(self, question: str, context: str, *, n_best: int = 1) -> list[Answer]:
        """The `n_best` best answers, best first; contexts of any length. See `answers`."""
        return self.answers([question], context, n_best=n_best)[0]

    def answers(self, questions: Sequence[str], context: str, *, n_best: int = 1) -> list[list[Answer]]:
        """For each question its best answers, best first. "No answer" takes part if the model was trained for it.

        Raises UserError when the context or a question holds no text, or a question is longer than the model reads.
        """
        decoded = self._decode(paragraphs_of(context, questions), n_best)
        return [ranked_answers(one, self.settings.threshold)[:n_best] for one in decoded]

    def read(self, passages: Sequence[str], asked: Sequence[Sequence[str]], *, n_best: int) -> list[list[Decoded]]:
        """For each passage the decoded answers to the questions asked about it, in packed batches over all of them.

        Scores of different passages are logits of the model: comparing them is the caller's affair.
        Raises UserError as `answers` does.
        """
        paragraphs = [
            replace(one, number=number, questions=tuple(replace(q, id=f"{number}/{q.id}") for q in one.questions))
            for number, (text, questions) in enumerate(zip(passages, asked, strict=True))
            for one in paragraphs_of(text, questions)
        ]
        decoded = iter(self._decode(paragraphs, n_best))
        return [[next(decoded) for _ in questions] for questions in asked]

    def _decode(self, paragraphs: Sequence[Paragraph], n_best: int) -> list[Decoded]:
        for paragraph in paragraphs:
            for text in (paragraph.context, *(question.text for question in paragraph.questions)):
                _check_text(text)
        question_set = encode_with_texts(paragraphs, self.tokenizer, self.settings.windows, _refuse)
        if question_set.questions.cut_Q.any():
            raise UserError(
                f"a question is longer than the {self.settings.max_question} tokens this model reads; shorten it."
            )
        task = QATask(replace(self.settings, n_best=max(n_best, self.settings.n_best)))
        return list(predict(task, self.model, question_set, self.machine))


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"not valid text: character {error.start} of {text[:40]!r} is half a character.") from None


def ranked_answers(decoded: Decoded, threshold: float | None) -> list[Answer]:
    """All candidates, best first; where a threshold is given also "no answer": first if it wins, else by its score."""
    answers = [Answer(**asdict(candidate)) for candidate in decoded.candidates]
    if threshold is not None:
        share = 1.0 - sum(answer.probability for answer in answers)
        nothing = Answer("", 0, 0, decoded.null_score, max(share, 0.0))
        wins = decoded.null_odds > threshold
        place = 0 if wins else max(1, sum(answer.score >= decoded.null_score for answer in answers))
        answers.insert(place, nothing)
    return answers


def _refuse(where: str, error: MalformedRecord) -> None:
    raise UserError(f"cannot answer: {error.detail}.")
