"""`spanbert finetune qa`, `spanbert evaluate qa` and `spanbert predict qa`: their options, and what is QA's alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from tyro.conf import Positional

from finetune import evaluate, predict, train
from finetune.config import EvaluateConfig, FinetuneConfig, PredictConfig
from finetune.predict import TrainedModel
from finetune.tasks.qa.metrics import Metric, describe, metric_of_file, qa_metrics
from finetune.tasks.qa.records import QuestionFile, read_questions
from finetune.tasks.qa.task import QASettings, QATask
from spanbert.config import check_range, read_json
from spanbert.errors import UserError, note
from spanbert.files import RECORDS_BYTES, write_atomic
from spanbert.weights import qa_model_path


@dataclass(frozen=True)
class FinetuneQAConfig(FinetuneConfig):
    """Fine-tune on extractive questions: SQuAD 1.1, SQuAD 2.0 or MRQA files, or flat rows, plain or .gz."""

    max_train_questions: int | None = None
    """Train on the first N questions of a shuffle fixed by --shuffle-seed."""
    window: int = 384
    """Length of a window in tokens, question and special tokens included."""
    stride: int = 128
    """Step between windows, in context tokens."""
    max_question: int = 64
    """Tokens kept of a question; cut ones are counted and reported."""
    max_answer: int = 30
    """Longest answer at decoding, in tokens."""
    passages: int = 1
    """Train each question on so many passages at once: its own paragraph, and others of its article that are like the question and without the answer, drawn by --seed in each epoch. One softmax runs over all of them, so that scores of different passages compare. --batch-size and --micro-batch-size then count questions."""
    metric: Metric | None = None
    """How answers are compared on --dev: squad, cmrc (CMRC 2018), drcd, or mlqa-LANG (XQuAD, too). It is stored with the model, whose later evaluations use it. Left out: squad, or cmrc where the question ids are those of CMRC 2018."""
    ignore_offsets: bool = False
    """Accept answers in --dev whose text is not at its character offset (the metrics use texts only). In --train such questions are skipped and counted."""

    @property
    def max_examples(self) -> int | None:
        return self.max_train_questions

    def check(self) -> None:
        super().check()
        check_range(self, 1, math.inf, "max_answer", "max_train_questions", "passages")

    def task(self) -> QATask:
        """The task as these options state it."""
        settings = QASettings(
            self.window, self.stride, self.max_question, self.max_answer, metric=self.metric, passages=self.passages
        )
        return QATask(settings, check_offsets=not self.ignore_offsets)


@dataclass(frozen=True)
class EvaluateQAConfig(EvaluateConfig):
    """Score a question-answering model, or a predictions file, on a labelled file."""

    model: Positional[Path]
    """Model or run folder. Left out, the bundled model answers; with --predictions no model does."""
    file: Positional[Path | None] = None
    """Labelled questions: SQuAD 1.1, SQuAD 2.0, MRQA or flat rows, plain or .gz. With only one path given, that is this file."""
    predictions: Path | None = None
    """Score this file (JSON: question id → answer text) instead of running a model."""
    window: int | None = None
    """Window length in tokens, instead of the model's own."""
    stride: int | None = None
    """Step between windows in tokens, instead of the model's own."""
    null_threshold: float | None = None
    """Answer nothing when the score of that exceeds the best answer's by more than this, instead of the threshold stored in the model; a model that otherwise always answers may then answer nothing, too."""
    metric: Metric | None = None
    """How answers are compared: squad, cmrc (CMRC 2018), drcd, or mlqa-LANG (XQuAD, too), instead of the model's own. Where neither says: squad, or cmrc where the question ids are those of CMRC 2018."""
    ignore_offsets: bool = False
    """Accept answers whose text is not at its character offset (the metrics use texts only)."""

    def changed(self, task: QATask) -> QATask:
        """The task with these options in place of the model's settings."""
        options = {name: getattr(self, name) for name in ("window", "stride", "metric")}
        changes = {name: value for name, value in options.items() if value is not None}
        settings = replace(with_threshold(task, self.null_threshold).settings, **changes)
        return QATask(settings, check_offsets=not self.ignore_offsets)


