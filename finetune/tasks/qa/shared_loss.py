"""The loss of a question whose windows share one softmax (shared normalisation, Clark & Gardner 2018).

Scores of different passages then mean the same: a span of a passage without the answer costs as much as a wrong span of the
right one. What follows is said of starts; ends are the same, and a question's loss is the mean of both.

Let x be the start logits. Every window w has a null position, its `[CLS]`, with z_w = exp(x). Let S be the sum of exp(x)
over all other tokens of all windows of the question. "Nothing here" is an alternative within its window alone: a null
position competes with every token, but not with other windows' null positions, which are neither right nor wrong. So

* where the answer stands in the windows A (more than one where windows overlap), with G the sum of exp(x) over its places,

      loss = mean over w in A of −log( G / (z_w + S) ):

  the answer, in whichever window, is to beat every other token of every passage and the null of a window that it stands in.
  The null of a window without the answer does not appear, for it says the truth;

* where it stands in no window, with W all of them,

      loss = mean over w in W of −log( z_w / (z_w + S) ):

  every null is to beat every token of every window. This is what decoding looks at: there is no answer where the least
  null score of all windows, or that of the best span's own passage, is above the best span's.

With one window a question both are the cross-entropy of that window, as in ``qa_loss_sum``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spanbert.model.packing import unpack


def shared_loss_sum(start_T: Tensor, end_T: Tensor, cu_seqlens: Tensor, max_seqlen: int, labels_B3: Tensor) -> Tensor:
    """Sum over questions of the loss above, in nats: () fp32.

    start_T, end_T: logits of the T packed tokens of B windows. labels_B3: int64, for each window the positions within it of
    the answer's first and last token, 0 and 0 where it does not stand there, and a number that the windows of one
    question share. All windows of a question must be there.
    """
    logits_BL2 = unpack(torch.stack([start_T, end_T], -1).float(), cu_seqlens, max_seqlen, fill=-math.inf)
    label_B2, question_B = labels_B3[:, :2], labels_B3[:, 2]
    answers_B = label_B2[:, 1] > 0
    same_BB = question_B[:, None] == question_B
    null_B2 = logits_BL2[:, 0]
    tokens_B2 = logits_BL2[:, 1:].logsumexp(1)
    total_B2 = torch.logaddexp(null_B2, sum_over(same_BB, tokens_B2))  # log(z_w + S)
    gold_B2 = logits_BL2.gather(1, label_B2[:, None]).squeeze(1)  # of a window without the answer its null
    both_BB = same_BB & answers_B[:, None] & answers_B
    right_B2 = sum_over(both_BB | torch.eye(len(same_BB), dtype=torch.bool, device=same_BB.device), gold_B2)
    counts_B = answers_B | ~(same_BB & answers_B).any(1)  # is in A, or in W
    weight_B = counts_B / (same_BB & counts_B).sum(1)
    return (weight_B[:, None] * (total_B2 - right_B2)).sum() / 2


def sum_over(chosen_BB: Tensor, logits_B2: Tensor) -> Tensor:
    """For each row b the log of the sum of exp(logits) over the rows that chosen_BB[b] names, of which there must be one."""
    return torch.where(chosen_BB[:, :, None], logits_B2, -math.inf).logsumexp(1)
