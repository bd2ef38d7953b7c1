"""Between padded (B, L) batches, as the outside world has them, and packed (T,) tokens, as the encoder has them.

Pure functions of tensors; nothing here has parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cumulative(lengths_B: Tensor) -> Tensor:
    """Sequence lengths (B,) → cu_seqlens (B + 1,) int32."""
    cu_seqlens = torch.zeros(lengths_B.numel() + 1, dtype=torch.int32, device=lengths_B.device)
    cu_seqlens[1:] = lengths_B.cumsum(0)
    return cu_seqlens


def pack(padded: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, …) with ``lengths_B`` real entries at the front of each row → ((T, …), cu_seqlens)."""
    real_BL = torch.arange(padded.shape[1], device=padded.device) < lengths_B[:, None]
    return padded[real_BL], cumulative(lengths_B)


def unpack(flat: Tensor, cu_seqlens: Tensor, length: int, fill: float = 0) -> Tensor:
    """(T, …) → (B, length, …), the rest of each row set to ``fill``. ``length`` must hold the longest sequence."""
    lengths_B = cu_seqlens.diff()
    padded = flat.new_full((lengths_B.numel(), length, *flat.shape[1:]), fill)
    real_BL = torch.arange(length, device=flat.device) < lengths_B[:, None]
    padded[real_BL] = flat
    return padded


def position_ids(cu_seqlens: Tensor, total: int) -> Tensor:
    """Place of every packed token within its sequence: (T,) int64, without looking at the lengths on the host."""
    index_T = torch.arange(total, device=cu_seqlens.device)
    sequence_T = torch.searchsorted(cu_seqlens[1:-1].to(torch.int64).contiguous(), index_T, right=True)
    return index_T - cu_seqlens[sequence_T]
