"""The numbers of pretraining: means of a step's sums, and validation with fixed masks.

Validation takes the same sequences under the same masks every time, so that curves are comparable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from pretrain.data.batches import StepBatches
from pretrain.data.sampler import split_batch
from pretrain.step import LossSums, TargetCounts, micro_batch_loss
from spanbert.device import autocast
from spanbert.distributed import Group
from spanbert.errors import UserError

#: The "epoch" whose masks validation uses: one that training never reaches.
VALIDATION_EPOCH = 2**31 - 1


def summarise(sums: Sequence[float], counts: Sequence[float], with_sbo: bool = True) -> dict[str, float]:
    """``LossSums`` ÷ ``TargetCounts``: losses in nats, accuracies, perplexities.

    An objective without targets is left out.
    """
    total, targets = LossSums(*sums), TargetCounts(*counts)
    objectives = [("mlm", total.mlm_loss, total.mlm_correct, targets.mlm)]
    if with_sbo:
        objectives.append(("sbo", total.sbo_loss, total.sbo_correct, targets.sbo))
    values: dict[str, float] = {}
    for name, loss, correct, count in objectives:
        if count:
            values[f"{name}_loss"] = loss / count
            values[f"{name}_accuracy"] = correct / count
            values[f"{name}_perplexity"] = math.exp(min(loss / count, 700.0))
    return values


def total_loss(scores: Mapping[str, float]) -> float | None:
    """MLM + SBO (§3.3), the number by which the best checkpoint is chosen."""
    losses = [scores["mlm_loss"], scores.get("sbo_loss", 0.0)]
    return None if None in losses else sum(losses)


class Validation:
    """The first ``sequences`` of a seeded shuffle of the held-out blocks, always masked alike, shared out over ranks.

    ``held_out`` fetches and masks them; its ``order`` is not used. Raises UserError when there are fewer blocks than
    ranks (each must do the same number of forward passes), unless there are none at all: then ``empty`` is true.
    """

    def __init__(self, held_out: StepBatches, sequences: int, seed: int, group: Group):
        self.group = group
        blocks = held_out.blocks
        shuffle = np.random.Generator(np.random.Philox(key=[seed, VALIDATION_EPOCH]))
        chosen = shuffle.permutation(len(blocks))[:sequences]
        self.empty = not len(chosen)
        if 0 < len(chosen) < group.world:
            raise UserError(
                f"only {len(chosen)} held-out blocks for {group.world} ranks: prepare with a larger --validation-share"
            )
        parts = split_batch(blocks.lengths[chosen], held_out.budget, group.world) if len(chosen) else []
        self.masked = [held_out.mask(np.full(len(part), VALIDATION_EPOCH), chosen[part]) for part in parts]
        self.counts = TargetCounts(
            sum(part.targets.ids_M.size for part in self.masked), sum(part.targets.sbo_K.size for part in self.masked)
        )
        self.own = self.masked[group.rank :: group.world]

    @torch.no_grad()
    def run(self, model: nn.Module, precision: str, with_sbo: bool) -> dict[str, float]:
        """MLM and SBO loss (nats), accuracy and perplexity over all targets; all ranks must call it, all get it."""
        was_training = model.training
        model.eval()
        device = self.group.device
        sums_4 = torch.zeros(4, dtype=torch.float64, device=device)
        for part in self.own:
            with autocast(device, precision):
                _, sums = micro_batch_loss(model, part.tensors().to(device), TargetCounts(1, 1), with_sbo)
            sums_4 += sums
        model.train(was_training)
        return summarise(self.group.sum(sums_4.tolist()), self.counts, with_sbo)

    def unigram_baseline(self, counts_V: np.ndarray) -> dict[str, float]:
        """The loss (nats) of predicting each target from the corpus's token frequencies (one added to each count)."""
        log_p = np.log((counts_V + 1.0) / (counts_V.sum() + len(counts_V)))
        losses: dict[str, float] = {}
        for name in ("mlm", "sbo"):
            ids = [m.targets.ids_M if name == "mlm" else m.targets.ids_M[m.targets.sbo_K] for m in self.masked]
            flat = np.concatenate(ids) if ids else np.zeros(0, np.int64)
            if len(flat):
                losses[f"{name}_loss"] = -math.fsum(log_p[flat]) / len(flat)
        return losses
