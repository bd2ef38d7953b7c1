"""Choosing spans of words to mask, by the paper's procedure (§3.1) to the letter.

In meaning, for each sequence by itself:

    span k = 0, 1, 2 …, while tokens are left in the budget:
        draw its length in words from the truncated geometric distribution
        draw a start, uniform over the sequence's words
        shorten the span to the whole words that the budget still pays; it is then the last; none at all: stop
        if it leaves the sequence, or overlaps or touches a span that is there: draw another start, keep the length

Redrawing the start and never the length is what keeps lengths distributed as drawn: dropping the whole draw would
favour short spans as the sequence fills. The number of spans is a stopping time of the drawn lengths, so that (Wald's
identity) the lengths of all placed spans, the last one counted as drawn, follow the truncated geometric exactly. To
leave the last one out would look neater and be wrong: long spans are more often those that reach the budget's end.
Drawing lengths first and then one arrangement of all spans ("stars and bars") needs no redraws, but what a span costs
in tokens depends on where it falls, and spans that the budget shortens would be placed as if they were long.

Every draw has a counter, (span k, try r), so the loop need not run one draw at a time. `place_ahead` takes the next 8
spans of all sequences at once as if they were not in each other's way, keeps of each sequence what comes before the
first that is, and goes on from there; `place_next` is the loop's body. The outcome is the sequential loop's, bit by
bit, whatever else is in the batch; a test holds it against the loop written out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pretrain.masking.counter_rng import below, draw, stream, unit
from pretrain.masking.word_sampler import Units, Words, flat_spans

# purposes of the streams that place spans
LENGTH, START, KIND, LISTED_ORDER = range(4)
# A length whose start was refused this often loses a word. At 15 % masked about 4 in 10 starts are refused at the end
# of the budget, so this decides (0.4^16 = 4e-7) only where no start exists: tiny texts, or very high mask shares.
PATIENCE = 16
_NOWHERE = np.iinfo(np.int32).max


class ListedSpans(NamedTuple):
    """A tagger's spans as words of the batch, each sequence's in the random order in which they are tried."""

    begin: np.ndarray  # (N,) int32
    words: np.ndarray  # (N,) int32
    cu: np.ndarray  # (B + 1,) int64


@dataclass(frozen=True)
class SpanRule:
    """Lengths (cumulative distribution over 1, 2, … words) and what happens at the end of the budget."""

    length_cdf: np.ndarray
    cut_mid_word: bool


def choose_spans(
    words: Words, budget_B: np.ndarray, keys_B: np.ndarray, rule: SpanRule, listed: ListedSpans | None = None
) -> Units:
    """Spans of whole words that neither overlap nor touch, worth at most `budget_B` tokens a sequence.

    A sequence with at least one word gets at least one span: a first word larger than the budget is masked alone.
    With `listed`, each span is by the toss of a coin the first of the sequence's untried listed spans that fits, as
    long as there is one, or else a geometric span (§6.1: entities and noun phrases).
    """
    progress = _Progress(words, budget_B, keys_B, rule, listed)
    live = np.flatnonzero(budget_B > 4 * len(rule.length_cdf))  # a budget of one or two spans does not repay it
    while live.size:
        live = progress.place_ahead(live)
    live = np.flatnonzero(budget_B > 0)
    while live.size:
        live = progress.place_next(live)
    return progress.units()


class _Progress:
    """The spans that each of B sequences has so far, and where each goes on. n: the sequences a call works on."""

    TRIES = 3  # starts looked at together
    AHEAD = 8  # spans looked at together

    def __init__(
        self,
        words: Words,
        budget_B: np.ndarray,
        keys_B: np.ndarray,
        rule: SpanRule,
        listed: ListedSpans | None,
    ):
        self.words, self.rule, self.listed = words, rule, listed
        self.left = budget_B.astype(np.int32)
        self.placed = np.zeros(len(budget_B), np.int64)
        self.tries = np.zeros(len(budget_B), np.int64)  # refused starts of the span that is next
        self.next_listed = np.zeros(len(budget_B), np.int64) if listed is None else listed.cu[:-1].copy()
        self.start_keys, self.length_keys, self.kind_keys = (stream(keys_B, p) for p in (START, LENGTH, KIND))
        self.word_offset, self.word_count = words.maskable_cu[:-1], np.diff(words.maskable_cu)
        self.begin_KB = np.zeros((0, len(budget_B)), np.int32)
        self.end_KB = np.zeros((0, len(budget_B)), np.int32)
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(np.zeros(0, np.int64),) * 3]

    def units(self) -> Units:
        parts = zip(*self.found, strict=True)
        first, size, sequence = (np.concatenate(part).astype(np.int64) for part in parts)
        order = np.argsort(first)
        return Units(first[order], size[order], sequence[order])

    def place_next(self, live: np.ndarray) -> np.ndarray:
        """The sequential loop's body: one span, up to TRIES starts, for each live sequence. Returns who goes on."""
        words, column = self.words, np.arange(live.size)
        (begin,), (length,), (is_listed,) = self._propose(live, 1)
        left, is_first = self.left[live], self.placed[live] == 0
        first = words.first[begin]
        limit = np.minimum(first + left, words.of_token.size - 1)
        if self.rule.cut_mid_word:
            paid_end = words.of_token[limit - 1] + 1
        else:
            paid_end = np.maximum(words.of_token[limit], begin + is_first)
        end = np.minimum(np.minimum(begin + length, len(words.first) - 1), paid_end)
        size = words.first[end] - first
        if self.rule.cut_mid_word:
            size = np.minimum(size, left)
        clash = self._clash(live, begin, end)
        is_empty = end <= begin
        fits = (end <= words.next_unmaskable[begin]) & ~(clash | is_empty)
        is_last = (size >= left) | (paid_end < begin + length)
        # a free start whose first word cannot be paid, or a length that ran out: the sequence is done
        stops = (is_empty & ~clash) | (length <= 0)

        decides = fits | stops
        choice = decides.argmax(axis=0)
        decided = decides[choice, column]
        accepted = decided & fits[choice, column]
        hit = np.flatnonzero(accepted)
        chosen = (x[choice[hit], hit] for x in (begin, end, first, size))
        self._place(live[hit], self.placed[live[hit]], *chosen)
        self.placed[live] += accepted
        self.left[live] -= size[choice, column] * accepted
        self.next_listed[live] += is_listed
        self.tries[live] = np.where(accepted, 0, self.tries[live] + self.TRIES * ~is_listed)
        return live[~(decided & (stops | is_last)[choice, column])]

    def place_ahead(self, live: np.ndarray) -> np.ndarray:
        """Several spans at once, as long as the budget pays each in full wherever it goes; same outcome as one by one.

        For each of the next AHEAD spans, takes the first start that is clear of the spans placed so far. Those before
        the first that is in the way of another of these are what the sequential loop would have placed.
        """
        words, ahead, column = self.words, self.AHEAD, np.arange(live.size)
        begin, length, is_listed = self._propose(live, ahead)
        end = np.minimum(begin + length, len(words.first) - 1)
        first = words.first[begin]
        size = words.first[end] - first
        fits = end <= words.next_unmaskable[begin]
        flat = (ahead * self.TRIES, live.size)
        fits &= ~self._clash(live, begin.reshape(flat), end.reshape(flat)).reshape(fits.shape)
        choice = fits.argmax(axis=1)
        picked = (choice + self.TRIES * np.arange(ahead)[:, None]) * live.size + column
        begin_An, end_An, size_An, fits_An = (x.ravel()[picked] for x in (begin, end, size, fits))

        meets_AAn = (begin_An[:, None] <= end_An) & (end_An[:, None] >= begin_An)
        meets_AAn &= np.tri(ahead, k=-1, dtype=bool).T[:, :, None]
        left = self.left[live] - (np.cumsum(size_An, axis=0) - size_An)
        is_tight = (size.max(axis=1) >= left) | (length[:, -1] <= 0)
        good = fits_An & ~meets_AAn.any(axis=0) & ~is_tight
        good = np.logical_and.accumulate(good, axis=0)
        count = good.sum(axis=0)

        step, hit = np.nonzero(good)
        chosen = (x.ravel()[picked[step, hit]] for x in (begin, end, first, size))
        self._place(live[hit], self.placed[live[hit]] + step, *chosen)
        self.placed[live] += count
        self.left[live] -= (size_An * good).sum(axis=0, dtype=np.int32)
        stop = np.minimum(count, ahead - 1)
        stops = count < ahead
        goes_on = ~(stops & is_tight[stop, column])
        was_listed = is_listed[stop, column]
        self.next_listed[live] += (is_listed & good).sum(axis=0) + (was_listed & stops & goes_on)
        used = np.where(fits_An[stop, column], choice[stop, column] + 1, self.TRIES)
        self.tries[live] = np.where(count == 0, self.tries[live], 0) + used * (stops & goes_on & ~was_listed)
        return live[goes_on]

    def _propose(self, live: np.ndarray, ahead: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next spans, and for each several starts: first words and lengths (A, R, n) int32, is listed (A, n) bool.

        A listed span stands there R times. Which ones come assumes that those before are accepted.
        """
        span_An = self.placed[live] + np.arange(ahead)[:, None]
        tries_ARn = np.zeros((ahead, self.TRIES, live.size), np.int64) + np.arange(self.TRIES)[:, None]
        tries_ARn[0] += self.tries[live]
        length = draw_lengths(self.rule.length_cdf, draw(self.length_keys[live], span_An))[:, None]
        length = length - (tries_ARn // PATIENCE).astype(np.int32)
        # the first span shrinks to one word at worst, which always fits: no sequence with a word stays unmasked
        length = np.maximum(length, (span_An == 0)[:, None])
        bits = draw(self.start_keys[live], (span_An << 32)[:, None] + tries_ARn)
        begin = self.words.maskable[self.word_offset[live] + below(bits, self.word_count[live])]
        is_listed = np.zeros(span_An.shape, bool)
        if self.listed is not None:
            heads = unit(draw(self.kind_keys[live], span_An)) < 0.5
            turn = self.next_listed[live] + np.cumsum(heads, axis=0) - heads
            is_listed = heads & (turn < self.listed.cu[1:][live])
            step, column = np.nonzero(is_listed)
            begin[step, :, column] = self.listed.begin[turn[step, column], None]
            length[step, :, column] = self.listed.words[turn[step, column], None]
        return begin, length, is_listed

    def _clash(self, live: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Whether spans (C, n) overlap or touch one of their sequence's: `end` too must not be a word of another."""
        most = int(self.placed[live].max())
        taken_begin, taken_end = self.begin_KB[:most, live], self.end_KB[:most, live]
        return np.any((taken_begin <= end[:, None]) & (taken_end >= begin[:, None]), axis=1)

    def _place(self, sequence: np.ndarray, span: np.ndarray, *where: np.ndarray) -> None:
        """Write down each sequence's span number `span`: begin and end word, first token, size in tokens."""
        begin, end, first, size = where
        while len(self.begin_KB) <= span.max(initial=-1):
            more = ((0, 32), (0, 0))
            self.begin_KB = np.pad(self.begin_KB, more, constant_values=_NOWHERE)
            self.end_KB = np.pad(self.end_KB, more, constant_values=-1)
        self.begin_KB[span, sequence], self.end_KB[span, sequence] = begin, end
        self.found.append((first, size, sequence))


def draw_lengths(length_cdf: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Span lengths in words, int32, from random bits (uint64, any shape), by inversion."""
    return (np.searchsorted(length_cdf, unit(bits), side="right") + 1).astype(np.int32)


def list_spans(words: Words, cu_seqlens: np.ndarray, keys_B: np.ndarray, spans: Sequence[np.ndarray]) -> ListedSpans:
    """Token spans as word spans in random order. spans: per sequence (n, 2) token [start, end), counted without [CLS].

    A span that begins or ends inside a word is widened to the whole word.
    Raises UserError for a span that is empty or outside its sequence.
    """
    pairs, sequence = flat_spans(cu_seqlens, spans)
    cu = np.concatenate([[0], np.cumsum([len(of_one) for of_one in spans], dtype=np.int64)])
    begin = words.of_token[pairs[:, 0]]
    end = words.of_token[pairs[:, 1] - 1] + 1
    # one number to sort by: the sequence, 24 random bits, the span's place in its list (up to 2^20 of either)
    place = np.arange(len(pairs)) - cu[:-1][sequence]
    bits = draw(stream(keys_B, LISTED_ORDER)[sequence], place) >> np.uint64(40)
    order = (sequence.astype(np.uint64) << np.uint64(44)) | (bits << np.uint64(20)) | place.astype(np.uint64)
    order.sort()
    order = (order & np.uint64(2**20 - 1)).view(np.int64) + cu[:-1][sequence]
    return ListedSpans(begin[order], (end - begin)[order], cu)
