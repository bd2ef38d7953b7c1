"""The words of a packed batch, and choosing single words or tokens among them to mask."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pretrain.masking.counter_rng import draw, stream
from spanbert.errors import UserError

# purpose of the stream that orders words; those that place spans are numbered in span_sampler.py
UNIT_ORDER = 8


class Words(NamedTuple):
    """The words of a packed batch of T tokens: W words, C of them maskable. Specials are words of one token."""

    first: np.ndarray  # (W + 1,) int32, packed index of each word's first token, then T
    of_token: np.ndarray  # (T + 1,) int32, word of each token, then W
    next_unmaskable: np.ndarray  # (W,) int32, the first word from each one on that may not be masked
    maskable: np.ndarray  # (C,) int32, words that may be masked
    maskable_cu: np.ndarray  # (B + 1,) int64, where each sequence's entries of `maskable` begin
    tokens: np.ndarray  # (B,) int64, maskable tokens of each sequence


class Units(NamedTuple):
    """What is masked, ascending: U runs of tokens, each decided on as one."""

    first: np.ndarray  # (U,) int64, packed index of the first token
    size: np.ndarray  # (U,) int64, tokens
    sequence: np.ndarray  # (U,) int64, 0 … B - 1


def flat_spans(cu_seqlens: np.ndarray, spans: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each sequence's token spans, (n, 2) counted without [CLS], as packed tokens (N, 2), and the sequence of each (N,).

    Raises UserError for a span that is empty or outside its sequence.
    """
    sequence = np.repeat(np.arange(len(spans)), [len(pairs) for pairs in spans])
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *spans])
    tokens = np.diff(cu_seqlens)[sequence] - 2
    is_wrong = (pairs[:, 0] < 0) | (pairs[:, 0] >= pairs[:, 1]) | (pairs[:, 1] > tokens)
    if is_wrong.any():
        wrong = int(is_wrong.argmax())
        raise UserError(
            f"span {pairs[wrong].tolist()} is empty or outside its sequence of {tokens[wrong]} tokens: "
            "prepare the corpus again with the sidecar that belongs to it."
        )
    return pairs + cu_seqlens[:-1][sequence, None] + 1, sequence


def inside_spans(cu_seqlens: np.ndarray, spans: Sequence[np.ndarray]) -> np.ndarray:
    """(T,) bool: whether a token lies in a span and is not its first, and so goes on with an annotated word."""
    pairs, _ = flat_spans(cu_seqlens, spans)
    total = int(cu_seqlens[-1])
    opened = np.bincount(pairs[:, 0] + 1, minlength=total + 1)
    return np.cumsum(opened - np.bincount(pairs[:, 1], minlength=total + 1))[:total] > 0


def find_words(
    ids_T: np.ndarray,
    cu_seqlens: np.ndarray,
    starts_word_V: np.ndarray,
    special_V: np.ndarray,
    goes_on_T: np.ndarray | None = None,
) -> Words:
    """Word boundaries from ids, and where given from annotated words: tokens that go on with one (`inside_spans`).

    An annotated word has all of the tokenizer's words that it touches; a special token in it ends it. The first and last
    token of each sequence are unmaskable whatever they are.
    """
    total, edges = len(ids_T), cu_seqlens.astype(np.int64)
    special_T = special_V[ids_T]
    special_T[edges[:-1]] = True
    special_T[edges[1:] - 1] = True
    special = np.flatnonzero(special_T)
    starts_T = starts_word_V[ids_T]
    if goes_on_T is not None:
        starts_T &= ~goes_on_T
    starts_T |= special_T
    starts_T[1:] |= special_T[:-1]  # a block may begin in the middle of a word: the rest of it is a word here
    of_token = np.empty(total + 1, np.int32)
    np.cumsum(starts_T, dtype=np.int32, out=of_token[:-1])
    of_token[:-1] -= 1
    first = np.append(np.flatnonzero(starts_T), total).astype(np.int32)
    of_token[-1] = len(first) - 1
    special_word = of_token[special]
    next_unmaskable = np.repeat(special_word, np.diff(special_word, prepend=-1))
    is_maskable = np.ones(len(first) - 1, bool)
    is_maskable[special_word] = False
    specials_cu = np.searchsorted(special, edges)
    return Words(
        first=first,
        of_token=of_token,
        next_unmaskable=next_unmaskable,
        maskable=np.flatnonzero(is_maskable).astype(np.int32),
        maskable_cu=of_token[edges] - specials_cu,
        tokens=np.diff(edges) - np.diff(specials_cu),
    )


