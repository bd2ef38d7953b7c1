"""Exercise: attention of one query over keys that come in blocks: the online softmax.

The project's own: _accumulate in kernels/attention_forward_kernel.py; docs/kernels.md §2 derives it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def online_attention(q_D: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, float]:
    """(output (D,), log-sum-exp of the scores) of a query over keys and values that can be seen only once.

        s_j = q · k_j / √D        output = Σ_j softmax(s)_j v_j        log-sum-exp = log Σ_j exp(s_j)

    q_D: (D,). blocks: pairs (keys (n, D), values (n, D)), n differing; there is at least one key. Everything is float64.

    Three things may be kept from block to block: the largest score so far, the sum of exponentials relative to it, and
    the output's sum relative to it. Not the scores. Scores can be in the thousands, of either sign, and nothing may
    overflow or be lost.

    Hints: what must happen to both sums when the maximum rises? Which number is smaller than any score, so that the first
    block needs no case of its own?
    """
    raise NotImplementedError
