"""Hidden spans of fixed blocks, the same for every model, and where in them each target lies.

Unlike in pretraining, everything hidden is ``[MASK]``: of the tenth of spans that pretraining leaves as they are, a model
could read the answer, and so could the boundary states. The cross table takes masks as in training, and tells apart what
stood there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pretrain.data.blocks import Blocks
from pretrain.masking.masker import MaskConfig, Masker
from pretrain.metrics import VALIDATION_EPOCH
from spanbert.model.batch import MaskedBatch
from spanbert.tokenizer.wordpiece import Tokenizer

#: Words: lengths 1 … 10, the longest that the paper's spans have.
LONGEST = 10
#: Tokens from the nearest visible one: 1 … 5, and 6 or more.
FARTHEST = 6
PLACES = ("only", "first", "middle", "last")
#: Blocks of a forward pass, as many as in a step of pretraining.
BATCH = 8
#: 1 − p of a geometric distribution that close to 1 is no longer seen: span lengths are uniform.
UNIFORM_P = 1e-9


def choose_blocks(blocks: Blocks, count: int) -> np.ndarray:
    """``count`` blocks, or all; of a larger count the first ones are those of a smaller one."""
    shuffle = np.random.Generator(np.random.Philox(key=[0, VALIDATION_EPOCH]))
    return shuffle.permutation(len(blocks))[:count]


def hidden(
    blocks: Blocks,
    indices: np.ndarray,
    tokenizer: Tokenizer,
    mask: MaskConfig,
    unigram_counts: np.ndarray | None = None,
) -> list[MaskedBatch[np.ndarray]]:
    """These blocks under fixed masks of a scheme, with [MASK] for every target.

    unigram_counts: corrupt as in training instead, with random tokens of these counts for one in ten.
    """
    masker = Masker.from_tokenizer(mask, tokenizer, seed=0, unigram_counts=unigram_counts)
    parts = []
    for begin in range(0, len(indices), BATCH):
        some = indices[begin : begin + BATCH]
        packed, _ = blocks.packed(some)
        masked = masker.mask(packed, epoch=VALIDATION_EPOCH, indices=some)
        if unigram_counts is None:
            masked.packed.input_ids_T[masked.targets.positions_M] = tokenizer.mask_id
        parts.append(masked)
    return parts


class Where(NamedTuple):
    """Of each of M targets."""

    words_M: np.ndarray
    """Words of its span."""
    place_M: np.ndarray
    """Index into PLACES."""
    distance_M: np.ndarray
    """Tokens to the nearest visible one, 1 … FARTHEST."""


def where(masked: MaskedBatch[np.ndarray], starts_word_V: np.ndarray) -> Where:
    """A span is a maximal run of hidden tokens; its first token counts as a word whatever it is."""
    targets = masked.targets
    span_M, offset_M = targets.span_M, targets.offset_M
    count = len(targets.left_S)
    size_M = np.bincount(span_M, minlength=count)[span_M]
    words_S = np.bincount(span_M[(offset_M == 0) | starts_word_V[targets.ids_M]], minlength=count)
    to_end_M = size_M - 1 - offset_M
    place_M = np.select([size_M == 1, offset_M == 0, to_end_M == 0], [0, 1, 3], 2)
    return Where(words_S[span_M], place_M, np.minimum(np.minimum(offset_M, to_end_M) + 1, FARTHEST))


def means(loss_M: np.ndarray, right_M: np.ndarray, bin_M: np.ndarray, bins: range) -> dict[str, Any]:
    """Loss (nats), accuracy and number of targets in each bin; None where a bin is empty. Targets in no bin are left out."""
    inside = (bin_M >= bins.start) & (bin_M < bins.stop)
    at = bin_M[inside] - bins.start
    counts = np.bincount(at, minlength=len(bins))
    sums = [np.bincount(at, weights=values[inside], minlength=len(bins)) for values in (loss_M, right_M)]
    loss, accuracy = ([float(s / n) if n else None for s, n in zip(sum_, counts)] for sum_ in sums)
    return {"loss": loss, "accuracy": accuracy, "targets": counts.tolist()}


def whole(loss_M: np.ndarray, right_M: np.ndarray) -> dict[str, Any]:
    """The same over all targets."""
    if not len(loss_M):
        return {"loss": None, "accuracy": None, "targets": 0}
    return {"loss": float(loss_M.mean()), "accuracy": float(right_M.mean()), "targets": len(loss_M)}