def either(takes_first_B: np.ndarray, first: Units, second: Units) -> Units:
    """The first's units of the sequences that take those, the second's of the others, ascending."""
    kept_first, kept_second = takes_first_B[first.sequence], ~takes_first_B[second.sequence]
    both = [np.concatenate([a[kept_first], b[kept_second]]) for a, b in zip(first, second, strict=True)]
    order = np.argsort(both[0])
    return Units(*(values[order] for values in both))


def choose_words(words: Words, budget_B: np.ndarray, keys_B: np.ndarray, cut_mid_word: bool) -> Units:
    """Whole words in a uniformly random order, up to the first that the budget cannot pay (`cut_mid_word`: cut).

    A sequence's first word is masked even if it alone exceeds the budget. Masked words may be neighbours, as in BERT's
    whole-word masking. Over `Words` in which every token is a word, this is subword masking.
    """
    if not len(words.maskable):
        return Units(*(np.zeros(0, np.int64) for _ in range(3)))
    count_B = np.diff(words.maskable_cu)
    # enough words with near certainty; a sequence for which they are not is done again with all of its words
    share_B = (1.5 * budget_B / np.maximum(words.tokens, 1) * count_B + 8) / np.maximum(count_B, 1)
    while True:
        word_BN, present_BN = _lead_of_random_order(words, keys_B, share_B)
        size_BN = np.where(present_BN, words.first[word_BN + 1] - words.first[word_BN], 0)
        after_BN = budget_B[:, None] - np.cumsum(size_BN, axis=1)
        lacks_B = (after_BN[:, -1] > 0) & (share_B < 1)
        if not lacks_B.any():
            break
        share_B = np.where(lacks_B, 1.0, share_B)
    left_BN = after_BN + size_BN
    if cut_mid_word:
        keep_BN = present_BN & (left_BN > 0)
        size_BN = np.minimum(size_BN, left_BN)
    else:
        keep_BN = present_BN & (after_BN >= 0)
        keep_BN[:, 0] = present_BN[:, 0]
    row, column = np.nonzero(keep_BN)
    word = word_BN[row, column]
    order = np.argsort(word)
    row, column = row[order], column[order]
    return Units(words.first[word[order]].astype(np.int64), size_BN[row, column].astype(np.int64), row)


def _lead_of_random_order(words: Words, keys_B: np.ndarray, share_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first maskable words of each sequence in a random order: word (B, N), and whether there is one (B, N).

    The order is that of random numbers of the words; only the numbers below `share_B` of their range
    are sorted. These lead the order, so the share decides how many words come out and never which.
    """
    count_B = np.diff(words.maskable_cu)
    sequence_C = np.repeat(np.arange(len(count_B)), count_B)
    place_C = np.arange(len(sequence_C)) - words.maskable_cu[sequence_C]
    bits_C = draw(stream(keys_B, UNIT_ORDER)[sequence_C], place_C)
    threshold_B = np.ceil(np.minimum(share_B, 1.0) * 2.0**32).astype(np.int64)
    kept = np.flatnonzero((bits_C >> np.uint64(32)).view(np.int64) < threshold_B[sequence_C])
    row = sequence_C[kept]
    kept_B = np.bincount(row, minlength=len(count_B))
    column = np.arange(len(kept)) - (np.cumsum(kept_B) - kept_B)[row]
    # 40 random bits, then the place: one sort of numbers orders the words, breaks ties and carries the answer
    place_mask, none = np.uint64(2**24 - 1), np.uint64(2**64 - 1)
    lead_BN = np.full((len(count_B), max(1, kept_B.max(initial=0))), none, np.uint64)
    lead_BN[row, column] = (bits_C[kept] & ~place_mask) | place_C[kept].astype(np.uint64)
    lead_BN.sort(axis=1)
    present_BN = lead_BN != none
    candidate_BN = (lead_BN & place_mask).view(np.int64) + words.maskable_cu[:-1, None]
    return words.maskable[np.where(present_BN, candidate_BN, 0)], present_BN
