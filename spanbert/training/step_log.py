"""What happened in the steps since the last record of metrics.jsonl, kept on the device until somebody asks.

Reading a number from a GPU stops the host until the GPU has caught up. So a step only leaves its sums here; they come
to the host together when a record is due or a checkpoint is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from spanbert.distributed import Group
from spanbert.errors import UserError
from spanbert.training.step import StepResult


class StepRow(NamedTuple):
    """One step on the host, added up over ranks."""

    step: int
    """Its number, from 1."""
    counts: tuple[float, ...]
    sums: tuple[float, ...]
    norm: float

    @property
    def sums_finite(self) -> bool:
        return all(map(math.isfinite, self.sums))

    @property
    def finite(self) -> bool:
        """Whether the step was taken."""
        return self.sums_finite and math.isfinite(self.norm)


class Totals(NamedTuple):
    """Several steps together."""

    counts: tuple[float, ...]
    sums: tuple[float, ...]
    norm: float
    """The last one's."""


class BadStep(NamedTuple):
    """A step that was not taken because its loss or its gradient was not finite."""

    step: int
    losses_finite: bool
    gradient_norm: float

    @property
    def what(self) -> str:
        """ "gradient", or "loss" when it already was not finite."""
        return "gradient" if self.losses_finite else "loss"


class StepLog:
    """Sums over a few steps.

    counts: how many numbers a step counts. stored: the rows of a run that resumes, as ``stored`` gave them.
    """

    def __init__(self, group: Group, counts: int, stored: Sequence[Sequence[float]] = ()):
        self.group = group
        self.rows = [_from_stored(numbers, counts) for numbers in stored]
        self._waiting: list[tuple[int, tuple[float, ...], StepResult]] = []

    def add(self, step: int, counts: tuple[float, ...], result: StepResult) -> None:
        """counts: over all ranks; result: this rank's share."""
        self._waiting.append((step, tuple(counts), result))

    def settle(self) -> list[StepRow]:
        """Bring what waits to the host, added up over ranks (all of them must call this) → all rows so far."""
        if self._waiting:
            local = torch.stack(
                [torch.cat([r.sums_N.reshape(-1), r.norm.double().reshape(1)]) for *_, r in self._waiting]
            )
            share = local.tolist()
            width = len(share[0]) - 1
            total = self.group.sum([value for row in share for value in row[:width]])
            for n, (step, counts, _) in enumerate(self._waiting):
                self.rows.append(StepRow(step, counts, tuple(total[width * n : width * (n + 1)]), share[n][width]))
            self._waiting.clear()
        return self.rows

    def stored(self) -> list[list[float]]:
        """``settle`` as plain numbers, for a checkpoint: [step, counts, sums, norm] a row."""
        return [[row.step, *row.counts, *row.sums, row.norm] for row in self.settle()]

    def close(self) -> tuple[Totals | None, list[BadStep], list[int]]:
        """Totals of the good steps (None: there were none), the bad ones, and the numbers of all; then it is empty.

        Bad steps are not in the totals: one infinite loss would hide what the others did.
        """
        rows, self.rows = self.settle(), []
        good = [row for row in rows if row.finite]
        bad = [BadStep(row.step, row.sums_finite, row.norm) for row in rows if not row.finite]
        totals = None
        if good:
            counts = tuple(map(sum, zip(*(row.counts for row in good), strict=True)))
            totals = Totals(counts, tuple(map(math.fsum, zip(*(row.sums for row in good), strict=True))), good[-1].norm)
        return totals, bad, [row.step for row in rows]


def bad_steps_in_a_row(
    before: int,
    steps: Sequence[int],
    bad: Sequence[BadStep],
    limit: int,
    report: Callable[[BadStep], None],
    advice: str = "",
) -> int:
    """THE policy for steps that are not finite: each was skipped and is reported; ``limit`` of them in a row end the run.

    before: how many in a row there were before ``steps``. → how many after them. Raises UserError at the limit;
    ``advice`` is added to what it says, its ``{step}`` being the last of them.
    """
    bad_by_step, in_a_row = {found.step: found for found in bad}, before
    for step in steps:
        found = bad_by_step.get(step)
        in_a_row = in_a_row + 1 if found else 0
        if not found:
            continue
        report(found)
        if in_a_row >= limit:
            raise UserError(
                f"{in_a_row} steps in a row had a loss or gradient that is not finite, the last of them step {step}: "
                "resume in fp32 (--precision fp32), or start again with a lower --lr or a longer --warmup"
                + (f"; {advice.format(step=step)}" if advice else "")
            )
    return in_a_row


def _from_stored(numbers: Sequence[float], counts: int) -> StepRow:
    step, *rest, norm = numbers
    return StepRow(int(step), tuple(rest[:counts]), tuple(rest[counts:]), norm)
