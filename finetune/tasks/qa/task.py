"""Extractive question answering as a task: start and end of the answer among the tokens of each window (§5)."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.records import Purpose
from finetune.tasks.qa.decode import DecodeConfig, Decoded, decode_question
from finetune.tasks.qa.encode import encode_questions, encode_with_texts
from finetune.tasks.qa.features import QuestionSet, TextQuestionSet, WindowConfig
from finetune.tasks.qa.metrics import Metric, describe, metric_of_file, qa_metrics
from finetune.tasks.qa.negatives import near_contexts
from finetune.tasks.qa.passage_groups import NEAREST, PassageGroups
from finetune.tasks.qa.records import QuestionFile, read_questions
from finetune.tasks.qa.shared_loss import shared_loss_sum
from spanbert.config import from_dict, to_dict
from spanbert.errors import UserError, note
from spanbert.model.batch import PackedBatch
from spanbert.model.models import SpanBertForQuestionAnswering, SpanBertModel
from spanbert.model.packing import unpack
from spanbert.tokenizer.wordpiece import Tokenizer


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
    metric: Metric | None = None
    """How answers are compared; None: by SQuAD's rules, or by those that a file's question ids call for."""
    passages: int = 1
    """How many passages of a question shared a softmax in training; above 1, scores of different passages compare."""

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


#: How models that were trained on SQuAD 2.0 elsewhere are called, and how the data set is called there.
SQUAD_2 = re.compile(r"squad[-_]?v?2(?!\d)", re.IGNORECASE)

LONGEST_CARD = 1 << 20  # bytes of a README.md that are looked at


def default_settings(max_positions: int) -> QASettings:
    """For a model that brings none: the usual ones, smaller where it has few positions."""
    window = min(QASettings.window, max_positions)
    settings = QASettings(window)
    if settings.stride < settings.windows.room:
        return settings
    settings = replace(settings, max_question=max(1, min(settings.max_question, window // 4)))
    return replace(settings, stride=max(1, settings.windows.room // 2))


def squad_2_evidence(folder: Path, config: Mapping[str, Any]) -> str | None:
    """What says that a model of another program was trained on unanswerable questions; None when nothing does."""
    folder = folder.resolve()
    name = folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name  # the Hub's cache
    if SQUAD_2.search(name):
        return f"its name, {name!r}, says SQuAD 2"
    if SQUAD_2.search(str(config.get("_name_or_path", ""))):
        return f'"_name_or_path" in its config.json, {config["_name_or_path"]!r}, says SQuAD 2'
    with contextlib.suppress(OSError), (folder / "README.md").open("rb") as card:
        if found := SQUAD_2.search(card.read(LONGEST_CARD).decode("utf-8", "replace")):
            return f"its README.md says {found[0]!r}"
    return None


@dataclass(frozen=True)
class QATask:
    """See ``finetune.task.Task``."""

    name: ClassVar[str] = "qa"
    noun: ClassVar[str] = "questions"
    model: ClassVar[type[SpanBertModel]] = SpanBertForQuestionAnswering
    main_metric: ClassVar[str] = "f1"

    settings: QASettings = field(default_factory=QASettings)
    check_offsets: bool = True
    """Refuse answers that do not stand where a file says (metrics compare texts only); what trains always does."""

    @classmethod
    def of_model(cls, config: Mapping[str, Any], max_positions: int, source: str) -> Self:
        if cls.name in config:
            return cls(from_dict(QASettings, config[cls.name], f'{source}: "{cls.name}"'))
        folder = Path(source).parent
        settings, evidence = default_settings(max_positions), squad_2_evidence(folder, config)
        if settings.stride != QASettings.stride:
            note(
                f"{folder} has {max_positions} positions and no settings for questions: window {settings.window}, "
                f"stride {settings.stride}, at most {settings.max_question} tokens of a question"
            )
        if evidence:
            note(
                f"{folder} may answer nothing, for {evidence}; the null threshold is 0 unless --null-threshold is given"
            )
        else:
            note(f"{folder} always answers: nothing in it says SQuAD 2; with --null-threshold it may answer nothing")
        return cls(replace(settings, null_allowed=evidence is not None))

    def check(self, max_positions: int) -> None:
        self.settings.windows.check(max_positions)

    def head(self) -> dict[str, Any]:
        return {}

    def new_tokens(self) -> tuple[str, ...]:
        return ()

    def model_config(self) -> dict[str, Any]:
        return {self.name: to_dict(self.settings)}

    def read(self, path: Path, purpose: Purpose) -> QuestionFile:
        records = read_questions(path, purpose, check_offsets=self.check_offsets or purpose == "train")
        if purpose == "evaluate":
            for line in metric_of_file(self.settings.metric, *records.golds()).notes:
                note(f"{path}: {line}")
        return records

    def learned_from(self, records: QuestionFile) -> Self:
        return replace(self, settings=replace(self.settings, null_allowed=records.impossible > 0))

    def encode(self, records: QuestionFile, tokenizer: Tokenizer, purpose: Purpose) -> QuestionSet | PassageGroups:
        encode = encode_questions if purpose == "train" else encode_with_texts
        found = encode(records.paragraphs, tokenizer, self.settings.windows, records.report.malformed)
        if purpose != "train" or self.settings.passages == 1:
            return found
        return self._with_negatives(found, records)

    def _with_negatives(self, found: QuestionSet, records: QuestionFile) -> PassageGroups:
        """Raises UserError where no question has any."""
        passages = self.settings.passages
        near_QK = near_contexts(records.paragraphs, found.questions.ids, max(NEAREST, passages - 1))
        if found.examples and (near_QK < 0).all():
            raise UserError(
                f"--passages {passages}: no question of {records.report.path} has another paragraph of its article that "
                "shares a word with it and not its answer; give a file of whole articles, or leave --passages out."
            )
        return PassageGroups.of(found, near_QK, passages)

    def loss(self, output: tuple[Tensor, Tensor], labels: Tensor, batch: PackedBatch[Tensor]) -> Tensor:
        start_T, end_T = output
        loss_sum = qa_loss_sum if self.settings.passages == 1 else shared_loss_sum
        return loss_sum(start_T, end_T, batch.cu_seqlens, batch.max_seqlen, labels)

    def training_notes(self, *, evaluated: bool) -> list[str]:
        if evaluated or not self.settings.null_allowed:
            return []
        return ["the null threshold stays 0; `spanbert evaluate qa` on labelled questions finds a better one"]

    def logits(self, output: tuple[Tensor, Tensor]) -> Tensor:
        """(2, T): starts, ends."""
        return torch.stack(output)

    def by_window(self, logits: np.ndarray, cu_seqlens: np.ndarray) -> list[np.ndarray]:
        return [logits[:, a:b] for a, b in pairwise(cu_seqlens)]

    def decode(self, features: TextQuestionSet, example: int, logits: Sequence[np.ndarray]) -> Decoded:
        null_allowed = self.settings.null_allowed
        return decode_question(features, example, logits, self.settings.decode, null_allowed=null_allowed)

    def record(self, features: TextQuestionSet, example: int, prediction: Decoded) -> dict[str, Any]:
        """Offsets count characters of the context; no answer is "" at 0 … 0."""
        best = prediction.candidates[0]
        text = prediction.answer(self.settings.threshold)
        start, end = (best.start, best.end) if text else (0, 0)
        return {
            "id": prediction.id,
            "answer": text,
            "start": start,
            "end": end,
            "probability": best.probability
            if text
            else max(1.0 - sum(c.probability for c in prediction.candidates), 0),
            "null_odds": prediction.null_odds,
        }

    def tuned(self, features: TextQuestionSet, predictions: Sequence[Decoded]) -> Self:
        """The null threshold that is best for F1, where some of the questions have no answer."""
        if not self.settings.null_allowed or all(features.golds):
            return self
        threshold = self._metrics(features, predictions, None)["best_f1_threshold"]
        return replace(self, settings=replace(self.settings, null_threshold=threshold))

    def score(self, features: TextQuestionSet, predictions: Sequence[Decoded]) -> dict[str, float]:
        """The 2.0 metrics are used when the file has unanswerable questions; they say which threshold was used."""
        threshold = self.settings.threshold
        metrics = self._metrics(features, predictions, threshold)
        if threshold is not None:
            metrics["null_threshold"] = threshold
        return metrics | {"questions_cut": int(features.questions.cut_Q.sum())}

    def _metrics(
        self, features: TextQuestionSet, predictions: Sequence[Decoded], threshold: float | None
    ) -> dict[str, float]:
        golds = dict(zip(features.questions.ids, features.golds, strict=True))
        answers = {one.id: one.answer(threshold) for one in predictions}
        metric = self.metric_of(features)
        if all(golds.values()):
            return qa_metrics(golds, answers, version_2=False, metric=metric)
        null_odds = {one.id: one.null_odds for one in predictions}
        spans = {one.id: one.candidates[0].text for one in predictions}
        return qa_metrics(golds, answers, version_2=True, null_odds=null_odds, best_spans=spans, metric=metric)

    def metric_of(self, features: TextQuestionSet) -> Metric:
        """The one that ``score`` uses."""
        return metric_of_file(self.settings.metric, features.questions.ids, features.golds).metric

    def scoring(self, features: TextQuestionSet) -> dict[str, str]:
        return {"metric": self.metric_of(features)}

    def describe(self, metrics: Mapping[str, float]) -> str:
        return describe(metrics)

    def answers(self, predictions: Sequence[Decoded]) -> dict[str, str]:
        """Question id → answer, as the official scripts read it."""
        return {one.id: one.answer(self.settings.threshold) for one in predictions}

    def files(self, features: TextQuestionSet, predictions: Sequence[Decoded]) -> dict[str, str]:
        """predictions.json and null_odds.json as the official scripts read them, nbest.json."""
        contents = {
            "predictions.json": self.answers(predictions),
            "null_odds.json": {one.id: one.null_odds for one in predictions},
            "nbest.json": {one.id: [asdict(candidate) for candidate in one.candidates] for one in predictions},
        }
        return {name: json.dumps(value, ensure_ascii=False, indent=1) + "\n" for name, value in contents.items()}

    def next_command(self, folder: Path) -> str:
        return f'spanbert ask {folder} --context FILE "your question"'


def qa_loss_sum(start_T: Tensor, end_T: Tensor, cu_seqlens: Tensor, max_seqlen: int, labels_B2: Tensor) -> Tensor:
    """Sum over B windows of the mean of start and end cross-entropy, in nats: () fp32.

    start_T, end_T: logits of T packed tokens; labels_B2: int64 positions within each window. The softmax runs over a
    window's own tokens, question and specials included: `[CLS]` is the label of a window without the answer.
    """
    logits_BL2 = unpack(torch.stack([start_T, end_T], -1).float(), cu_seqlens, max_seqlen, fill=-math.inf)
    # cross_entropy wants classes second: (B, L, 2) scores L classes for 2 labels a window
    return F.cross_entropy(logits_BL2, labels_B2, reduction="sum") / 2
