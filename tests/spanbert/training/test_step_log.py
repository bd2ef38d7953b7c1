"""Numbers of steps come to the host together, survive a checkpoint, and bad ones are counted, not averaged."""

from __future__ import annotations

import json
import math

import pytest
import torch

from spanbert.distributed import alone
from spanbert.errors import UserError
from spanbert.training.step import StepResult
from spanbert.training.step_log import BadStep, StepLog, StepRow, Totals, bad_steps_in_a_row


def result(*sums: float, norm: float = 1.0) -> StepResult:
    return StepResult(torch.tensor(sums, dtype=torch.float64), torch.tensor(norm))


def test_totals_leave_bad_steps_out():
    log = StepLog(alone(), counts=1)
    log.add(1, (10,), result(2.0, 3.0))
    log.add(2, (11,), result(math.nan, 1.0))
    log.add(3, (12,), result(4.0, 5.0, norm=math.inf))
    log.add(4, (20,), result(6.0, 7.0, norm=0.5))
    assert log.close() == (
        Totals((30,), (8.0, 10.0), 0.5),
        [BadStep(2, False, 1.0), BadStep(3, True, math.inf)],
        [1, 2, 3, 4],
    )
    assert log.close() == (None, [], []), "it begins again"


def test_a_scalar_sum_will_do():
    log = StepLog(alone(), counts=1)
    log.add(1, (4,), StepResult(torch.tensor(2.0).double(), torch.tensor(1.0)))
    assert log.settle() == [StepRow(1, (4,), (2.0,), 1.0)]


def test_what_is_stored_is_what_older_checkpoints_hold():
    """A row of a checkpoint is [step, MLM targets, SBO targets, 4 sums, norm], as it was before the rows had names."""
    log = StepLog(alone(), counts=2)
    log.add(7, (5.0, 3.0), result(1.0, 2.0, 3.0, 4.0, norm=0.25))
    stored = json.loads(json.dumps(log.stored()))
    assert stored == [[7, 5.0, 3.0, 1.0, 2.0, 3.0, 4.0, 0.25]]
    again = StepLog(alone(), 2, stored)
    again.add(8, (1.0, 1.0), result(1.0, 1.0, 1.0, 1.0))
    assert again.close()[0] == Totals((6.0, 4.0), (2.0, 3.0, 4.0, 5.0), 1.0)


def test_too_many_bad_steps_in_a_row_end_the_run_with_advice():
    bad = [BadStep(n, True, math.nan) for n in (2, 3, 5)]
    told: list[int] = []
    assert bad_steps_in_a_row(0, [1, 2, 3, 4, 5], bad, 3, lambda b: told.append(b.step)) == 1
    assert told == [2, 3, 5]
    with pytest.raises(UserError, match=r"^3 steps in a row .* step 3: .*--precision fp32.*; look$"):
        bad_steps_in_a_row(1, [2, 3], bad, 3, lambda b: None, "look")
