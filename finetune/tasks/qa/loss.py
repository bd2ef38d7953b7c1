"""The training objective of extractive QA: two cross-entropies over the tokens of each window (§5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert.model.packing import unpack


def qa_loss_sum(start_T: Tensor, end_T: Tensor, cu_seqlens: Tensor, max_seqlen: int, labels_B2: Tensor) -> Tensor:
    """Sum over B windows of the mean of start and end cross-entropy, in nats: () fp32.

    start_T, end_T: logits of T packed tokens; labels_B2: int64 positions within each window. The softmax runs over a
    window's own tokens, question and specials included: `[CLS]` is the label of a window without the answer.
    """
    logits_BL2 = unpack(torch.stack([start_T, end_T], -1).float(), cu_seqlens, max_seqlen, fill=-math.inf)
    # cross_entropy wants classes second: (B, L, 2) scores L classes for 2 labels a window
    return F.cross_entropy(logits_BL2, labels_B2, reduction="sum") / 2
