"""What happened in the steps since the last record of metrics.jsonl, kept on the device until somebody asks.

Reading a number from a GPU stops the host until the GPU has caught up. So a step only leaves its sums here; they come
to the host together when a record is due or a checkpoint is written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.objective import TargetCounts, summarise
from spanbert.distributed import Group


@dataclass(frozen=True)
class BadStep:
    """A step that was not taken because its loss or its gradient was not finite."""

    step: int
    losses_finite: bool
    gradient_norm: float


class StepWindow:
    """Sums over a few steps. A row is [step, MLM targets, SBO targets, 4 loss sums, gradient norm]."""

    def __init__(self, group: Group, rows: list[list[float]]):
        self.group = group
        self.rows = [list(row) for row in rows]
        self._waiting: list[tuple[int, TargetCounts, Tensor, Tensor]] = []

    def add(self, step: int, counts: TargetCounts, sums_4: Tensor, norm: Tensor) -> None:
        """sums_4: this rank's share, (4,) on the device; norm: () of the whole gradient."""
        self._waiting.append((step, counts, sums_4, norm))

    def settle(self) -> list[list[float]]:
        """Bring what waits to the host, added up over ranks (all of them must call this) → all rows so far."""
        if self._waiting:
            local = torch.stack([torch.cat([sums, norm.double().reshape(1)]) for *_, sums, norm in self._waiting])
            share = local.tolist()
            total = self.group.sum([value for row in share for value in row[:4]])
            for n, (step, counts, _, _) in enumerate(self._waiting):
                self.rows.append([step, *counts, *total[4 * n : 4 * n + 4], share[n][4]])
            self._waiting.clear()
        return self.rows

    def close(self, with_sbo: bool) -> tuple[dict[str, float], list[BadStep], list[int]]:
        """Means over the window, which begins anew; the steps that were not finite; and all of the window's steps.

        Bad steps are not in the means: one infinite loss would hide what the others did.
        """
        rows, self.rows = self.settle(), []
        finite = [all(map(math.isfinite, row[3:])) for row in rows]
        good = [row for row, fine in zip(rows, finite, strict=True) if fine]
        bad = [
            BadStep(int(row[0]), all(map(math.isfinite, row[3:7])), row[7])
            for row, fine in zip(rows, finite, strict=True)
            if not fine
        ]
        sums = [math.fsum(row[3 + i] for row in good) for i in range(4)]
        counts = TargetCounts(sum(row[1] for row in good), sum(row[2] for row in good))
        values = summarise(sums, counts, with_sbo)
        if good:
            values["gradient_norm"] = good[-1][7]
        return values, bad, [int(row[0]) for row in rows]
