"""Exercise: which window decides about which token of a long text (§5).

The project's own: Windows.owned in finetune/tasks/qa/features.py.
"""

from __future__ import annotations


def owned_ranges(windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of each window of one text the tokens that it decides about: (first, last), both included.

    windows: (first, last) token of each, both included, in order; they cover the text, and neighbours overlap.

    A token belongs to the window where the smaller of (tokens to its left, tokens to its right) *in that window* is
    largest; of equal ones to the earlier window. So every token has exactly one owner.

    Hints: try two windows on paper, (0, 9) and (6, 15). Where in the overlap 6 … 9 does the decision change? There is a
    formula for the border that needs no search. What does the first window own at the start of the text?
    """
    raise NotImplementedError
