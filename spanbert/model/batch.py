"""A packed batch: the real tokens of all sequences end to end, with no padding anywhere.

Every stage speaks of the same five facts under the same names, from the process that prepares a batch to the encoder.
A batch is made of numpy arrays on the way (they go through a pipe from a data worker) and of tensors for the model; PyTorch
is imported when there are tensors to make, for whoever only looks at masks has no need of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

A = TypeVar("A", np.ndarray, "Tensor")


class PackedBatch(NamedTuple, Generic[A]):
    """B sequences, T tokens in all; the arguments of ``Encoder.forward`` in their order."""

    input_ids_T: A  # int64
    cu_seqlens: A  # (B + 1,) int32: sequence b is the tokens cu_seqlens[b] … cu_seqlens[b + 1] − 1
    max_seqlen: int  # the longest length
    token_type_ids_T: A | None = None  # int64, 0 and 1 for the two texts of a pair; None: all 0
    position_ids_T: A | None = None  # int64; None: 0, 1, 2 … in each sequence

    @classmethod
    def of(cls, input_ids_T: np.ndarray, cu_seqlens: np.ndarray) -> PackedBatch[np.ndarray]:
        """Integers of any kind that already lie end to end, special tokens included; copied."""
        cu_seqlens = np.array(cu_seqlens, np.int32)
        return PackedBatch(np.array(input_ids_T, np.int64), cu_seqlens, int(np.diff(cu_seqlens).max(initial=0)))

    @property
    def tokens(self) -> int:
        return self.input_ids_T.shape[0]

    @property
    def sequences(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    def tensors(self: PackedBatch[np.ndarray], pin: bool = False) -> PackedBatch[Tensor]:
        """The same as tensors over the same memory, or (``pin``) in page-locked memory, from where a GPU fetches them."""
        return PackedBatch(*(as_tensor(part, pin) if isinstance(part, np.ndarray) else part for part in self))

    def to(self: PackedBatch[Tensor], device: torch.device) -> PackedBatch[Tensor]:
        """The same on ``device``; from page-locked memory without waiting."""
        parts = (part.to(device, non_blocking=True) if hasattr(part, "to") else part for part in self)
        return PackedBatch(*parts)


class PairBatch(NamedTuple, Generic[A]):
    """A packed batch of B sequences, in each of which two tokens are looked at."""

    packed: PackedBatch[A]
    at_B2: A  # int64, index into T

    @property
    def cu_seqlens(self) -> A:
        return self.packed.cu_seqlens

    def tensors(self: PairBatch[np.ndarray]) -> PairBatch[Tensor]:
        """The same as tensors over the same memory."""
        return PairBatch(self.packed.tensors(), as_tensor(self.at_B2))

    def to(self: PairBatch[Tensor], device: torch.device) -> PairBatch[Tensor]:
        """The same on ``device``."""
        return PairBatch(self.packed.to(device), self.at_B2.to(device, non_blocking=True))


class Targets(NamedTuple, Generic[A]):
    """Where the objectives look in a packed batch of T tokens: M masked tokens in S spans, K of them with SBO target."""

    positions_M: A  # int64, index into T, ascending
    ids_M: A  # int64, the original tokens
    left_S: A  # int64, index into T of the visible token before each span
    right_S: A  # int64, … and after it
    span_M: A  # int64, the span of each target
    offset_M: A  # int64, its place in the span, from 0
    sbo_K: A  # int64, which of the M targets have an SBO target

    def states(self: Targets[Tensor], with_sbo: bool) -> Tensor:
        """(M,) or (M + 2 S,) int64, index into T: the tokens whose last states the heads look at, in the heads' order."""
        import torch

        return torch.cat([self.positions_M, self.left_S, self.right_S]) if with_sbo else self.positions_M

    def tensors(self: Targets[np.ndarray], pin: bool = False) -> Targets[Tensor]:
        """The same as tensors over the same memory, or (``pin``) in page-locked memory."""
        return Targets(*(as_tensor(array, pin) for array in self))

    def to(self: Targets[Tensor], device: torch.device) -> Targets[Tensor]:
        return Targets(*(tensor.to(device, non_blocking=True) for tensor in self))


class MaskedBatch(NamedTuple, Generic[A]):
    """What one forward pass of pretraining takes: a corrupted packed batch and its targets."""

    packed: PackedBatch[A]
    targets: Targets[A]

    def tensors(self: MaskedBatch[np.ndarray], pin: bool = False) -> MaskedBatch[Tensor]:
        """The same as tensors over the same memory, or (``pin``) in page-locked memory."""
        return MaskedBatch(self.packed.tensors(pin), self.targets.tensors(pin))

    def to(self: MaskedBatch[Tensor], device: torch.device) -> MaskedBatch[Tensor]:
        return MaskedBatch(self.packed.to(device), self.targets.to(device))


def as_tensor(array: np.ndarray, pin: bool = False) -> Tensor:
    """A tensor over an array's memory, or a copy of it in page-locked memory."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pin else tensor


def pack_sequences(
    sequences: Iterable[Sequence[np.ndarray | Sequence[int]]], cls_id: int, sep_id: int
) -> PackedBatch[np.ndarray]:
    """The one place where special tokens are set: ``[CLS] a [SEP]``, or ``[CLS] a [SEP] b [SEP]`` with types 0 and 1.

    sequences: for each its one or two texts as token ids without specials. Types are None when no sequence is a pair.
    """
    texts_B = [tuple(texts) for texts in sequences]
    lengths_B = [sum(map(len, texts)) + len(texts) + 1 for texts in texts_B]
    cu_seqlens = np.zeros(len(texts_B) + 1, dtype=np.int32)
    np.cumsum(lengths_B, out=cu_seqlens[1:])
    has_pairs = any(len(texts) > 1 for texts in texts_B)
    input_ids_T = np.full(cu_seqlens[-1], sep_id, dtype=np.int64)
    token_type_ids_T = np.zeros(cu_seqlens[-1], dtype=np.int64) if has_pairs else None
    for begin, end, texts in zip(cu_seqlens.tolist(), cu_seqlens[1:].tolist(), texts_B, strict=False):
        input_ids_T[begin] = cls_id
        place = begin + 1
        for text in texts:
            input_ids_T[place : place + len(text)] = text
            place += len(text) + 1
        if len(texts) > 1 and token_type_ids_T is not None:
            token_type_ids_T[begin + len(texts[0]) + 2 : end] = 1
    return PackedBatch(input_ids_T, cu_seqlens, max(lengths_B, default=0), token_type_ids_T)
