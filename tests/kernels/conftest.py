"""Kernel tests: on a machine without a GPU the kernels run in Triton's interpreter (chosen in tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

HAS_GPU = torch.cuda.is_available()


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device on which the ops launch their kernels: a GPU, or the CPU through the interpreter."""
    if HAS_GPU:
        yield torch.device("cuda")
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    yield torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def relative_error(x: Tensor, exact: Tensor) -> float:
    """‖x − exact‖ / ‖exact‖; NaN counts as infinite."""
    error = (x.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30)
    return float("inf") if torch.isnan(error) else error.item()


@pytest.fixture
def within_error_bound() -> Callable[..., bool]:
    """right(x, plain, exact, factor): x is as good as `factor` times plain PyTorch in the same dtype.

    2 for outputs, 3 for gradients, against float64. A quarter of the dtype's epsilon is allowed besides: plain PyTorch is
    exact by luck on a sequence of one token.
    """

    def right(x: Tensor, plain: Tensor, exact: Tensor, factor: float) -> bool:
        allowed = factor * relative_error(plain, exact) + torch.finfo(x.dtype).eps / 4
        return x.shape == exact.shape and relative_error(x, exact) <= allowed

    return right


@pytest.fixture
def poisoned() -> Callable[..., Tensor]:
    """An allocator whose tensors hold NaN: what a kernel forgets to write is seen."""

    def empty(*size, **options) -> Tensor:
        return torch.empty(*size, **options).fill_(float("nan"))

    return empty
