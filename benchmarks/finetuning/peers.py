"""What the comparisons with transformers share: the shape of a run, its schedule, and the peer's optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spanbert.training.optim import linear_schedule

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Pair:
    """A step's mean loss in both."""

    ours: float
    theirs: float


def worst(pairs: list[Pair]) -> float:
    """Largest difference of any step."""
    return max(abs(pair.ours - pair.theirs) for pair in pairs)


def learning_rates(peak: float, steps: int) -> list[float]:
    """Linear warm-up over a tenth of the steps, then linear decay."""
    return [peak * linear_schedule((step + 1) / (steps + 1), 0.1) for step in range(steps)]


def their_adamw(
    model: torch.nn.Module, rate: float, weight_decay: float = 0.01, fused: bool | None = None
) -> torch.optim.AdamW:
    """torch.optim.AdamW with the parameter groups of transformers' examples; its Trainer takes the fused one."""
    plain = ("bias", "LayerNorm.weight")
    groups = [
        {"params": [p for n, p in model.named_parameters() if not n.endswith(plain)], "weight_decay": weight_decay},
        {"params": [p for n, p in model.named_parameters() if n.endswith(plain)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, fused=fused)
