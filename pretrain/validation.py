"""Validation with fixed masks: the same sequences under the same masks every time, so that curves are comparable."""

from __future__ import annotations

import numpy as np
import torch

from pretrain.batches import masked_micro_batch
from pretrain.blocks import Blocks
from pretrain.masking import Masker
from pretrain.objective import LossSums, micro_batch_loss
from spanbert.device import autocast
from spanbert.models import SpanBertForPretraining

#: The "epoch" whose masks validation uses: one that training never reaches.
VALIDATION_EPOCH = 2**31 - 1


class Validation:
    """The first ``sequences`` of a seeded shuffle of the held-out blocks, always masked alike."""

    def __init__(self, blocks: Blocks, masker: Masker, sequences: int, micro_batch_size: int, seed: int):
        order = np.random.Generator(np.random.Philox(key=[seed, VALIDATION_EPOCH])).permutation(len(blocks))
        chosen = order[:sequences]
        chosen = chosen[np.argsort(blocks.lengths[chosen], kind="stable")]
        parts = np.array_split(chosen, max(1, -(-len(chosen) // micro_batch_size)))
        self.batches = [
            masked_micro_batch(blocks, masker, np.full(len(part), VALIDATION_EPOCH), part) for part in parts if len(part)
        ]

    @torch.no_grad()
    def run(self, model: SpanBertForPretraining, device: torch.device, precision: str, with_sbo: bool) -> dict[str, float]:
        """MLM and SBO loss (nats), accuracy and perplexity over all targets."""
        was_training = model.training
        model.eval()
        sums, one = LossSums.zero(device), torch.ones(2, device=device)
        for batch in self.batches:
            with autocast(device, precision):
                _, part = micro_batch_loss(model, batch.to(device), one, with_sbo)
            sums = sums.plus(part)
        model.train(was_training)
        return sums.means()

    def unigram_baseline(self, counts_V: np.ndarray) -> dict[str, float]:
        """The loss (nats) of predicting each target from the corpus's token frequencies (one added to each count)."""
        log_p = np.log((counts_V + 1.0) / (counts_V.sum() + len(counts_V)))
        losses: dict[str, float] = {}
        for name in ("mlm", "sbo"):
            ids = [b.targets.ids_M if name == "mlm" else b.targets.ids_M[b.targets.sbo_K] for b in self.batches]
            flat = np.concatenate([i.numpy() for i in ids])
            losses[f"{name}_loss"] = float(-log_p[flat].mean()) if len(flat) else float("nan")
        return losses
