"""Cross-entropy against the whole vocabulary in bounded memory.

features · Eᵀ + bias is M × V: for 600 targets and 29k words 70 MB, read and written several times by a softmax with
autograd. Here it exists a few rows at a time: each chunk's logits become, in place, softmax − one-hot, which is the
gradient with respect to the logits, and are folded into the three gradients at once. The backward pass only scales them
by the incoming number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert.model.backend import load_kernels

#: Rows of logits at a time. On a CPU wider blocks fall out of the cache; on a GPU they fill the machine.
CHUNK_ROWS = {"cpu": 512, "cuda": 4096}


class VocabularyLoss(NamedTuple):
    """Sums over the targets: divide by the number of targets of the whole optimizer step (token-exact)."""

    loss_sum: Tensor  # () fp32, nats, differentiable
    correct: Tensor  # () int64, targets whose arg-max is right


def vocabulary_loss(
    features_MH: Tensor, embedding_VH: Tensor, bias_V: Tensor, targets_M: Tensor, backend: str = "eager"
) -> VocabularyLoss:
    """Sum over M targets of −log softmax(features · Eᵀ + bias)[target].

    Under autocast the products run in its dtype; the softmax is fp32 always. ``M = 0`` gives zero with zero gradients.
    """
    if backend == "triton":
        return VocabularyLoss(*load_kernels().linear_cross_entropy(features_MH, embedding_VH, bias_V, targets_M))
    loss_sum, correct = _LinearCrossEntropy.apply(features_MH, embedding_VH, bias_V, targets_M)
    return VocabularyLoss(loss_sum, correct)


def vocabulary_logits(features_MH: Tensor, embedding_VH: Tensor, bias_V: Tensor) -> Tensor:
    """The plain product (M, V), for predicting."""
    return torch.nn.functional.linear(features_MH, embedding_VH, bias_V)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features_MH: Tensor, embedding_VH: Tensor, bias_V: Tensor, targets_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        kind = features_MH.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else embedding_VH.dtype
        with torch.autocast(kind, enabled=False):
            return _forward(ctx, features_MH, embedding_VH, bias_V, targets_M, dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_correct: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.saved_tensors:
            return None, None, None, None
        return *(grad_loss.to(grad.dtype) * grad for grad in ctx.saved_tensors), None


def _forward(
    ctx: Any, features_MH: Tensor, embedding_VH: Tensor, bias_V: Tensor, targets_M: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    weight_VH = embedding_VH.to(dtype)
    with_gradient = any(ctx.needs_input_grad[:3])
    d_features_MH = torch.empty_like(features_MH)
    d_embedding_VH = torch.zeros_like(embedding_VH) if with_gradient else None
    d_bias_V = torch.zeros_like(bias_V)
    loss_sum = torch.zeros((), dtype=torch.float32, device=features_MH.device)
    correct = torch.zeros((), dtype=torch.int64, device=features_MH.device)
    rows = CHUNK_ROWS.get(features_MH.device.type, 4096)
    for start in range(0, features_MH.shape[0], rows):
        chunk = slice(start, start + rows)
        x_cH, target_c = features_MH[chunk].to(dtype), targets_M[chunk, None]
        logits_cV = torch.add(x_cH @ weight_VH.T, bias_V.float())  # fp32 whatever the product's dtype, in one pass
        top_c, own_c = logits_cV.amax(-1, keepdim=True), logits_cV.gather(1, target_c)
        correct += (own_c == top_c).sum()
        probs_cV = torch.softmax(logits_cV, -1, out=logits_cV)  # one kernel, row by row in the cache
        # −log p[target] from the largest probability, which cannot underflow as the target's can
        loss_sum += (top_c - probs_cV.amax(-1, keepdim=True).log() - own_c).sum()
        if d_embedding_VH is None:
            continue
        d_logits_cV = probs_cV
        d_logits_cV.scatter_add_(1, target_c, d_logits_cV.new_full(target_c.shape, -1.0))
        d_bias_V += d_logits_cV.sum(0)
        d_logits_cV = d_logits_cV.to(dtype)
        d_features_MH[chunk] = (d_logits_cV @ weight_VH).to(features_MH.dtype)
        if dtype == d_embedding_VH.dtype:
            d_embedding_VH.addmm_(d_logits_cV.T, x_cH)  # adds in place: one pass over V × H less
        else:
            d_embedding_VH.add_(d_logits_cV.T @ x_cH)
    if with_gradient:
        ctx.save_for_backward(d_features_MH, d_embedding_VH, d_bias_V)
    ctx.mark_non_differentiable(correct)
    return loss_sum, correct
