"""How often each token occurs in a prepared corpus; needs neither PyTorch nor Arrow."""

from __future__ import annotations

import tokenize
from pathlib import Path

import numpy as np

from spanbert.errors import UserError, first_line

MOST_TOKENS = 1 << 48  # of a corpus


def read_unigram_counts(folder: Path, vocab_size: int) -> np.ndarray:
    """(V,) int64: how often each token of the vocabulary occurs in a prepared corpus. Raises UserError when it is damaged."""
    path = folder / "unigram.npy"
    try:
        counts_V = np.load(path)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): copy it again or prepare the corpus again") from None
    if (
        counts_V.shape != (vocab_size,)
        or counts_V.dtype.kind not in "iu"
        or ((counts_V < 0) | (counts_V > MOST_TOKENS)).any()
    ):
        raise UserError(
            f"{path} is damaged or of another corpus: expected a count of each of {vocab_size:,} tokens; copy it again "
            "or prepare the corpus again"
        )
    return counts_V.astype(np.int64)
