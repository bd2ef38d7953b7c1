"""Span masking (§3.1): which tokens of a packed batch are hidden, and what stands in their place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pretrain.counter_rng import below, draw, sequence_keys, stream, unit
from spanbert.errors import UserError

# purposes of the random streams of one sequence
_LENGTH, _START, _ACTION, _REPLACEMENT, _KIND, _ORDER = range(6)
_ROUNDS_PER_BLOCK = 32
_PATIENCE = 16
_NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class MaskConfig:
    """How sequences are masked; the defaults are the paper's geometric spans (§3.1, §4.2)."""

    scheme: Literal["geometric", "whole_word", "subword", "entities", "noun_phrases"] = "geometric"
    """what is masked: spans of geometric length, single words, single tokens, or the spans of a tagger's sidecar"""
    mask_share: float = 0.15
    """share of a sequence's tokens that become targets"""
    geometric_p: float = 0.2
    """parameter of the geometric distribution of span lengths in words"""
    max_span_words: int = 10
    """longest span, in words: the geometric distribution is truncated here"""
    budget: Literal["whole_words", "reference"] = "whole_words"
    """end of the budget: shorten the last span to whole words, or cut it mid-word so that the share is met exactly"""
    replacement: Literal["unigram", "uniform"] = "unigram"
    """random tokens come from the corpus's token frequencies, or from the vocabulary with equal probability"""
    special_boundaries: bool = True
    """whether [CLS] and [SEP] may serve as boundary tokens of the span-boundary objective"""

    def __post_init__(self):
        if not 0.0 < self.mask_share < 1.0:
            raise UserError(f"mask share {self.mask_share}: expected a number between 0 and 1, such as 0.15.")
        if not 0.0 < self.geometric_p < 1.0:
            raise UserError(f"geometric p {self.geometric_p}: expected a number between 0 and 1, such as 0.2.")
        if self.max_span_words < 1:
            raise UserError(f"longest span {self.max_span_words} words: expected at least 1.")


class MaskedBatch(NamedTuple):
    """A corrupted packed batch and its targets. T tokens, B sequences, M targets, S spans, K targets with SBO."""

    input_ids: np.ndarray  # (T,) int64, corrupted
    cu_seqlens: np.ndarray  # (B + 1,) int32
    target_positions: np.ndarray  # (M,) int64 into T, ascending
    target_ids: np.ndarray  # (M,) int64, the original tokens
    span_left: np.ndarray  # (S,) int64 into T: the visible token before each span
    span_right: np.ndarray  # (S,) int64 into T: the visible token after each span
    target_span: np.ndarray  # (M,) int64 into S
    target_offset: np.ndarray  # (M,) int64, 0-based position of the target in its span
    sbo_targets: np.ndarray  # (K,) int64 into M: the targets that the SBO predicts


class _Words(NamedTuple):
    """The words of a packed batch: W words, C of them maskable."""

    first: np.ndarray  # (W + 1,) packed index of each word's first token, then T
    of_token: np.ndarray  # (T + 1,) word of each token, then W
    unmaskable_before: np.ndarray  # (W + 1,) how many of the words before this one may not be masked
    maskable: np.ndarray  # (C,) words that may be masked
    maskable_cu: np.ndarray  # (B + 1,) where each sequence's entries of `maskable` begin
    budget: np.ndarray  # (B,) tokens to spend


