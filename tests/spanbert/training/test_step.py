"""The optimizer step of all stages: cut however it is, one gradient; what is not finite is not taken."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from spanbert.distributed import alone
from spanbert.model.dropout import dropout_key
from spanbert.training.optim import adamw
from spanbert.training.step import OptimizerStep, StepResult


class Line(nn.Module):
    """y = w·x, with the place where an encoder keeps its dropout seed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Linear(3, 1)
        self.encoder = SimpleNamespace(dropout_seed=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight(x)


def make(clip_norm: float = 0.0, **options) -> OptimizerStep:
    model = Line()
    return OptimizerStep(
        model, model, adamw(model, 0.1), alone(), precision="fp32", clip_norm=clip_norm, seed=7, **options
    )


def squares(count: int):
    """Half of the mean square of y, and its sum for the report."""

    def loss(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        sum_ = model(x).square().sum()
        return sum_ / 2 / count, torch.stack([sum_.detach().double(), torch.tensor(float(len(x)), dtype=torch.float64)])

    return loss


def gradient(step: OptimizerStep) -> Tensor:
    return torch.cat([p.grad.flatten() for p in step.parameters])


def test_one_gradient_however_a_step_is_cut():
    x = torch.randn(12, 3)
    whole, parts = make(), make()
    one = whole.gradients(0, [x], squares(12))
    many = parts.gradients(0, [x[:1], x[1:7], x[7:]], squares(12))
    assert torch.allclose(gradient(whole), gradient(parts), atol=1e-6)
    assert many.sums_N.tolist() == pytest.approx(one.sums_N.tolist()) and one.sums_N[1] == 12
    assert many.norm.item() == pytest.approx(gradient(parts).norm().item())


def test_a_scalar_sum_will_do():
    result = make().gradients(0, [torch.ones(2, 3)] * 2, lambda m, x: (m(x).sum(), torch.tensor(2.5).double()))
    assert result.sums_N.shape == () and result.sums_N == 5


def test_clipping_measures_before():
    step = make(clip_norm=0.5)
    result = step.gradients(0, [torch.full((4, 3), 9.0)], squares(1))
    assert result.norm > 0.5 and gradient(step).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_dropout_is_seeded_by_step_and_micro_batch():
    """Also PyTorch's generator, for the back-ends that draw from it; as a tensor where layers are compiled."""
    seen = []

    def loss(model: Line, x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((model.encoder.dropout_seed, torch.initial_seed()))
        return model(x).sum(), torch.zeros((), dtype=torch.float64)

    for as_tensor in (False, True):
        make(seed_as_tensor=as_tensor).gradients(5, [torch.ones(1, 3)] * 2, loss)
    keys = [dropout_key(7, 5, number) for number in (0, 1)]
    assert [(int(s), g) for s, g in seen] == [(k, k) for k in keys] * 2
    assert [isinstance(s, Tensor) for s, _ in seen] == [False, False, True, True]


@pytest.mark.parametrize("broken", ["sums", "norm"])
def test_what_is_not_finite_is_not_taken(broken):
    """Neither weights nor moments move, whichever of the two it is, and the gradient is gone afterwards."""
    step = make()
    good = step.gradients(0, [torch.ones(2, 3)], squares(2))
    bad = StepResult(good.sums_N * math.nan, good.norm) if broken == "sums" else StepResult(good.sums_N, good.norm / 0)
    before = [p.detach().clone() for p in step.parameters]
    step.take(0.1, bad)
    assert all(torch.equal(p, old) for p, old in zip(step.parameters, before, strict=True))
    assert all(p.grad is None for p in step.parameters) and not good.finite.logical_not()
    step.take(0.03, step.gradients(1, [torch.ones(2, 3)], squares(2)))
    assert not torch.equal(step.parameters[0], before[0])
    assert {group["lr"] for group in step.optimizer.param_groups} == {0.03}
