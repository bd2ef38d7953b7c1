"""Probe: what the states of the two visible tokens around a hidden span say of its content.

The encoder is frozen, and every model gets the same new probe, of the shape of the SBO head (§3.2), trained on the same spans in the
same order: so the loss says what can be read from boundary states, and not how well a head of its own was trained. (The
heads of the arms could not be compared: most have none.)

The probe predicts with the word embeddings of the start, frozen, for all arms: then the only thing that differs between
arms is the states. A matrix of its own would have sixteen times the parameters of all else and more of the text in it
than of the states; the arm's own embeddings were, in the arm with SBO, trained for just this use. The
bias is new, and begins as the log-frequencies of tokens.

Everything hidden is [MASK] in the encoder's input, so a boundary state knows of the span only what the visible text tells.

The control is the same probe on the states two tokens further out on either side: where an objective that looks at boundaries has no
reason to put anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.ablation.mechanism.scores import ROWS, target_scores
from spanbert.device import autocast
from spanbert.model.batch import MaskedBatch
from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import Encoder, initialise
from spanbert.model.heads import SBOHead
from spanbert.training.optim import adamw, linear_schedule, set_learning_rate

#: Tokens from the boundary, outwards.
REACHES = {"boundary": 0, "beyond": 2}
SPANS_A_STEP = 64
LR, WARMUP, WEIGHT_DECAY, BETAS = 2e-3, 0.06, 0.01, (0.9, 0.98)


class SpanStates(NamedTuple):
    """S spans with K targets, span by span, and the encoder's states beside them."""

    left_SH: Tensor
    right_SH: Tensor
    ids_K: Tensor  # int64
    span_K: Tensor  # int64
    offset_K: Tensor  # int64
    first_S: Tensor  # int64, index into K
    size_S: Tensor  # int64; 0 is possible


@torch.no_grad()
def span_states(encoder: Encoder, parts: Sequence[MaskedBatch[np.ndarray]], precision: str) -> dict[str, SpanStates]:
    """One pass over masked blocks → the states at each of REACHES; a place outside the sequence is its [CLS] or [SEP]."""
    device = encoder.embeddings.word.weight.device
    states: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in REACHES}
    ids, spans, offsets, before = [], [], [], 0
    for part in parts:
        packed, targets = part.packed, part.targets
        with autocast(device, precision):
            hidden_TH = encoder(*packed.tensors().to(device))
        edges = packed.cu_seqlens
        sequence_S = np.searchsorted(edges, targets.left_S, side="right") - 1
        for name, reach in REACHES.items():
            left_S = np.maximum(targets.left_S - reach, edges[sequence_S])
            right_S = np.minimum(targets.right_S + reach, edges[sequence_S + 1] - 1)
            left_SH, right_SH = (hidden_TH[torch.from_numpy(at).to(device)].float() for at in (left_S, right_S))
            states[name].append((left_SH, right_SH))
        kept = targets.sbo_K
        ids.append(targets.ids_M[kept])
        spans.append(targets.span_M[kept] + before)
        offsets.append(targets.offset_M[kept])
        before += len(targets.left_S)
    span_K = np.concatenate(spans)
    size_S = np.bincount(span_K, minlength=before)
    shared = (np.concatenate(ids), span_K, np.concatenate(offsets), np.cumsum(size_S) - size_S, size_S)
    rest = [torch.from_numpy(np.asarray(array, np.int64)).to(device) for array in shared]
    return {
        name: SpanStates(torch.cat([left for left, _ in sides]), torch.cat([right for _, right in sides]), *rest)
        for name, sides in states.items()
    }


def train_probe(
    states: SpanStates,
    shape: EncoderConfig,
    embedding_VH: Tensor,
    log_frequency_V: np.ndarray,
    steps: int,
    precision: str,
    seed: int = 0,
) -> SBOHead:
    """A new SBO head trained on these spans; ``seed`` decides its first weights and the order of spans."""
    device = embedding_VH.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = SBOHead(shape)
        initialise(probe, shape.initializer_range)
    with torch.no_grad():
        probe.bias.copy_(torch.from_numpy(log_frequency_V))
    probe.to(device).train()
    weight_VH = embedding_VH.detach().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    optimizer = adamw(probe, LR, BETAS, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    spans = len(states.size_S)
    order = torch.zeros(0, dtype=torch.int64)
    for step in range(steps):
        while len(order) < SPANS_A_STEP:
            order = torch.cat([order, torch.randperm(spans, generator=generator)])
        chosen_s, order = order[:SPANS_A_STEP].to(device), order[SPANS_A_STEP:]
        size_s = states.size_S[chosen_s]
        span_k = torch.arange(len(chosen_s), device=device).repeat_interleave(size_s)
        within_k = torch.arange(len(span_k), device=device) - (size_s.cumsum(0) - size_s)[span_k]
        target_k = states.first_S[chosen_s][span_k] + within_k
        with autocast(device, precision):
            features_kH = probe(states.left_SH[chosen_s], states.right_SH[chosen_s], span_k, states.offset_K[target_k])
        d_features_kH, probe.bias.grad = loss_gradients(features_kH, weight_VH, probe.bias, states.ids_K[target_k])
        features_kH.backward(d_features_kH)
        nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        set_learning_rate(optimizer, LR * linear_schedule((step + 1) / (steps + 1), WARMUP))
        optimizer.step()
        optimizer.zero_grad()
    return probe.eval()


@torch.no_grad()
def loss_gradients(features_kH: Tensor, weight_VH: Tensor, bias_V: Tensor, ids_k: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the mean of −log softmax(features · Eᵀ + bias)[id] with respect to features and bias, E being frozen.

    In half the time and a quarter of the memory of autograd, which keeps the logits several times over.
    """
    d_features_kH, d_bias_V = torch.zeros_like(features_kH), torch.zeros_like(bias_V)
    for begin in range(0, len(ids_k), ROWS):
        some = slice(begin, begin + ROWS)
        logits_cV = torch.add(features_kH[some].to(weight_VH.dtype) @ weight_VH.T, bias_V)
        d_logits_cV = torch.softmax(logits_cV, -1, out=logits_cV)
        d_logits_cV.scatter_add_(1, ids_k[some, None], d_logits_cV.new_full((len(d_logits_cV), 1), -1.0))
        d_bias_V += d_logits_cV.sum(0)
        d_features_kH[some] = (d_logits_cV.to(weight_VH.dtype) @ weight_VH).to(features_kH.dtype)
    return d_features_kH / len(ids_k), d_bias_V / len(ids_k)


@torch.no_grad()
def score_probe(
    probe: SBOHead, states: SpanStates, embedding_VH: Tensor, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and right or wrong of each of the K targets."""
    with autocast(embedding_VH.device, precision):
        features_KH = probe(states.left_SH, states.right_SH, states.span_K, states.offset_K)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return target_scores(features_KH, embedding_VH, probe.bias, states.ids_K, dtype)
