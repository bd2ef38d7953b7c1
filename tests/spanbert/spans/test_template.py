"""Texts with holes are read, and what cannot be meant is refused."""

from __future__ import annotations

import pytest

from spanbert.errors import UserError
from spanbert.spans.template import Blank, parse_template
from tests.span_samples import TOKENIZER


@pytest.mark.parametrize(
    ("text", "blanks", "texts"),
    [
        ("The [SPAN:3] of France", [Blank(3, 3)], ["The ", " of France"]),
        ("[MASK] is Paris", [Blank(1, 1)], ["", " is Paris"]),
        ("the [SPAN:1-4].", [Blank(1, 4)], ["the ", "."]),
        ("the [MASK] [MASK][SPAN:1-2] of", [Blank(3, 4)], ["the ", " of"]),
        ("[SPAN:2] of [MASK]", [Blank(2, 2), Blank(1, 1)], ["", " of ", ""]),
        ("a [mask wearing] man [MASK]", [Blank(1, 1)], ["a [mask wearing] man ", ""]),
    ],
)
def test_holes_are_read(text, blanks, texts):
    """Neighbouring holes are one: the SBO head needs a visible token on either side."""
    template = parse_template(text, TOKENIZER)
    assert template.blanks == blanks and template.texts == texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing to fill", "no span to fill"),
        ("the [SPAN] of", "no length"),
        ("the [span:3] of", r"'\[span:3\]' is not a span"),
        ("the [SPAN: 3] of", r"'\[SPAN: 3\]' is not a span"),
        ("the [SPAN:0] of", "at least one token"),
        ("the [SPAN:4-2] of", "must not be above"),
        ("[MASK]\x00[SPAN:2]", "nothing between them"),
    ],
)
def test_holes_that_cannot_be_meant_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_template(text, TOKENIZER)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the [SPAN:1000000000] of", r"'\[SPAN:1000000000\]' is not a span"),
        ("the [SPAN:100000000] of", "span of 100000000 tokens does not fit: the model takes 24"),
        ("the [SPAN:1-100000000] of", "span of 100000000 tokens does not fit: the model takes 24"),
        ("the [SPAN:1-999999999] of", "the model takes 24"),
        ("the " * 2_500_000 + "[MASK]", "10,000,006 characters, far more than the 24 tokens"),
    ],
)
def test_what_cannot_fit_is_refused_before_it_is_made(text, words, monkeypatch):
    """A hole of 10^9 tokens filled the memory before anybody asked how many the model takes; so did a text of 10 MB."""
    monkeypatch.setattr(TOKENIZER, "encode_batch", lambda texts: pytest.fail("encoded"), raising=False)
    with pytest.raises(UserError, match=words):
        parse_template(text, TOKENIZER, 24)


def test_masks_stand_between_the_visible_pieces():
    template = parse_template("the [SPAN:1-3] of France [MASK] .", TOKENIZER)
    masked = template.with_masks((2, 1), TOKENIZER)
    pieces = [TOKENIZER.token(i) for i in masked.ids]
    assert pieces == ["the", "[MASK]", "[MASK]", "of", "France", "[MASK]", "."]
    assert masked.spans == [(2, 4), (6, 7)]
    assert template.render(["A B", "C"]) == "the A B of France C ."
