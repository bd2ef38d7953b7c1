"""Exercise: which words of a sequence are masked, by the paper's procedure (§3.1).

The project's own: pretrain/masking/span_sampler.py, which does it for all sequences of a batch at once.
"""

from __future__ import annotations

from collections.abc import Callable

PATIENCE = 16


def sample_spans(
    word_sizes: list[int], budget: int, length: Callable[[int], int], start: Callable[[int, int], int]
) -> list[tuple[int, int]]:
    """Spans of whole words, at most `budget` tokens in all, that neither overlap nor touch.

    word_sizes: how many tokens each word has. length(k): the drawn length, in words, of span k. start(k, r): the word at
    which try r of span k would begin. The draws are given, so that there is one right result.
    → (first word, last word + 1) of each span, in any order.

    The procedure. For span k = 0, 1, 2 … while tokens are left in the budget, for try r = 0, 1, 2 …:

    1. The span wants length(k) − r // PATIENCE words, for k = 0 at least one. If that is none: all is done.
    2. Begin at word start(k, r), and take word after word, as many as are wanted, as long as the budget pays the next one.
       (Span 0 takes its first word even if that costs more than the budget: no sequence stays unmasked.)
    3. If the span would go on beyond the last word (it wants more and a token is left to pay with), or if it overlaps or
       touches a span that is there (at least one word must stay visible between two): next try.
    4. If not even one word could be paid: all is done.
    5. Otherwise the span is placed and paid. If it got fewer words than it wanted: all is done. Next span.

    Hints: in step 3, [a, b) touches or overlaps [c, d) exactly when a <= d and c <= b; this holds for the empty span of
    step 4, too. Keep the drawn length when a start is refused: to draw it anew would favour short spans.
    """
    raise NotImplementedError