@dataclass(frozen=True)
class PredictQAConfig(PredictConfig):
    """Answer the questions of a file: JSON lines of id, answer, its character offsets, probability and null odds."""

    file: Positional[Path]
    """Questions: SQuAD, MRQA or flat rows, plain or .gz; - for standard input. Answers are not needed, and not looked at."""
    null_threshold: float | None = None
    """Answer nothing when the score of that exceeds the best answer's by more than this, instead of the threshold stored in the model; a model that otherwise always answers may then answer nothing, too."""


def with_threshold(task: QATask, threshold: float | None) -> QATask:
    """The task with the null threshold that a command was given; whoever gives one wants questions declined.

    Raises UserError for one that is not a number.
    """
    if threshold is None:
        return task
    if not math.isfinite(threshold):
        raise UserError(f"--null-threshold {threshold}: give a finite number.")
    if not task.settings.null_allowed:
        note("the model may answer nothing, for --null-threshold is given; it was not known to be trained for that")
    return replace(task, settings=replace(task.settings, null_allowed=True, null_threshold=threshold))


def run_finetune(config: FinetuneQAConfig) -> None:
    """Train, evaluate, and leave OUTPUT/model, which `evaluate qa`, `predict qa` and `ask` take."""
    train.run_finetune(config.task(), config)


def run_evaluate(config: EvaluateQAConfig) -> None:
    """Print metrics and, with an output folder, write them with the predictions."""
    if config.predictions is not None:
        _score_predictions(config, config.predictions)
        return
    if config.file is None and config.model.is_dir():
        raise UserError(f"give a labelled file too: spanbert evaluate qa {config.model} FILE")
    folder, file = (config.model, config.file) if config.file is not None else (qa_model_path(), config.model)
    trained = predict.load_configured(QATask, folder, config)
    task = config.changed(trained.task)
    task.check(trained.model.config.max_position_embeddings)
    changed: TrainedModel[QATask] = replace(trained, task=task)
    evaluate.run_evaluate(changed, file, config.output, config.limit)


def run_predict(config: PredictQAConfig) -> None:
    """Print or write the answers to all questions of a file."""
    trained = predict.load_configured(QATask, config.model, config)
    changed = replace(trained, task=with_threshold(trained.task, config.null_threshold))
    predict.run_predict(changed, config.file, config.output, config.limit)


def _score_predictions(config: EvaluateQAConfig, predictions: Path) -> None:
    if config.file is not None:
        raise UserError("with --predictions no model runs: give only the labelled file.")
    if config.output is not None:
        evaluate.check_output(config.output)
    questions = read_questions(config.model, "evaluate", check_offsets=not config.ignore_offsets).first(config.limit)
    ids, golds = questions.golds()
    chosen = metric_of_file(config.metric, ids, golds)
    for line in chosen.notes:
        note(f"{config.model}: {line}")
    metrics = score_predictions(predictions, questions, chosen.metric)
    print(f"metric: {chosen.metric}\n{describe(metrics)}")
    if config.output is not None:
        write_atomic(config.output / "metrics.json", json.dumps({"metric": chosen.metric} | metrics, indent=1) + "\n")
        print(f"wrote {config.output}/metrics.json")


def score_predictions(predictions: Path, questions: QuestionFile, metric: Metric = "squad") -> dict[str, float]:
    """Official metrics of an existing predictions file (id → text), without a model."""
    content = read_json(predictions, RECORDS_BYTES)
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise UserError(f"{predictions}: expected one JSON object from question id to answer text.")
    golds = {question.id: question.answers for question in questions.questions}
    if not any(question in content for question in golds):
        raise UserError(
            f"{predictions}: has none of the question ids of {questions.report.path}; is it for another file?"
        )
    return qa_metrics(golds, content, version_2=any(not answers for answers in golds.values()), metric=metric)
