"""Bidirectional self-attention over packed sequences: one function, three bodies.

    softmax(q kᵀ / √D) v     within each sequence, never across two

``eager`` is the version to read and the definition that the others are tested against; ``sdpa`` hands each group of
equally long sequences to PyTorch's fused kernels; ``triton`` is the variable-length kernel of ``kernels/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert.model.backend import load_kernels
from spanbert.model.dropout import draws_bytes, drop, generator_of, keep_scale_of

#: Score matrices of about this many elements at a time stay in the cache on a CPU: measured, docs/decisions.md.
SCORES_AT_A_TIME = 1 << 20


def attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    backend: str = "eager",
    seed: Tensor | int = 0,
) -> Tensor:
    """Attention of packed tokens within their own sequences.

    Args:
        q_THD, k_THD, v_THD: (T, heads, head_dim), any floating dtype; views of one QKV projection are fine.
        cu_seqlens: (B + 1,) int32, sequence b holds tokens cu_seqlens[b] … cu_seqlens[b + 1] − 1.
        max_seqlen: at least the longest length.
        dropout_p: dropout on the attention probabilities; 0 outside training.
        backend: ``eager``, ``sdpa`` or ``triton``.
        seed: key of the dropout mask of ``triton``, and of ``eager`` on a CPU (``spanbert.model.dropout``); otherwise PyTorch's
            generator draws it.

    Returns:
        (T, heads, head_dim).

    Raises:
        ValueError: an empty batch; max_seqlen below a length, wherever lengths are read: not on a GPU by ``triton``, and
            not where max_seqlen is what all lengths would be.
    """
    _refuse_empty(q_THD, cu_seqlens)
    if backend == "triton":
        return load_kernels().attention_varlen(
            q_THD, k_THD, v_THD, cu_seqlens, max_seqlen, dropout_p=dropout_p, seed=seed
        )
    return _LOOP.body(q_THD, k_THD, v_THD, cu_seqlens, max_seqlen, dropout_p, backend, seed)


def attention_of_projection(
    qkv_T3HD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    backend: str = "eager",
    seed: Tensor | int = 0,
    plan: Any = None,
) -> Tensor:
    """``attention`` of one (T, 3, heads, head_dim) projection, as the encoder has it.

    The triton kernels write its gradient as one tensor, and take the batch's ``attention_plan`` from outside, once for
    all layers.
    """
    if backend == "triton":
        _refuse_empty(qkv_T3HD, cu_seqlens)
        kernels = load_kernels()
        return kernels.attention_varlen_qkv(qkv_T3HD, cu_seqlens, max_seqlen, dropout_p, seed, plan=plan)
    q_THD, k_THD, v_THD = qkv_T3HD.unbind(1)
    return attention(q_THD, k_THD, v_THD, cu_seqlens, max_seqlen, dropout_p, backend, seed)


def attention_plan(x_TH: Tensor, cu_seqlens: Tensor, head_dim: int, backend: str) -> Any:
    """What the triton kernels want to know of a batch, for all its layers: who computes which tile. Else None."""
    if backend != "triton":
        return None
    kind = x_TH.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_TH.dtype
    return load_kernels().attention_plan(cu_seqlens, x_TH.shape[0], head_dim, dtype)


def leave_loop_to_python() -> None:
    """Call before layers are compiled: the loop over lengths would be compiled again for every batch.

    Marking it where it is defined would import the compiler at every start, a second that only training can spare.
    """
    _LOOP.body = torch.compiler.disable(_by_length)


def _refuse_empty(x: Tensor, cu_seqlens: Tensor) -> None:
    if cu_seqlens.shape[0] < 2 or x.shape[0] == 0:
        raise ValueError("an empty batch: attention needs a sequence of at least one token")


def _by_length(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float,
    backend: str,
    seed: Tensor | int,
) -> Tensor:
    """Equally long sequences that are neighbours form a batch without padding."""
    bodies: dict[str, Callable[..., Tensor]] = {
        "eager": partial(_eager, generator=_byte_generator(q_THD, dropout_p, seed)),
        "sdpa": _sdpa,
    }
    body = bodies[backend]
    groups = list(_equal_length_groups(cu_seqlens, max_seqlen, q_THD.shape[0], q_THD.shape[1]))
    rows = [count * length for count, length in groups]
    outputs = []
    for (count, length), q, k, v in zip(groups, q_THD.split(rows), k_THD.split(rows), v_THD.split(rows), strict=True):
        q_BHLD, k_BHLD, v_BHLD = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        o_BHLD = body(q_BHLD, k_BHLD, v_BHLD, dropout_p)
        outputs.append(o_BHLD.transpose(1, 2).reshape(count * length, *q.shape[1:]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _Loop:
    """What ``attention`` calls: the loop as it is, or hidden from the compiler."""

    body = staticmethod(_by_length)


_LOOP = _Loop()


def _byte_generator(q_THD: Tensor, dropout_p: float, seed: Tensor | int) -> torch.Generator | None:
    return generator_of(seed) if dropout_p > 0 and draws_bytes(q_THD) else None


def _eager(
    q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, dropout_p: float, generator: torch.Generator | None
) -> Tensor:
    scores_BHLL = (q_BHLD * q_BHLD.shape[-1] ** -0.5) @ k_BHLD.transpose(-1, -2)
    # fp32 statistics whatever the dtype: large models have logits near −3000 (docs/decisions.md)
    probs_BHLL = scores_BHLL.softmax(-1, dtype=torch.float32)
    if generator is not None:  # the scale of what is kept goes to v, which is L times smaller
        probs_BHLL, v_BHLD = drop(probs_BHLL, dropout_p, generator), v_BHLD * keep_scale_of(dropout_p)
    elif dropout_p > 0:
        probs_BHLL = F.dropout(probs_BHLL, dropout_p)
    return probs_BHLL.to(v_BHLD.dtype) @ v_BHLD


def _sdpa(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, dropout_p: float) -> Tensor:
    return F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, dropout_p=dropout_p)


def _equal_length_groups(cu_seqlens: Tensor, max_seqlen: int, total: int, heads: int) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring sequences of one length, as (how many, length), in order, none with too many scores."""
    count = cu_seqlens.numel() - 1
    if (
        cu_seqlens.is_cuda and total == count * max_seqlen
    ):  # every sequence is full: known without waiting for the device
        lengths = [max_seqlen] * count
    else:
        lengths = cu_seqlens.diff().tolist()
        if max(lengths) > max_seqlen:
            raise ValueError(f"max_seqlen is {max_seqlen}, but the longest sequence has {max(lengths)} tokens")
    start = 0
    for index in range(1, count + 1):
        full = (index - start + 1) * heads * lengths[start] ** 2 > SCORES_AT_A_TIME
        if index == count or lengths[index] != lengths[start] or (full and not cu_seqlens.is_cuda):
            yield index - start, lengths[start]
            start = index
