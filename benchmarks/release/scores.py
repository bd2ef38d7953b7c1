"""What a bundled model can do, measured on the bf16 weights as they will lie in the package: scores, mistakes, examples."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluate import Evaluation, evaluate
from finetune.predict import TrainedModel, load_trained
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.metrics import score_question
from finetune.tasks.qa.records import Question, QuestionFile, read_questions
from finetune.tasks.qa.task import QATask
from pretrain.data.batches import StepBatches
from pretrain.data.blocks import Blocks
from pretrain.data.sampler import DataOrder
from pretrain.inspect.fill import fill
from pretrain.masking.masker import MaskConfig, Masker
from pretrain.metrics import Validation
from spanbert.checkpoint.model_folder import load_model
from spanbert.config import read_json_object
from spanbert.device import choose_device, choose_precision
from spanbert.distributed import alone
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.model.models import SpanBertForPretraining
from spanbert.spans.template import parse_template
from spanbert.tokenizer.wordpiece import Tokenizer

QUESTION_WORDS = ("how many", "how much", "how", "who", "when", "where", "which", "why", "what")

#: Questions about sample/text.txt, with what a reader would answer.
ASKED = (
    ("When was the canal opened?", "17 November 1869"),
    ("Who founded the Suez Canal Company?", "Ferdinand de Lesseps"),
    ("Which ship blocked the canal in 2021?", "Ever Given"),
    ("How many ships were trapped in the Great Bitter Lake?", "fifteen"),
    ("Why does the canal have no locks?", "the two seas lie at nearly the same height"),
)
BLANKS = (
    "The city lies on the [SPAN:2] of the river.",
    "He was born in [SPAN:1] and studied at the University of [SPAN:1].",
    "The war ended in [SPAN:1].",
    "It is one of the [SPAN:2] in the world.",
    "The [SPAN:1] of France is Paris.",
)


@dataclass(frozen=True)
class Wrong:
    """A question whose best answer matches no gold answer exactly."""

    question: str
    answered: str
    expected: str
    f1: float


def load_whole(folder: Path, cls: type, heads: tuple[str, ...]) -> Any:
    """A model whose every tensor came from the file. Raises UserError when a head was only initialised."""
    model, report = load_model(folder, cls)
    if report.initialised or not all(report.has(head) for head in heads):
        raise UserError(f"{folder} is not complete, it cannot be bundled: {report}")
    return model.eval()


def answer_all(folder: Path, file: Path, limit: int | None = None) -> Evaluation:
    """Every question of a labelled file; answer offsets are not looked at, for the metrics use texts only.

    Where every question of the file has an answer, the model must give one.
    """
    trained, records = _trained_and_records(folder, file, limit)
    task = trained.task
    if not records.impossible:
        task = QATask(dataclasses.replace(task.settings, null_allowed=False))
    return evaluate(task, trained.model, task.encode(records, trained.tokenizer, "evaluate"), trained.machine)


def store_threshold(folder: Path, file: Path, limit: int | None = None) -> float:
    """Write into the model's settings the null threshold that is best on these questions → it.

    Raises UserError when the file has no question without an answer: then there is nothing to choose by.
    """
    trained, records = _trained_and_records(folder, file, limit)
    if not records.impossible:
        raise UserError(f"{file} has no question without an answer: a null threshold cannot be chosen on it")
    task = QATask(dataclasses.replace(trained.task.settings, null_allowed=True))
    questions = task.encode(records, trained.tokenizer, "evaluate")
    tuned = evaluate(task, trained.model, questions, trained.machine, tune=True).task
    config = read_json_object(folder / "config.json", "BERT's keys")
    write_atomic(folder / "config.json", json.dumps(config | tuned.model_config(), indent=2) + "\n")
    return float(tuned.settings.null_threshold)


def _trained_and_records(folder: Path, file: Path, limit: int | None) -> tuple[TrainedModel[QATask], QuestionFile]:
    return load_trained(QATask, folder), read_questions(file, "evaluate", check_offsets=False).first(limit)


def labelled(file: Path) -> list[Question]:
    return list(read_questions(file, "evaluate", check_offsets=False).questions)


def question_word(question: str) -> str:
    """The first asking word in it, "other" when there is none."""
    words = f" {question.lower()} "
    places = {word: words.find(f" {word} ") for word in QUESTION_WORDS if f" {word} " in words}
    return min(places, key=lambda word: (places[word], -len(word))) if places else "other"


def mistakes(
    questions: list[Question], predictions: dict[str, str], samples: int, seed: int = 0
) -> tuple[list[tuple[str, int, float, float]], list[Wrong]]:
    """→ (asking word, questions, EM, F1) by frequency, and a seeded sample of the wrong answers."""
    version_2 = any(question.impossible for question in questions)
    scored = [
        (question, *score_question(predictions[question.id], question.answers, version_2=version_2))
        for question in questions
        if question.id in predictions
    ]
    groups: dict[str, list[tuple[float, float]]] = {}
    for question, exact, f1 in scored:
        groups.setdefault(question_word(question.text), []).append((exact, f1))
    rows = [(word, len(part), *(100 * np.mean(part, axis=0)).tolist()) for word, part in groups.items()]
    rows.sort(key=lambda row: -row[1])
    wrong = [
        Wrong(question.text, predictions[question.id], question.answers[0] if question.answers else "", f1)
        for question, exact, f1 in scored
        if not exact
    ]
    chosen = np.random.default_rng(seed).permutation(len(wrong))[:samples]
    return rows, [wrong[i] for i in sorted(chosen)]


def answers_to_examples(folder: Path, text: str) -> list[tuple[str, str, str, float]]:
    """(question, answer, what a reader would say, probability)."""
    answered = QuestionAnswerer.load(folder).answers([question for question, _ in ASKED], text)
    return [
        (question, best.text or "(no answer)", expected, best.probability)
        for (question, expected), (best, *_) in zip(ASKED, answered, strict=True)
    ]


def encoder_scores(folder: Path, data: Path, mask: MaskConfig, sequences: int, seed: int = 0) -> dict[str, float]:
    """Losses (nats) and accuracies of both heads on held-out blocks under fixed masks, with the unigram baseline."""
    model = load_whole(folder, SpanBertForPretraining, ("mlm", "sbo"))
    tokenizer, unigram_V = Tokenizer.load(folder), np.load(data / "unigram.npy")
    if tokenizer.fingerprint != Tokenizer.load(data / "tokenizer").fingerprint:
        raise UserError(f"{data} was prepared with another tokenizer than the model's")
    masker = Masker.from_tokenizer(
        mask, tokenizer, seed=seed, unigram_counts=unigram_V, sbo_positions=model.config.sbo_positions
    )
    held_out, device = Blocks.open(data, "validation"), choose_device()
    batches = StepBatches(held_out, masker, DataOrder(len(held_out), 1, seed), 16 * held_out.block_length)
    validation = Validation(batches, sequences, seed, alone(device))
    scores = validation.run(model.to(device), choose_precision(device), with_sbo=True)
    baseline = validation.unigram_baseline(unigram_V)
    return {**scores, **{f"unigram_{name}": nats for name, nats in baseline.items()}}


def fills_of_examples(folder: Path, top_k: int = 3) -> list[tuple[str, str, list[str]]]:
    """(text, head, best fills), the tokens of several spans with " … " between."""
    model = load_whole(folder, SpanBertForPretraining, ("mlm", "sbo"))
    tokenizer, rows = Tokenizer.load(folder), []
    for text in BLANKS:
        for head in ("mlm", "sbo", "both"):
            filled = fill(model, tokenizer, parse_template(text, tokenizer), head, top_k)
            rows.append((text, head, [" … ".join(candidate.fills) for candidate in filled.candidates]))
    return rows
