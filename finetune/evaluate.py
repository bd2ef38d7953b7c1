"""`spanbert evaluate qa`: exact match and F1 of a model, or of a predictions file, on a labelled file."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from tqdm import tqdm
from tyro.conf import Positional

from finetune.predict import Machine, predict
from finetune.tasks.qa.answerer import QASettings, QuestionAnswerer
from finetune.tasks.qa.decode import Decoded
from finetune.tasks.qa.features import QuestionSet, build_question_set
from finetune.tasks.qa.metrics import qa_metrics
from finetune.tasks.qa.records import Paragraph, QAReader
from spanbert.config import read_json
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.model.models import SpanBertForQuestionAnswering
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import qa_model_path


@dataclass(frozen=True)
class EvaluateQAConfig:
    """Score a question-answering model, or a predictions file, on a labelled file."""

    model: Positional[Path]
    """Model or run folder. Left out, the model that ships with this program answers; with --predictions no model does."""
    file: Positional[Path | None] = None
    """Labelled questions: SQuAD 1.1, SQuAD 2.0 or MRQA, plain or .gz. With only one path given, that is this file."""
    predictions: Path | None = None
    """Score this file (JSON: question id → answer text) instead of running a model."""
    output: Path | None = None
    """Folder for predictions.json, nbest.json, null_odds.json and metrics.json."""
    limit: int | None = None
    """Only the first N questions of the file."""
    window: int | None = None
    """Window length in pieces, instead of the model's own."""
    stride: int | None = None
    """Step between windows in pieces, instead of the model's own."""
    null_threshold: float | None = None
    """Threshold for answering nothing, instead of the one stored in the model."""
    ignore_offsets: bool = False
    """Accept answers whose text is not at its character offset (the metrics use texts only)."""
    batch_tokens: int = 16384
    """Tokens of a batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics in percent, the chosen answers, and everything decoded, in the file's order."""

    metrics: dict[str, float]
    predictions: dict[str, str]
    decoded: list[Decoded]


def read_question_set(
    path: Path,
    tokenizer: Tokenizer,
    settings: QASettings,
    *,
    check_offsets: bool = True,
    limit: int | None = None,
) -> QuestionSet:
    """A labelled file for evaluation, texts kept. Raises UserError at the first malformed record."""
    reader = QAReader(path, skip_malformed=False, check_offsets=check_offsets)
    return build_question_set(
        first_questions(reader, limit),
        tokenizer,
        settings.windows,
        keep_text=True,
        malformed=reader.malformed,
    )


def first_questions(paragraphs: QAReader, limit: int | None) -> list[Paragraph] | QAReader:
    """The paragraphs cut after `limit` questions; all of the file is read and checked all the same."""
    if limit is None:
        return paragraphs
    if limit < 1:
        raise UserError(f"--limit {limit}: give at least 1 question.")
    kept, left = [], limit
    for paragraph in paragraphs:
        if left:
            kept.append(replace(paragraph, questions=tuple(islice(paragraph.questions, left))))
            left -= len(kept[-1].questions)
    return kept


