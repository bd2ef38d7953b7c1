"""Dropout whose masks are addressed: a function of a seed that names the step, the micro-batch and the layer."""

from __future__ import annotations


def dropout_key(seed: int, step: int, micro_batch: int) -> int:
    """Seed of one micro-batch's dropout: a 63-bit mix of its address (the multipliers are odd and large: SplitMix64's)."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + micro_batch * 0x94D049BB133111EB) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    return (value ^ (value >> 27)) >> 1
