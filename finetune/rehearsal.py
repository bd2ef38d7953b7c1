"""Going on learning without forgetting: old examples in each batch, a pull towards the old weights, and both scores.

Rehearsal (Robins 1995) draws a share of each step's windows from the data that the model was trained on before. The pull
is L2-SP (Li et al. 2018): the loss grows with the squared distance from the weights that the run began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.task import Features
from spanbert.checkpoint.architectures import architecture_of
from spanbert.checkpoint.load_report import LoadReport
from spanbert.model.models import SpanBertModel

#: Second word of the seed, so that no draw is the one of an epoch's order.
STREAM = 0x01D


@dataclass(frozen=True)
class Rehearsal:
    """The old examples, and how many of them a step sees."""

    features: Features
    share: float
    """Of a step's windows."""
    seed: int

    def draw(self, step: int, new_windows: int) -> np.ndarray:
        """Old windows to go with a step's new ones, longest first: a function of (seed, step) and how many are new.

        Without repetition within a step, unless there are too few.
        """
        lengths_W = self.features.lengths
        count = round(new_windows * self.share / (1 - self.share))
        generator = np.random.default_rng([self.seed, STREAM, step])
        chosen = generator.choice(len(lengths_W), count, replace=count > len(lengths_W))
        return chosen[np.argsort(-lengths_W[chosen], kind="stable")]


def new_windows_of(batch_size: int, share: float) -> int:
    """Windows of a batch that are new when ``share`` of it is old."""
    return batch_size - round(share * batch_size)


class Pull:
    """λ/2 · ‖w − w₀‖² over the parameters that are trained and that ``start`` had, w₀ being what they are now."""

    def __init__(self, model: SpanBertModel, start: LoadReport, strength: float):
        fresh = {head.name for head in architecture_of(type(model)).all_heads if not start.has(head.name)}
        self.strength = strength
        self.pairs = [
            (parameter, parameter.detach().clone())
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.partition(".")[0] not in fresh
        ]

    def penalty(self) -> Tensor:
        """() fp32, with gradient."""
        return torch.stack([(now - then).square().sum() for now, then in self.pairs]).sum() * (self.strength / 2)


def before_and_after(
    records: Sequence[Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], main_metric: str
) -> dict[str, dict[str, Any]]:
    """Scores of the main metric by data ("new", "old"), from the records of step 0 and the last evaluations.

    records: of metrics.jsonl, where the new data's split is "validation" and the old data's "old".
    """
    splits = {"new": "validation", "old": "old"}
    before = {
        which: record[main_metric]
        for which, split in splits.items()
        for record in records
        if record["step"] == 0 and record["split"] == split
    }
    return {
        which: {"metric": main_metric, "before": before.get(which), "after": metrics[main_metric]}
        for which, metrics in after.items()
    }


def told(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same for people, a line each."""
    lines = []
    for which, score in scores.items():
        before, after = score["before"], score["after"]
        change = (
            f"{before:.2f} before, {after:.2f} after ({after - before:+.2f})"
            if before is not None
            else f"{after:.2f} after"
        )
        lines.append(f"{which} data: {score['metric']} {change}")
    return lines
