"""Dropout masks that are a function of where they are used, in plain PyTorch: the reference that the kernels follow.

A mask drawn from a stream cannot be drawn again without storing either the stream's state or the mask. Here a decision
depends only on (seed, stream, row, column): the forward and the backward kernel, whatever their block sizes, and this
file compute the same bits.

    randomness   Philox4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): counter
                 (row, column // 32, stream, call), key = the two halves of the seed. Seven rounds pass BigCrush.
    decision     a 12-bit uniform number u per element, kept when u >= round(4096 p). So p is met to 1/8192, and the
                 kept values are scaled by the inverse of the *quantised* keep share: the expectation is exact.
    32 at once   bit j of the twelve 32-bit words of three Philox calls are the twelve bits of column 32 w + j, and the
                 comparison is done on all 32 columns together with one logical operation per bit ("bit slicing"):
                 from the lowest bit up, ge = u_i & ge where the threshold's bit is 1, u_i | ge where it is 0.

So a keep decision costs 3/32 of a Philox call and 12/32 of a logical operation, and 32 of them are one register.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 7
BITS = 12
CALLS = BITS // 4
#: Added to the call number by element-wise kernels, so that they and attention never share a counter.
ELEMENTWISE_CALL = 16

_MASK32 = 0xFFFFFFFF


def threshold_of(p: float) -> int:
    """The 12-bit threshold of a dropout probability: an element is dropped when its number lies below it."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout probability must lie in [0, 1), got {p}")
    return min(round(p * (1 << BITS)), (1 << BITS) - 1)


def keep_scale_of(p: float) -> float:
    """1 / (share of elements kept): what the kept elements are multiplied by."""
    return (1 << BITS) / ((1 << BITS) - threshold_of(p))


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-7 on int64 tensors that hold 32-bit values: four words from four counter words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        low0, high0 = _multiply(c0, 0xD2511F53)
        low1, high1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def _multiply(x: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """(low, high) 32 bits of x · constant. In halves of 16 bits: the full product does not fit a signed int64."""
    low = (x & 0xFFFF) * constant
    high = (x >> 16) * constant + (low >> 16)
    return ((high & 0xFFFF) << 16) | (low & 0xFFFF), high >> 16


def keep_words(seed: int, stream: Tensor, row: Tensor, word: Tensor, p: float, first_call: int = 0) -> Tensor:
    """32 keep decisions per element of the broadcast arguments (int64): bit j decides column 32 · word + j."""
    stream, row, word = torch.broadcast_tensors(stream, row, word)
    key = (seed & _MASK32, (seed >> 32) & _MASK32)
    threshold = threshold_of(p)
    keep = torch.full_like(row, _MASK32)
    for call in range(CALLS):
        drawn = philox((row, word, stream, torch.full_like(row, first_call + call)), key)
        for index, bits in enumerate(drawn):
            keep = (bits & keep) if (threshold >> (4 * call + index)) & 1 else (bits | keep)
    return keep


def keep_mask(seed: int, stream: Tensor, row: Tensor, columns: int, p: float, first_call: int = 0) -> Tensor:
    """Boolean mask (*broadcast(stream, row), columns): True where an element is kept."""
    words = torch.arange((columns + 31) // 32, device=row.device)
    keep = keep_words(seed, stream[..., None], row[..., None], words, p, first_call)
    bits = (keep[..., None] >> torch.arange(32, device=row.device)) & 1
    return bits.flatten(-2)[..., :columns].bool()


def seed_tensor(seed: Tensor | int, device: torch.device) -> Tensor:
    """A seed as the ops take it: one int64 on the device.

    Pass a tensor when the call is captured in a CUDA graph or compiled: its value is then read at run time, whereas a
    number is baked in (a replayed graph would repeat one mask) or costs a recompilation.
    """
    if isinstance(seed, Tensor):
        if seed.numel() != 1:
            raise ValueError(f"seed must hold one number, got shape {tuple(seed.shape)}")
        return seed.to(device=device, dtype=torch.int64)
    return torch.full((), seed, dtype=torch.int64, device=device)
