"""Span masking (§3.1): which tokens of a packed batch are hidden, and what stands in their place.

A mask is a pure function of (seed, epoch, sequence index) and the sequence's own tokens, so that it is the same on any
worker, rank and batch size and after any resume. What is masked is chosen in span_sampler.py and word_sampler.py, with
the counter-based random numbers of counter_rng.py. Nothing here loops over sequences or tokens.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pretrain.masking.counter_rng import draw, sequence_keys, stream, unit
from pretrain.masking.span_sampler import SpanRule, choose_spans, list_spans
from pretrain.masking.word_sampler import Units, choose_words, either, find_words, inside_spans
from spanbert.errors import UserError
from spanbert.model.batch import MaskedBatch, PackedBatch, Targets
from spanbert.tokenizer.wordpiece import Tokenizer

# purposes of the streams that replace tokens; those that choose spans and words are numbered there
_ACTION, _REPLACEMENT, _SCHEME = 16, 17, 18


@dataclass(frozen=True)
class MaskConfig:
    """How sequences are masked; the defaults are the paper's geometric spans (§3.1, §4.2)."""

    scheme: Literal["geometric", "whole_word", "subword", "mixed", "entities", "noun_phrases"] = "geometric"
    """What is masked: spans of geometric length, single words, single tokens, one half of the sequences as geometric and the
    other as subword (drawn anew each epoch), or the spans of a tagger's sidecar."""
    words: Literal["tokenizer", "annotated"] = "tokenizer"
    """What a word is to geometric, whole_word and mixed: the tokenizer's (each Chinese character is one), or the corpus's span
    annotations, such as `spanbert segment` writes, with the tokenizer's words between them."""
    mask_share: float = 0.15
    """Share of a sequence's tokens that become targets."""
    geometric_p: float = 0.2
    """Parameter of the geometric distribution of span lengths in words."""
    max_span_words: int = 10
    """Longest span in words: the geometric distribution is truncated here."""
    budget: Literal["whole_words", "reference"] = "whole_words"
    """At the end of the share: shorten the last span to whole words, or cut it mid-word to meet the share exactly."""
    replacement: Literal["unigram", "uniform"] = "unigram"
    """Random tokens come from the corpus's token frequencies, or evenly from the vocabulary."""
    special_boundaries: bool = True
    """Whether [CLS] and [SEP] may serve as boundary tokens of the span-boundary objective."""

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_share < 1.0:
            raise UserError(f"mask share {self.mask_share}: expected a number between 0 and 1, such as 0.15.")
        if not 0.0 < self.geometric_p < 1.0:
            raise UserError(f"geometric p {self.geometric_p}: expected a number between 0 and 1, such as 0.2.")
        for name in ("scheme", "words", "budget", "replacement"):
            known = typing.get_args(typing.get_type_hints(MaskConfig)[name])
            if getattr(self, name) not in known:
                raise UserError(f"mask {name} {getattr(self, name)!r}: expected one of {', '.join(known)}.")
        if self.words == "annotated" and self.scheme not in ("geometric", "whole_word", "mixed"):
            raise UserError(
                f"mask words annotated: scheme {self.scheme} does not mask by words; expected geometric, whole_word or mixed."
            )
        if self.max_span_words < 1:
            raise UserError(f"longest span {self.max_span_words} words: expected at least 1.")

    @property
    def needs_spans(self) -> bool:
        """Whether the sequences' span annotations are asked for."""
        return self.scheme in ("entities", "noun_phrases") or self.words == "annotated"


