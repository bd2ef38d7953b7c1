"""Cross table: how well a model predicts what each scheme hides, whichever scheme it was trained under."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.ablation.mechanism.scores import target_scores
from benchmarks.ablation.mechanism.spans import FARTHEST, LONGEST, PLACES, means, where, whole
from spanbert.device import autocast
from spanbert.model.batch import MaskedBatch
from spanbert.model.models import SpanBertForPretraining

Scheme = Literal["subword", "whole_word", "geometric", "mixed"]
SCHEMES: tuple[Scheme, ...] = ("subword", "whole_word", "geometric", "mixed")


@torch.no_grad()
def score_masks(
    model: SpanBertForPretraining,
    parts: Sequence[MaskedBatch[np.ndarray]],
    starts_word_V: np.ndarray,
    precision: str,
    with_sbo: bool,
) -> dict[str, Any]:
    """MLM, and with_sbo SBO, over these masked blocks: all targets, and by words of their span, place and distance."""
    device = model.mlm.bias.device
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    found: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for part in parts:
        masked = part.tensors().to(device)
        targets = masked.targets
        span_K, offset_K = targets.span_M[targets.sbo_K], targets.offset_M[targets.sbo_K]
        with autocast(device, precision):
            hidden_TH = model.encoder(*masked.packed)
            features: dict[str, Tensor] = {"mlm": model.mlm(hidden_TH[targets.positions_M])}
            if with_sbo:
                states = hidden_TH[targets.left_S], hidden_TH[targets.right_S]
                features["sbo"] = model.sbo(*states, span_K, offset_K)
        places = where(part, starts_word_V)
        for head, values in features.items():
            chosen = slice(None) if head == "mlm" else part.targets.sbo_K
            ids = torch.from_numpy(part.targets.ids_M[chosen]).to(device)
            bias_V = model.mlm.bias if head == "mlm" else model.sbo.bias
            scores = target_scores(values, model.encoder.embeddings.word.weight, bias_V, ids, dtype)
            found.setdefault(head, []).append((*scores, *(bins_M[chosen] for bins_M in places)))
    return {head: in_bins(*(np.concatenate(column) for column in zip(*rows))) for head, rows in found.items()}


def in_bins(
    loss_M: np.ndarray, right_M: np.ndarray, words_M: np.ndarray, place_M: np.ndarray, distance_M: np.ndarray
) -> dict[str, Any]:
    """Of each target its loss and whether it was right, and the three that say where it lies (``Where``)."""
    return {
        **whole(loss_M, right_M),
        "by_words": means(loss_M, right_M, words_M, range(1, LONGEST + 1)),
        "by_place": means(loss_M, right_M, place_M, range(len(PLACES))),
        "by_distance": means(loss_M, right_M, distance_M, range(1, FARTHEST + 1)),
    }


def unigram_masks(
    parts: Sequence[MaskedBatch[np.ndarray]], starts_word_V: np.ndarray, log_frequency_V: np.ndarray
) -> dict[str, Any]:
    """The baseline of ``score_masks``: every token by its frequency in the corpus, whatever is around it."""
    ids_M = np.concatenate([part.targets.ids_M for part in parts])
    places = (np.concatenate(column) for column in zip(*(where(part, starts_word_V) for part in parts)))
    return in_bins(-log_frequency_V[ids_M], (ids_M == log_frequency_V.argmax()).astype(float), *places)
