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
from spanbert.tokenizer.wordpiece import Tokenizer

Scheme = Literal["subword", "whole_word", "geometric", "mixed"]
SCHEMES: tuple[Scheme, ...] = ("subword", "whole_word", "geometric", "mixed")


@torch.no_grad()
def score_masks(
    model: SpanBertForPretraining,
    parts: Sequence[MaskedBatch[np.ndarray]],
    tokenizer: Tokenizer,
    precision: str,
    with_sbo: bool,
) -> dict[str, Any]:
    """MLM, and with_sbo SBO, over these masked blocks (``in_bins``)."""
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
        places = *shown(part, tokenizer.mask_id), *where(part, tokenizer.starts_word)
        for head, values in features.items():
            chosen = slice(None) if head == "mlm" else part.targets.sbo_K
            ids = torch.from_numpy(part.targets.ids_M[chosen]).to(device)
            bias_V = model.mlm.bias if head == "mlm" else model.sbo.bias
            scores = target_scores(values, model.encoder.embeddings.word.weight, bias_V, ids, dtype)
            found.setdefault(head, []).append((*scores, *(bins_M[chosen] for bins_M in places)))
    return {head: in_bins(*(np.concatenate(column) for column in zip(*rows))) for head, rows in found.items()}


def shown(masked: MaskedBatch[np.ndarray], mask_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each target whether [MASK] stands there, and whether the token itself does."""
    shown_M = masked.packed.input_ids_T[masked.targets.positions_M]
    return shown_M == mask_id, shown_M == masked.targets.ids_M


def in_bins(
    loss_M: np.ndarray,
    right_M: np.ndarray,
    is_mask_M: np.ndarray,
    is_kept_M: np.ndarray,
    words_M: np.ndarray,
    place_M: np.ndarray,
    distance_M: np.ndarray,
) -> dict[str, Any]:
    """Of each target its loss, whether it was right, what was shown (``shown``), and where it lies (``Where``).

    All numbers are about targets shown as [MASK], but ``as_trained``, about all, and ``kept``, about those that the model sees.
    """
    hidden = is_mask_M.astype(bool)
    loss_H, right_H = loss_M[hidden], right_M[hidden]
    return {
        **whole(loss_H, right_H),
        "by_words": means(loss_H, right_H, words_M[hidden], range(1, LONGEST + 1)),
        "by_place": means(loss_H, right_H, place_M[hidden], range(len(PLACES))),
        "by_distance": means(loss_H, right_H, distance_M[hidden], range(1, FARTHEST + 1)),
        "as_trained": whole(loss_M, right_M),
        "kept": whole(loss_M[is_kept_M], right_M[is_kept_M]),
    }


def unigram_masks(
    parts: Sequence[MaskedBatch[np.ndarray]], tokenizer: Tokenizer, log_frequency_V: np.ndarray
) -> dict[str, Any]:
    """The baseline of ``score_masks``: every token by its frequency in the corpus, whatever is around it."""
    ids_M = np.concatenate([part.targets.ids_M for part in parts])
    rows = ((*shown(part, tokenizer.mask_id), *where(part, tokenizer.starts_word)) for part in parts)
    places = (np.concatenate(column) for column in zip(*rows))
    return in_bins(-log_frequency_V[ids_M], (ids_M == log_frequency_V.argmax()).astype(float), *places)