class Masker:
    """Masks packed batches. Immutable after construction, so that any number of workers may share one.

    starts_word (V,) bool: whether a token id is a word's first token. special_ids: ids that are never masked and never
    put in place of a token. unigram_counts (V,): how often each id occurs in the training text. seed: any integer.
    sbo_positions: rows of the SBO's position table; targets further into their span have no SBO target.
    Raises UserError when the counts are not those of this vocabulary, or all are zero.
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
        # to the subword scheme every token is a word
        self._starts_unit = np.asarray(starts_word, bool) | (config.scheme == "subword")
        self._special = np.zeros(self._starts_unit.size, bool)
        self._special[np.asarray(special_ids, np.int64)] = True
        self._rule = SpanRule(
            truncated_geometric(config.geometric_p, config.max_span_words), config.budget == "reference"
        )
        counts = np.ones(self._starts_unit.size, np.int64)
        if config.replacement == "unigram":
            counts = np.array(unigram_counts, np.int64)
            if counts.shape != self._starts_unit.shape:
                raise UserError(
                    f"unigram counts for {counts.size} tokens, vocabulary of {self._starts_unit.size}: "
                    "prepare the corpus with the tokenizer that you train with."
                )
        counts[self._special] = 0
        if counts.sum() <= 0:
            raise UserError("No token has a count in the unigram table: prepare the corpus again.")
        self._occurrences_to = np.cumsum(counts)

    @classmethod
    def from_tokenizer(
        cls,
        config: MaskConfig,
        tokenizer: Tokenizer,
        *,
        seed: int,
        unigram_counts: np.ndarray | None = None,
        sbo_positions: int = 20,
    ) -> Masker:
        """A masker of a tokenizer's ids. Without counts every token is as likely to stand in for a masked one."""
        if unigram_counts is None:
            unigram_counts = np.ones(tokenizer.vocab_size, np.int64)
        return cls(
            config,
            starts_word=tokenizer.starts_word,
            special_ids=tokenizer.special_ids,
            mask_id=tokenizer.mask_id,
            unigram_counts=unigram_counts,
            seed=seed,
            sbo_positions=sbo_positions,
        )

    def mask(
        self,
        packed: PackedBatch[np.ndarray],
        *,
        epoch: int | np.ndarray,
        indices: np.ndarray,
        spans: Sequence[np.ndarray] | None = None,
    ) -> MaskedBatch[np.ndarray]:
        """Mask B sequences, each with its [CLS] and [SEP].

        packed stays as it is; epoch is one number or (B,) numbers, indices (B,) the numbers of the sequences in the corpus. spans, for the schemes `entities` and
        `noun_phrases` and for annotated words: for each sequence its (n, 2) token spans [start, end), counted without [CLS].
        Raises UserError when these get no spans or one outside its sequence, and ValueError when a sequence
        has no room for two specials or the numbers of sequences and indices differ.
        """
        cu_seqlens = packed.cu_seqlens
        if len(indices) != len(cu_seqlens) - 1 or (np.diff(cu_seqlens) < 2).any():
            raise ValueError("expected one index per sequence, and sequences of at least two tokens ([CLS], [SEP])")
        input_ids = packed.input_ids_T.copy()
        keys = sequence_keys(self.seed, epoch, indices)
        scheme = self.config.scheme
        if not self.config.needs_spans:
            spans = None
        elif spans is None:
            what = (
                "mask words annotated needs"
                if self.config.words == "annotated"
                else f"scheme {scheme} needs a tagger's"
            )
            raise UserError(
                f"{what} spans, which the data lacks: prepare the corpus with a sidecar of them, --spans (a stream has none)."
            )
        goes_on = inside_spans(cu_seqlens, spans) if spans is not None and self.config.words == "annotated" else None
        words = find_words(input_ids, cu_seqlens, self._starts_unit, self._special, goes_on)
        budget = np.ceil(self.config.mask_share * words.tokens).astype(np.int64)
        if scheme in ("subword", "whole_word"):
            units = choose_words(words, budget, keys, self._rule.cut_mid_word)
        elif scheme == "mixed":
            # both for all of them: a sequence's mask is then the very one that either scheme would give it
            tokens = find_words(input_ids, cu_seqlens, np.ones_like(self._starts_unit), self._special)
            by_token = choose_words(tokens, budget, keys, self._rule.cut_mid_word)
            takes_spans = unit(draw(stream(keys, _SCHEME), np.zeros(len(keys)))) < 0.5
            units = either(takes_spans, choose_spans(words, budget, keys, self._rule, None), by_token)
        else:
            listed = None
            if spans is not None and goes_on is None:
                listed = list_spans(words, cu_seqlens, keys, spans)
            units = choose_spans(words, budget, keys, self._rule, listed)
        return self._corrupt(packed._replace(input_ids_T=input_ids), keys, units)

    def _corrupt(self, packed: PackedBatch[np.ndarray], keys: np.ndarray, units: Units) -> MaskedBatch[np.ndarray]:
        """Make targets of the units' tokens and replace them: 80 % [MASK], 10 % random tokens, 10 % as they were.

        The choice is made once per unit, so that no span is partly visible (§3.1): per span where spans are masked,
        per word in whole-word masking, per token in subword masking (as in BERT). Each random token is drawn for itself.
        Overwrites the ids of `packed`.
        """
        input_ids, cu_seqlens = packed.input_ids_T, packed.cu_seqlens
        first, size, sequence = units
        unit_M = np.repeat(np.arange(len(first)), size)
        total = len(unit_M)
        positions = np.arange(total) + (first - (np.cumsum(size) - size))[unit_M]
        target_ids = input_ids[positions]

        action = unit(draw(stream(keys, _ACTION)[sequence], first - cu_seqlens[sequence]))[unit_M]
        input_ids[positions[action < 0.8]] = self.mask_id
        is_random = np.flatnonzero(action >= 0.9)
        random_positions, random_sequence = positions[is_random], sequence[unit_M[is_random]]
        bits = draw(stream(keys, _REPLACEMENT)[random_sequence], random_positions - cu_seqlens[random_sequence])
        occurrence = (unit(bits) * self._occurrences_to[-1]).astype(np.int64)
        input_ids[random_positions] = np.searchsorted(self._occurrences_to, occurrence, side="right")

        # A span is a maximal run of targets: then both its neighbours are visible under every scheme.
        begins_span = np.ones(total, bool)
        begins_span[1:] = np.diff(positions) != 1
        span_first = np.flatnonzero(begins_span)
        span_last = np.append(span_first[1:], total)[: len(span_first)] - 1
        target_span = np.cumsum(begins_span) - 1
        target_offset = np.arange(total) - span_first[target_span]
        span_left, span_right = positions[span_first] - 1, positions[span_last] + 1
        has_sbo = target_offset < self.sbo_positions
        if not self.config.special_boundaries:
            span_sequence = sequence[unit_M[span_first]]
            at_edge = (span_left == cu_seqlens[span_sequence]) | (span_right == cu_seqlens[span_sequence + 1] - 1)
            has_sbo &= ~at_edge[target_span]
        return MaskedBatch(
            packed,
            Targets(
                positions_M=positions,
                ids_M=target_ids,
                left_S=span_left,
                right_S=span_right,
                span_M=target_span,
                offset_M=target_offset,
                sbo_K=np.flatnonzero(has_sbo),
            ),
        )


def truncated_geometric(p: float, longest: int) -> np.ndarray:
    """Cumulative distribution of span lengths 1 … longest, P(l) ∝ p (1 - p)^(l - 1), (longest,) float64."""
    shares = p * (1.0 - p) ** np.arange(longest)
    cdf = np.cumsum(shares) / shares.sum()
    cdf[-1] = 1.0
    return cdf