class Masker:
    """Masks packed batches; immutable after construction, so any number of threads and workers may share one.

    starts_word (V,) bool: whether a token id is a word's first piece. special_ids: ids that are never masked nor drawn.
    unigram_counts (V,): occurrences of each id in the training text.
    Raises UserError when no token has a count to draw random replacements from.
    """

    def __init__(
        self,
        config: MaskConfig,
        *,
        starts_word: np.ndarray,
        special_ids: np.ndarray,
        mask_id: int,
        unigram_counts: np.ndarray,
        seed: int,
        sbo_positions: int = 20,
    ):
        self.config, self.mask_id, self.seed, self.sbo_positions = config, mask_id, seed, sbo_positions
        self._starts_word = np.asarray(starts_word, bool)
        self._special = np.zeros(self._starts_word.size, bool)
        self._special[np.asarray(special_ids, np.int64)] = True
        lengths = np.arange(1, config.max_span_words + 1)
        shares = config.geometric_p * (1 - config.geometric_p) ** (lengths - 1)
        self._length_cdf = np.cumsum(shares) / shares.sum()
        self._length_cdf[-1] = 1.0
        counts = np.ones(self._starts_word.size, np.int64)
        if config.replacement == "unigram":
            counts = np.array(unigram_counts, np.int64)
            if counts.shape != self._starts_word.shape:
                raise UserError(
                    f"unigram counts for {counts.size} tokens, vocabulary of {self._starts_word.size}: "
                    "prepare the corpus with the tokenizer that you train with."
                )
        counts[self._special] = 0
        if counts.sum() <= 0:
            raise UserError("No token has a count in the unigram table: prepare the corpus again.")
        self._replacement_cumulative = np.cumsum(counts)

    def mask(
        self,
        flat_ids: np.ndarray,
        cu_seqlens: np.ndarray,
        *,
        epoch: int | np.ndarray,
        indices: np.ndarray,
        spans: Sequence[np.ndarray] | None = None,
    ) -> MaskedBatch:
        """flat_ids (T,) ints, cu_seqlens (B + 1,), epoch: a number or (B,); indices (B,)
        sequence numbers; spans: per sequence, (n, 2) token
        (start, end) pairs counted without [CLS], for the schemes `entities` and `noun_phrases`."""
        cu_seqlens = np.asarray(cu_seqlens).astype(np.int32)
        keys = sequence_keys(self.seed, epoch, np.asarray(indices))
        words = self._find_words(flat_ids, cu_seqlens)
        if self.config.scheme == "subword":
            first, size, sequence = self._choose_units(words, keys, cu_seqlens, by_token=True)
        elif self.config.scheme == "whole_word":
            first, size, sequence = self._choose_units(words, keys, cu_seqlens, by_token=False)
        else:
            first, size, sequence = self._choose_spans(words, keys)
        order = np.argsort(first)
        return self._corrupt(flat_ids, cu_seqlens, keys, first[order], size[order], sequence[order])

    def _find_words(self, flat_ids: np.ndarray, cu_seqlens: np.ndarray) -> _Words:
        total = len(flat_ids)
        begins, ends = cu_seqlens[:-1], cu_seqlens[1:]
        special_T = self._special[flat_ids]
        special_T[begins] = True
        special_T[ends - 1] = True
        starts_T = self._starts_word[flat_ids] | special_T
        starts_T[1:] |= special_T[:-1]  # a block may begin in the middle of a word: what is left of it is a word
        of_token = np.empty(total + 1, np.int32)
        np.cumsum(starts_T, dtype=np.int32, out=of_token[:-1])
        of_token[:-1] -= 1
        first = np.append(np.flatnonzero(starts_T), total).astype(np.int32)
        of_token[-1] = len(first) - 1
        unmaskable = special_T[first[:-1]]
        unmaskable_before = np.zeros(len(first), np.int32)
        np.cumsum(unmaskable, dtype=np.int32, out=unmaskable_before[1:])
        word_cu = of_token[cu_seqlens]
        maskable_cu = word_cu - unmaskable_before[word_cu]
        # a special is a word of one token, so the maskable tokens of a sequence are its tokens less its special words
        tokens = np.diff(cu_seqlens) - np.diff(unmaskable_before[word_cu])
        budget = np.ceil(self.config.mask_share * tokens).astype(np.int32)
        return _Words(first, of_token, unmaskable_before, np.flatnonzero(~unmaskable).astype(np.int32), maskable_cu, budget)

    def _choose_spans(self, words: _Words, keys: np.ndarray):
        reference = self.config.budget == "reference"
        log: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        live = np.flatnonzero(words.budget > 0)
        left = words.budget[live]
        placed = np.zeros(live.size, np.int32)
        failed = np.zeros(live.size, np.int32)
        start_keys, length_keys = stream(keys[live], _START), stream(keys[live], _LENGTH)
        offset, count = words.maskable_cu[:-1][live], np.diff(words.maskable_cu)[live]
        taken_begin = np.full((0, live.size), _NEVER, np.int32)
        taken_end = np.full((0, live.size), -1, np.int32)
        lengths_KB = np.zeros((0, live.size), np.int32)
        last_word = len(words.first) - 1
        last_token = len(words.of_token) - 1
        rounds = 0
        while live.size:
            row = rounds % _ROUNDS_PER_BLOCK
            if row == 0:
                counters = np.arange(rounds, rounds + _ROUNDS_PER_BLOCK)[:, None]
                begins_RB = words.maskable[offset + below(draw(start_keys, counters), count)]
            most = int(placed.max()) + 1
            if most > len(lengths_KB):
                counters = np.arange(len(lengths_KB), len(lengths_KB) + _ROUNDS_PER_BLOCK)[:, None]
                lengths_KB = np.concatenate([lengths_KB, self.draw_lengths(draw(length_keys, counters))])
                grow = ((0, _ROUNDS_PER_BLOCK), (0, 0))
                taken_begin = np.pad(taken_begin, grow, constant_values=_NEVER)
                taken_end = np.pad(taken_end, grow, constant_values=-1)
            column = np.arange(live.size)
            wanted = lengths_KB[placed, column] - failed // _PATIENCE
            begin = begins_RB[row]
            first = words.first[begin]
            limit = first + left
            if reference:
                fits = words.of_token[np.minimum(limit, last_token) - 1] + 1 - begin
            else:
                fits = words.of_token[np.minimum(limit, last_token)] - begin
                np.maximum(fits, placed == 0, out=fits)  # a first word larger than the budget is masked alone
            end = np.minimum(begin + np.minimum(wanted, fits), last_word)
            free = words.unmaskable_before[end] == words.unmaskable_before[begin]
            free &= ~((taken_begin[:most] <= end) & (taken_end[:most] >= begin)).any(0)
            accepted = free & (end > begin)
            stop = words.first[end]
            if reference:
                stop = np.minimum(stop, limit)
            size = stop - first
            hit = np.flatnonzero(accepted)
            log.append((first[hit], size[hit], live[hit]))
            taken_begin[placed[hit], hit] = begin[hit]
            taken_end[placed[hit], hit] = end[hit]
            left = left - size * accepted
            done = (left <= 0) | (fits <= 0) | (wanted <= 0)
            if not reference:
                done |= accepted & (fits < wanted)  # a shortened span is the last
            placed += accepted
            failed = np.where(accepted, 0, failed + 1)
            rounds += 1
            if done.any():
                # finished sequences leave at once: their columns would only be carried along
                keep = np.flatnonzero(~done)
                live, left, placed, failed = live[keep], left[keep], placed[keep], failed[keep]
                start_keys, length_keys = start_keys[keep], length_keys[keep]
                offset, count = offset[keep], count[keep]
                begins_RB, lengths_KB = begins_RB[:, keep], lengths_KB[:, keep]
                taken_begin, taken_end = taken_begin[:, keep], taken_end[:, keep]
        if not log:
            return (np.zeros(0, np.int64),) * 3
        return tuple(np.concatenate(parts).astype(np.int64) for parts in zip(*log))

    def draw_lengths(self, bits: np.ndarray) -> np.ndarray:
        """Span lengths in words, int32, from random bits (uint64, any shape), by inversion of the truncated geometric."""
        return (np.searchsorted(self._length_cdf, unit(bits), side="right") + 1).astype(np.int32)

    def _choose_units(self, words: _Words, keys: np.ndarray, cu_seqlens: np.ndarray, *, by_token: bool):
        """Words, or tokens, in random order until the budget is spent."""
        unit_sequence = np.repeat(np.arange(len(keys)), np.diff(words.maskable_cu))
        first = words.first[words.maskable].astype(np.int64)
        size = words.first[words.maskable + 1] - first
        if by_token:
            ends = np.cumsum(size)
            unit_sequence = np.repeat(unit_sequence, size)
            first = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - size), size)
            size = np.ones(len(first), np.int64)
        place = first - cu_seqlens[unit_sequence]
        bits = draw(stream(keys, _ORDER)[unit_sequence], place)
        order = np.lexsort((bits, unit_sequence))
        first, size, unit_sequence = first[order], size[order], unit_sequence[order]
        # tokens that earlier units of the same sequence have spent
        before = np.cumsum(size) - size
        is_first = np.ones(len(first), bool)
        is_first[1:] = unit_sequence[1:] != unit_sequence[:-1]
        before -= before[is_first][np.cumsum(is_first) - 1] if len(first) else 0
        left = words.budget[unit_sequence] - before
        if self.config.budget == "reference":
            size = np.minimum(size, left)
            keep = left > 0
        else:
            over = before + size > words.budget[unit_sequence]
            blocked = np.cumsum(over)
            blocked -= blocked[is_first][np.cumsum(is_first) - 1] - over[is_first][np.cumsum(is_first) - 1] if len(first) else 0
            keep = (blocked == 0) | is_first
        return first[keep], size[keep], unit_sequence[keep]

    def _corrupt(self, flat_ids, cu_seqlens, keys, first, size, sequence) -> MaskedBatch:
        """Units (first token, size, sequence), ascending, become targets; 80 / 10 / 10 is decided once per unit."""
        ends = np.cumsum(size)
        total = int(ends[-1]) if len(ends) else 0
        unit_M = np.repeat(np.arange(len(first)), size)
        positions = np.arange(total) + np.repeat(first - (ends - size), size)
        input_ids = np.asarray(flat_ids).astype(np.int64)
        target_ids = input_ids[positions]

        place = first - cu_seqlens[sequence]
        action = unit(draw(stream(keys, _ACTION)[sequence], place))
        action_M = action[unit_M]
        input_ids[positions[action_M < 0.8]] = self.mask_id
        random_M = np.flatnonzero(action_M >= 0.9)
        random_positions = positions[random_M]
        random_sequence = sequence[unit_M[random_M]]
        bits = draw(stream(keys, _REPLACEMENT)[random_sequence], random_positions - cu_seqlens[random_sequence])
        drawn = (unit(bits) * self._replacement_cumulative[-1]).astype(np.int64)
        input_ids[random_positions] = np.searchsorted(self._replacement_cumulative, drawn, side="right")

        # A span is a maximal run of targets, so that both its neighbours are visible under every scheme.
        begins_span = np.ones(total, bool)
        begins_span[1:] = positions[1:] != positions[:-1] + 1
        span_first = np.flatnonzero(begins_span)
        target_span = np.cumsum(begins_span) - 1
        target_offset = np.arange(total) - span_first[target_span]
        span_left = positions[span_first] - 1
        span_right = positions[np.append(span_first[1:], total)[: len(span_first)] - 1] + 1
        has_sbo = target_offset < self.sbo_positions
        if not self.config.special_boundaries:
            usable = ~(self._special[flat_ids[span_left]] | self._special[flat_ids[span_right]])
            has_sbo &= usable[target_span]
        return MaskedBatch(
            input_ids, cu_seqlens, positions, target_ids, span_left, span_right, target_span, target_offset,
            np.flatnonzero(has_sbo),
        )
