"""Running a question-answering model over windows, in bounded memory, and decoding as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from finetune.tasks.qa.decode import DecodeConfig, Decoded, decode_question, windows_by_question
from finetune.tasks.qa.features import QuestionSet
from spanbert.device import autocast
from spanbert.errors import UserError
from spanbert.model.models import SpanBertForQuestionAnswering

CHUNK_WINDOWS = 4096  # logits of so many windows are held at a time


@dataclass(frozen=True)
class Machine:
    """Where and how a model runs."""

    device: torch.device
    precision: str  # "fp32" or "bf16"
    tokens: int = 16384  # of a batch at inference


def budget_batches(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Indices 0 … n−1, longest first, in groups whose lengths sum to at most `tokens` (one item at least)."""
    order = np.argsort(-lengths, kind="stable")
    begin, total = 0, 0
    for place, index in enumerate(order):
        if place > begin and total + lengths[index] > tokens:
            yield order[begin:place]
            begin, total = place, 0
        total += int(lengths[index])
    if begin < len(order):
        yield order[begin:]


@torch.inference_mode()
def window_logits(
    model: SpanBertForQuestionAnswering,
    questions: QuestionSet,
    windows: np.ndarray,
    machine: Machine,
    advance: Callable[[int], object] = lambda windows: None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Start and end logits, (tokens,) float32 each, of every window asked for, in the order asked.

    Raises UserError when the model gives a logit that is not finite.
    """
    logits: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0), np.zeros(0))] * len(windows)
    for group in budget_batches(questions.window_lengths_W[windows], machine.tokens):
        packed = questions.packed(windows[group])
        with autocast(machine.device, machine.precision):
            start_T, end_T = model(packed.tensors().to(machine.device))
        scores_2T = torch.stack([start_T, end_T]).float().cpu().numpy()
        if not np.isfinite(scores_2T).all():
            raise UserError("the model's logits are not finite: the checkpoint is damaged or its training diverged.")
        for place, begin, end in zip(group, packed.cu_seqlens, packed.cu_seqlens[1:], strict=False):
            logits[place] = (scores_2T[0, begin:end], scores_2T[1, begin:end])
        advance(len(group))
    return logits


def predict(
    model: SpanBertForQuestionAnswering,
    questions: QuestionSet,
    decode: DecodeConfig,
    machine: Machine,
    *,
    null_allowed: bool,
    advance: Callable[[int], object] = lambda windows: None,
) -> Iterator[Decoded]:
    """Answers to all questions, in order. The model must be in eval mode; `advance` hears of windows done."""
    group: list[tuple[int, range]] = []
    for question, windows in windows_by_question(questions):
        group.append((question, windows))
        if windows.stop - group[0][1].start >= CHUNK_WINDOWS or question + 1 == len(questions):
            first = group[0][1].start
            logits = window_logits(model, questions, np.arange(first, windows.stop), machine, advance)
            for member, own in group:
                part = logits[own.start - first : own.stop - first]
                yield decode_question(questions, member, own, part, decode, null_allowed=null_allowed)
            group = []