def evaluate_model(
    model: SpanBertForQuestionAnswering,
    questions: QuestionSet,
    settings: QASettings,
    machine: Machine,
    *,
    search_threshold: bool = False,
) -> Evaluation:
    """Answer every question and score the answers.

    The 2.0 metrics are used when the file has unanswerable questions. search_threshold: use the null threshold that
    is best for F1 on these very questions, instead of the settings' (metrics say which was used).
    """
    assert questions.golds is not None
    was_training = model.training
    model.eval()
    begin = time.perf_counter()
    with tqdm(total=questions.windows, unit=" windows", desc="answering", mininterval=0.5) as bar:
        decoded = list(
            predict(
                model,
                questions,
                settings.decode,
                machine,
                null_allowed=settings.null_allowed,
                advance=bar.update,
            )
        )
    seconds = time.perf_counter() - begin
    model.train(was_training)

    golds = dict(zip(questions.ids, questions.golds, strict=True))
    version_2 = any(not answers for answers in golds.values())
    null_odds = {one.id: one.null_odds for one in decoded}
    spans = {one.id: one.candidates[0].text for one in decoded}
    threshold = settings.threshold
    if search_threshold and version_2 and settings.null_allowed:
        found = qa_metrics(golds, spans, version_2=True, null_odds=null_odds, best_spans=spans)
        threshold = found["best_f1_threshold"]
    predictions = {one.id: one.answer(threshold) for one in decoded}
    metrics = qa_metrics(
        golds,
        predictions,
        version_2=version_2,
        null_odds=null_odds if version_2 else None,
        best_spans=spans if version_2 else None,
    )
    if threshold is not None:
        metrics["null_threshold"] = threshold
    metrics |= {
        "windows": questions.windows,
        "questions_cut": questions.truncated,
        "seconds": round(seconds, 2),
    }
    return Evaluation(metrics, predictions, decoded)


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """predictions.json and null_odds.json as the official scripts read them, nbest.json, metrics.json."""
    nbest = {one.id: [asdict(candidate) for candidate in one.candidates] for one in evaluation.decoded}
    odds = {one.id: one.null_odds for one in evaluation.decoded}
    for name, content in (
        ("predictions.json", evaluation.predictions),
        ("null_odds.json", odds),
        ("nbest.json", nbest),
        ("metrics.json", evaluation.metrics),
    ):
        write_atomic(folder / name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def describe(metrics: dict[str, float]) -> str:
    """The metrics as lines for people."""
    lines = [f"EM {metrics['exact']:.2f}   F1 {metrics['f1']:.2f}   ({metrics['total']:,} questions)"]
    for name in ("HasAns", "NoAns"):
        if f"{name}_exact" in metrics:
            em, f1, total = (metrics[f"{name}_{part}"] for part in ("exact", "f1", "total"))
            lines.append(f"  {name}: EM {em:.2f}   F1 {f1:.2f}   ({total:,})")
    for name, label in (("exact", "EM"), ("f1", "F1")):
        if f"best_{name}" in metrics:
            value, threshold = metrics[f"best_{name}"], metrics[f"best_{name}_threshold"]
            lines.append(f"  best {label} {value:.2f} at null threshold {threshold:.4f}")
    if "null_threshold" in metrics:
        lines.append(f"  null threshold used: {metrics['null_threshold']:.4f}")
    if metrics.get("missing"):
        lines.append(f"  {metrics['missing']:,} questions without a prediction, scored 0")
    if metrics.get("questions_cut"):
        lines.append(f"  {metrics['questions_cut']:,} questions cut to the model's question length")
    return "\n".join(lines)


def score_predictions_file(predictions: Path, reader: QAReader, limit: int | None) -> dict[str, float]:
    """Official metrics of an existing predictions file (id → text), without a model."""
    content = read_json(predictions)
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise UserError(f"{predictions}: expected one JSON object from question id to answer text.")
    golds = {q.id: q.answers for paragraph in first_questions(reader, limit) for q in paragraph.questions}
    if not any(question in content for question in golds):
        raise UserError(f"{predictions}: has none of the question ids of {reader.path}; is it for another file?")
    return qa_metrics(golds, content, version_2=any(not answers for answers in golds.values()))


def run_evaluate_qa(config: EvaluateQAConfig) -> None:
    """Print metrics and, with an output folder, write them with the predictions."""
    if config.predictions is not None:
        if config.file is not None:
            raise UserError("with --predictions no model runs: give only the labelled file.")
        reader = QAReader(config.model, skip_malformed=False, check_offsets=not config.ignore_offsets)
        metrics = score_predictions_file(config.predictions, reader, config.limit)
        print(describe(metrics))
        if config.output is not None:
            write_atomic(config.output / "metrics.json", json.dumps(metrics, indent=1) + "\n")
            print(f"wrote {config.output}/metrics.json")
        return
    if config.file is None and config.model.is_dir():
        raise UserError(f"give a labelled file too: spanbert evaluate qa {config.model} FILE")
    folder, file = (config.model, config.file) if config.file is not None else (qa_model_path(), config.model)
    answerer = QuestionAnswerer.load(folder, device=config.device, precision=config.precision, backend=config.backend)
    changes = {name: getattr(config, name) for name in ("window", "stride", "null_threshold")}
    settings = replace(answerer.settings, **{name: value for name, value in changes.items() if value is not None})
    settings.windows.check(answerer.model.config.max_position_embeddings)
    if config.null_threshold is not None and not settings.null_allowed:
        raise UserError(f"{folder} was not trained on unanswerable questions: --null-threshold has no meaning.")
    if config.batch_tokens < 1:
        raise UserError(f"--batch-tokens {config.batch_tokens}: give at least 1.")
    questions = read_question_set(
        file, answerer.tokenizer, settings, check_offsets=not config.ignore_offsets, limit=config.limit
    )
    print(f"{file}: {len(questions):,} questions, {questions.windows:,} windows")
    machine = replace(answerer.machine, tokens=config.batch_tokens)
    evaluation = evaluate_model(answerer.model, questions, settings, machine)
    print(describe(evaluation.metrics))
    if config.output is not None:
        write_evaluation(config.output, evaluation)
        print(f"wrote predictions.json, null_odds.json, nbest.json and metrics.json in {config.output}")
    print(f'next: spanbert ask {folder} --context FILE "your question"')
