"""What is measured: operations, their cases and their providers, and the gate each provider must pass before timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.cost import Cost


class Unavailable(Exception):
    """A provider cannot run a case on this device; the message says why and is printed instead of a time."""


@dataclass(frozen=True)
class Case:
    """One shape. `numbers` holds the operation's own sizes; `lengths` the sequences of attention cases."""

    label: str
    dtype: torch.dtype
    numbers: dict[str, int]
    lengths: tuple[int, ...] = ()
    dropout_p: float = 0.0


@dataclass
class Instance:
    """A provider set up for a case: `forward()` computes from `leaves`, in the provider's own layout.

    `restore(index, x)` brings the output (−1) or leaf `index`'s gradient back to the operation's common layout for the
    gate, as one tensor or several; `cotangent` makes the provider's from the common one. `gated` is an instance without dropout where masks cannot be compared.
    """

    leaves: list[Tensor]
    forward: Callable[[], Tensor]
    restore: Callable[[int, Tensor], Tensor | Sequence[Tensor]] = lambda _index, x: x
    cotangent: Callable[[Tensor], Tensor] = lambda x: x
    gated: Instance | None = None


@dataclass(frozen=True)
class Provider:
    """One implementation: `build(case, inputs)` → Instance, or raises Unavailable."""

    name: str
    build: Callable[[Case, list[Tensor]], Instance]
    library: bool = True  # False for ours and for the plain formula


@dataclass(frozen=True)
class Operation:
    """`inputs(case, device)` in the common layout; `reference(case, inputs)` differentiable, whatever the dtype of the inputs."""

    name: str
    cases: list[Case]
    inputs: Callable[[Case, torch.device], list[Tensor]]
    reference: Callable[[Case, list[Tensor]], Tensor]
    providers: list[Provider]
    forward_cost: Callable[[Case], Cost]
    backward_cost: Callable[[Case], Cost]
    arithmetic: bool = False  # whether the rate that matters is TFLOP/s (else GB/s)


def relative_error(x: Tensor, exact: Tensor) -> float:
    error = (x.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30)
    return float("inf") if torch.isnan(error) else error.item()


class Gate:
    """What every provider of a case must reproduce before it is timed: the reference in float64.

    Right: error at most twice (gradients: three times) that of plain PyTorch in the same dtype. Libraries are held to it too.
    """

    def __init__(self, operation: Operation, case: Case, inputs: list[Tensor]):
        self.case = case
        exact = self._reference(operation, inputs, torch.float64, None)
        self.dy = torch.randn_like(exact[0]).to(case.dtype)
        self.exact = {p: self._reference(operation, inputs, torch.float64, p) for p in {0.0, case.dropout_p}}
        self.plain = {p: self._reference(operation, inputs, case.dtype, p) for p in {0.0, case.dropout_p}}

    def fault(self, instance: Instance) -> str | None:
        """None if the instance is right, else what is wrong with it."""
        checked = instance.gated or instance
        dropout_p = 0.0 if instance.gated else self.case.dropout_p
        y = checked.forward()
        gradients = torch.autograd.grad(y, checked.leaves, checked.cotangent(self.dy))
        found = [checked.restore(-1, y.detach())]
        for index, gradient in enumerate(gradients):
            restored = checked.restore(index, gradient)
            found += restored if isinstance(restored, list | tuple) else [restored]
        for index, (mine, cheap, true) in enumerate(
            zip(found, self.plain[dropout_p], self.exact[dropout_p], strict=True)
        ):
            allowed = (2.0 if index == 0 else 3.0) * relative_error(cheap, true) + torch.finfo(self.case.dtype).eps / 4
            error = relative_error(mine.reshape(true.shape), true)
            if not error <= allowed:
                what = "output" if index == 0 else f"gradient {index}"
                return f"wrong {what}: error {error:.2e}, allowed {allowed:.2e}"
        return None

    def _reference(
        self, operation: Operation, inputs: list[Tensor], dtype: torch.dtype, dropout_p: float | None
    ) -> list[Tensor]:
        """[output, gradients …]; the output alone where `dropout_p` is None."""
        wide = [x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x for x in inputs]
        case = replace(self.case, dropout_p=dropout_p or 0.0)
        if dropout_p is None:
            with torch.no_grad():
                return [operation.reference(case, wide)]
        y = operation.reference(case, wide)
        leaves = [x for x in wide if x.is_floating_point()]
        return [y.detach(), *torch.autograd.grad(y, leaves, self.dy.to(y.dtype))]
