"""Classification through the pretraining heads (PET, Schick & Schütze 2021; LM-BFF, Gao et al. 2021): each label has a word,
and a text's label is the word that fits the span of a prompt around it best.

The loss is the cross-entropy of the right label's word among the words' scores, so that nothing new is learned from
scratch: for few examples. All else (files, metrics, what is written) is that of ``ClassifyTask``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

from finetune.records import Purpose, printable
from finetune.tasks.classification.features import SPECIALS, encode_texts
from finetune.tasks.classification.prompt import parse_prompt, parse_words, room_for_text
from finetune.tasks.classification.prompt_features import PromptSet, Question
from finetune.tasks.classification.prompt_model import SpanBertForPrompts
from finetune.tasks.classification.records import TextFile
from finetune.tasks.classification.task import ClassifySettings, ClassifyTask
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.config import from_dict, read_json_object, to_dict
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForPretraining, SpanBertModel
from spanbert.spans.log_probs import Head, check_width, choose_head
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.training.init_model import model_path


@dataclass(frozen=True)
class PromptSettings(ClassifySettings):
    """What such a classifier remembers beside its weights, under "classify" in its config.json."""

    prompt: str = ""
    """With {text} and one span."""
    words: dict[str, str] = field(default_factory=dict)
    """The word of each label."""
    head: Head = "mlm"
    """Which head scores the words."""


@dataclass(frozen=True)
class PromptTask(ClassifyTask):
    """See ``finetune.task.Task``."""

    model: ClassVar[type[SpanBertModel]] = SpanBertForPrompts

    settings: PromptSettings = field(default_factory=PromptSettings)

    @classmethod
    def of_model(cls, config: Mapping[str, Any], max_positions: int, source: str) -> Self:
        settings = from_dict(PromptSettings, config[cls.name], f'{source}: "{cls.name}"')
        words = settings.words.items() if isinstance(settings.words, dict) else [("", None)]
        if not all(isinstance(word, str) for _, word in words) or tuple(label for label, _ in words) != settings.labels:
            raise UserError(f'{source}: "{cls.name}": words does not give each of the labels its word')
        if settings.head not in get_args(Head):
            raise UserError(f'{source}: "{cls.name}": head is {settings.head!r}: expected {", ".join(get_args(Head))}')
        return cls(settings)

    def head(self) -> dict[str, Any]:
        return {"head": self.settings.head}

    def model_config(self) -> dict[str, Any]:
        return {self.name: to_dict(self.settings)}

    def learned_from(self, records: TextFile) -> Self:
        """The labels are those that have words. Raises UserError when one that occurs has none."""
        super().learned_from(records)
        words = self.settings.words
        for label in records.labels():
            if label not in words:
                raise UserError(
                    f"{records.report.path}: the label {printable(label, 200)!r} has no word, only "
                    f"{printable(', '.join(words), 200)}: give --words LABEL=WORD for each."
                )
        return replace(self, settings=replace(self.settings, labels=tuple(words)))

    def encode(self, records: TextFile, tokenizer: Tokenizer, purpose: Purpose) -> PromptSet:
        if self.settings.columns.text_pair:
            raise UserError("a prompt takes one text: leave --text-pair out.")
        question, room = self.question(tokenizer)
        texts = encode_texts(records, tokenizer, room + SPECIALS, self.settings.labels)
        shared = {name: getattr(texts, name) for name in texts.__dataclass_fields__}
        return PromptSet(**shared, question=question)

    def question(self, tokenizer: Tokenizer) -> tuple[Question, int]:
        """What is asked of every text, and how many of its tokens fit into a window beside it. Raises UserError for a
        prompt or words that cannot be used."""
        settings = self.settings
        prompt = parse_prompt(settings.prompt, tokenizer, settings.window)
        words = parse_words(tuple(settings.words.values()), tokenizer, prompt.width)
        return Question(prompt, words, settings.head, tokenizer), room_for_text(prompt, words, settings.window)


def parse_label_words(words: Sequence[str]) -> dict[str, str]:
    """``label=word`` of each → label → word; a word alone is a label's name too. Raises UserError for a label that is
    empty or stands there twice."""
    found: dict[str, str] = {}
    for one in words:
        label, equals, word = one.rpartition("=")
        label = label if equals else word
        if not label.strip():
            raise UserError(f"--words: {printable(one, 200)!r} names no label: give LABEL=WORD.")
        if label in found:
            raise UserError(f"--words: the label {printable(label, 200)!r} stands there twice: give each one word.")
        found[label] = word
    return found


def check_start(task: PromptTask, asked: str, init: str, lowercase: bool | None) -> Head:
    """Which head of the model ``init`` to train, ``asked`` or every one that has been trained.

    Raises UserError when it has none, and for a prompt, words or a window that this model cannot take: before any file
    is read.
    """
    folder = model_path(init)
    model, tokenizer, report = load_model_and_tokenizer(folder, SpanBertForPretraining, lowercase=lowercase)
    head = choose_head(asked, report, init)
    task.check(model.config.max_position_embeddings)
    question, _ = task.question(tokenizer)
    check_width(model, head, question.sizes[-1])
    return head


def has_prompt(folder: Path) -> bool:
    """Whether the model in a folder classifies by a prompt."""
    path = folder / "config.json"
    stored = read_json_object(path, "BERT's keys").get(ClassifyTask.name) if path.is_file() else None
    return isinstance(stored, dict) and "prompt" in stored
