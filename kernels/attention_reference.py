"""Variable-length attention in plain PyTorch: the reference that the kernels are tested against, and the CPU's version.

    S = scale · Q Kᵀ        P = softmax(S)        P' = keep ∘ P / keep share        O = P' V

within each sequence of a packed batch. The backward pass is written out, once, in the form in which the kernels do it:

    δ_i  = Σ_d O_id dO_id                      (= Σ_j P_ij dP_ij, the softmax's own correction, without a pass over j)
    dV   = P'ᵀ dO
    dP   = keep ∘ (dO Vᵀ) / keep share
    dS   = P ∘ (dP − δ)
    dQ   = scale · dS K          dK = scale · dSᵀ Q
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from kernels.dropout import keep_mask, keep_scale_of


def attention_reference(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """The definition, differentiable by autograd: (T, H, D) → (T, H, D). Rows of no sequence give exact zeros."""
    outputs = []
    end = 0
    for start, end in sequences(cu_seqlens):
        q_HLD, k_HLD, v_HLD = (x[start:end].transpose(0, 1) for x in (q_THD, k_THD, v_THD))
        # fp32 statistics whatever the dtype: large models have logits near −3000
        p_HLL = _scores(q_HLD, k_HLD, scale).softmax(-1)
        if dropout_p > 0.0:
            p_HLL = p_HLL * _keep(p_HLL, start, dropout_p, seed)
        outputs.append((p_HLL.to(v_HLD.dtype) @ v_HLD).transpose(0, 1))
    outputs.append(q_THD[end:] * 0)
    return torch.cat(outputs)


def attention_forward_reference(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, cu_seqlens: Tensor, scale: float, dropout_p: float, seed: int
) -> tuple[Tensor, Tensor]:
    """(output (T, H, D), log2-sum-exp2 of each row's scores (H, T) fp32 or wider): what the forward kernel returns."""
    out_THD = attention_reference(q_THD, k_THD, v_THD, cu_seqlens, scale, dropout_p, seed)
    lse_HT = torch.zeros(q_THD.shape[1], q_THD.shape[0], dtype=_wide(q_THD.dtype), device=q_THD.device)
    for start, end in sequences(cu_seqlens):
        s_HLL = _scores(q_THD[start:end].transpose(0, 1), k_THD[start:end].transpose(0, 1), scale)
        lse_HT[:, start:end] = s_HLL.logsumexp(-1) * LOG2_E
    return out_THD.contiguous(), lse_HT


def attention_backward_reference(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    dropout_p: float,
    seed: int,
) -> Tensor:
    """The three gradients stacked, (T, 3, H, D), by the formulas above."""
    dqkv_T3HD = q_THD.new_zeros(q_THD.shape[0], 3, *q_THD.shape[1:])
    for start, end in sequences(cu_seqlens):
        q, k, v, out, dout = (x[start:end].transpose(0, 1) for x in (q_THD, k_THD, v_THD, out_THD, dout_THD))
        p_HLL = torch.exp2(_scores(q, k, scale) * LOG2_E - lse_HT[:, start:end, None])
        dp_HLL = (dout @ v.transpose(-1, -2)).to(p_HLL.dtype)
        dropped_HLL = p_HLL
        if dropout_p > 0.0:
            keep_HLL = _keep(p_HLL, start, dropout_p, seed)
            dropped_HLL, dp_HLL = p_HLL * keep_HLL, dp_HLL * keep_HLL
        delta_HL = (out.to(p_HLL.dtype) * dout.to(p_HLL.dtype)).sum(-1, keepdim=True)
        ds_HLL = (p_HLL * (dp_HLL - delta_HL)).to(q.dtype)
        dq_HLD, dk_HLD = scale * (ds_HLL @ k), scale * (ds_HLL.transpose(-1, -2) @ q)
        dv_HLD = dropped_HLL.transpose(-1, -2).to(q.dtype) @ dout
        dqkv_T3HD[start:end] = torch.stack([dq_HLD, dk_HLD, dv_HLD]).permute(2, 0, 1, 3)
    return dqkv_T3HD


LOG2_E = 1.4426950408889634


def sequences(cu_seqlens: Tensor) -> Iterator[tuple[int, int]]:
    """(start, end) of every sequence that is not empty."""
    bounds = cu_seqlens.tolist()
    return ((start, end) for start, end in pairwise(bounds) if end > start)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _scores(q_HLD: Tensor, k_HLD: Tensor, scale: float) -> Tensor:
    return ((q_HLD * scale) @ k_HLD.transpose(-1, -2)).to(_wide(q_HLD.dtype))


def _keep(p_HLL: Tensor, start: int, dropout_p: float, seed: int) -> Tensor:
    """keep ∘ 1/(keep share) of one sequence: row = packed index of the query, column = the key's place in its sequence."""
    heads, length, _ = p_HLL.shape
    stream = torch.arange(heads, device=p_HLL.device)[:, None]
    row = torch.arange(start, start + length, device=p_HLL.device)[None, :]
    return keep_mask(seed, stream, row, length, dropout_p).to(p_HLL.dtype) * keep_scale_of(dropout_p)
