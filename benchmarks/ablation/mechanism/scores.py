"""The loss of every single target, which training never needs and the bins do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Rows of logits at a time.
ROWS = 512


@torch.no_grad()
def target_scores(
    features_MH: Tensor, embedding_VH: Tensor, bias_V: Tensor, ids_M: Tensor, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """−log softmax(features · Eᵀ + bias)[id] in nats, and whether the arg-max is right: (M,) float64 each.

    The product is made in ``dtype``, the softmax in fp32, as in training (``vocabulary_loss``).
    """
    weight_VH = embedding_VH.to(dtype)
    losses, right = [], []
    for begin in range(0, len(ids_M), ROWS):
        some = slice(begin, begin + ROWS)
        logits_cV = torch.add(features_MH[some].to(dtype) @ weight_VH.T, bias_V.float())
        own_c = logits_cV.gather(1, ids_M[some, None])[:, 0]
        losses.append(logits_cV.logsumexp(-1) - own_c)
        right.append(own_c == logits_cV.amax(-1))
    if not losses:
        return np.zeros(0), np.zeros(0)
    return torch.cat(losses).double().cpu().numpy(), torch.cat(right).double().cpu().numpy()


def unigram_log_probs(counts_V: np.ndarray) -> np.ndarray:
    """Every token by its frequency in the corpus, one added to each count, (V,) float64 nats."""
    return np.log((counts_V + 1.0) / (counts_V.sum() + len(counts_V)))
