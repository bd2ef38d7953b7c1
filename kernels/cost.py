"""Cost models: floating-point operations and bytes of each kernel as functions of the shape.

FLOPs are those the *mathematics* needs (a multiply-add is two), so that a rate is comparable between implementations:
attention's backward pass counts 2.5 times its forward, although two kernels that recompute S and dP each do 3.5 times.
Bytes are the fewest that must cross device memory: every input read once, every output written once. Time cannot be
less than either over the machine's rate; `Machine.seconds` says which binds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """FLOPs on the matrix units, and bytes of device memory traffic."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Machine:
    """Measured ceilings of a GPU: dense half-precision products (FLOP/s) and a device-to-device copy (byte/s)."""

    name: str
    flops: float
    bandwidth: float

    def seconds(self, cost: Cost) -> float:
        """The roofline's lower bound on the time."""
        return max(cost.flops / self.flops, cost.bytes / self.bandwidth)


#: What large bf16 products and large copies were measured to reach on an H100 SXM.
H100 = Machine("H100 SXM", 790e12, 3.0e12)


def attention_forward_cost(lengths: Sequence[int], heads: int, head_dim: int, element: int = 2) -> Cost:
    """Two products (Q Kᵀ, P V) per sequence; reads Q, K, V, writes O and one fp32 statistic per row and head."""
    total = sum(lengths)
    pairs = sum(length * length for length in lengths)
    return Cost(4.0 * pairs * heads * head_dim, total * heads * (4 * head_dim * element + 4))


def attention_backward_cost(lengths: Sequence[int], heads: int, head_dim: int, element: int = 2) -> Cost:
    """Five products (S, dP, dV, dS K, dSᵀ Q); reads Q, K, V, O, dO and the statistic, writes dQ, dK, dV, and δ."""
    total = sum(lengths)
    pairs = sum(length * length for length in lengths)
    return Cost(10.0 * pairs * heads * head_dim, total * heads * (8 * head_dim * element + 8))


def attention_executed_flops(
    lengths: Sequence[int], heads: int, head_dim: int, tile: int, blocks: tuple[int, int, int]
) -> tuple[float, float]:
    """(forward, backward) FLOPs that our kernels execute, padding of tiles and recomputation included.

    `blocks`: the streamed block of the forward, dQ and dK/dV kernels (kernels/attention_config.py).
    """

    def cells(block: int) -> float:
        return float(sum(-(-length // tile) * tile * (-(-length // block) * block) for length in lengths))

    per_product = 2.0 * heads * head_dim
    forward, dq, dkdv = (cells(block) for block in blocks)
    return 2 * per_product * forward, per_product * (3 * dq + 4 * dkdv)


def layer_norm_forward_cost(rows: int, columns: int, fused: bool, element: int = 2) -> Cost:
    """Reads x (and the residual), writes y; two fp32 statistics per row."""
    return Cost(0.0, rows * columns * element * (3 if fused else 2) + 8 * rows)


def layer_norm_backward_cost(rows: int, columns: int, fused: bool, dropout: bool = True, element: int = 2) -> Cost:
    """Reads dy, x (and the residual) and the statistics, writes dx (and, with dropout, another dresidual)."""
    moves = (4 + dropout) if fused else 3
    return Cost(0.0, rows * columns * element * moves + 8 * rows)


def bias_gelu_forward_cost(rows: int, columns: int, element: int = 2) -> Cost:
    """Reads x, writes y."""
    return Cost(0.0, 2 * rows * columns * element)


def bias_gelu_backward_cost(rows: int, columns: int, element: int = 2) -> Cost:
    """Reads dy and x, writes dx."""
    return Cost(0.0, 3 * rows * columns * element)


def linear_cross_entropy_cost(
    targets: int, hidden: int, vocabulary: int, gradient: bool = True, element: int = 2
) -> Cost:
    """One product forward, two for the gradients. Logits are written by the product, read twice and written once by the
    softmax, and read twice as an operand; they are chunked, and a chunk that fits the cache moves fewer bytes."""
    logits = targets * vocabulary * element
    operands = (targets + vocabulary) * hidden * element
    products = 3 if gradient else 1
    return Cost(
        2.0 * products * targets * hidden * vocabulary, logits * (6 if gradient else 2) + 2 * operands * products
    )
