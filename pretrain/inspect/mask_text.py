"""A masked text for the terminal: spans and boundaries marked in it, then a table of its targets."""

from __future__ import annotations

import unicodedata

from pretrain.inspect.mask_view import Draw
from spanbert.terminal import colour as colour_code

ON = {
    "mask": colour_code("1;97;44"),
    "random": colour_code("1;97;45"),
    "kept": colour_code("1;30;42"),
    "boundary": colour_code("4;33"),
    "dim": colour_code("2"),
}
OFF = colour_code("0")
PLAIN = {"mask": ("{", "}"), "random": ("{~", "}"), "kept": ("{=", "}"), "boundary": ("<", ">"), "dim": ("", "")}


def render(draws: list[Draw], about: str, colour: bool) -> str:
    """All draws for a terminal: each text with its spans and boundaries marked, then a table of its targets."""
    style = {name: (ON[name], OFF) for name in ON} if colour else PLAIN
    names = {
        "mask": "[MASK] stands there",
        "random": "a random token",
        "kept": "left as it was",
        "boundary": "boundary",
    }
    legend = "  ".join(f"{style[key][0]}{name}{style[key][1]}" for key, name in names.items())
    blocks = [f"{about}\n{legend}"]
    for draw in draws:
        line = ""
        for number, token in enumerate(draw.tokens):
            before = draw.tokens[number - 1].stand_in if number else None
            after = draw.tokens[number + 1].stand_in if number + 1 < len(draw.tokens) else None
            key: str | None = token.stand_in or ("boundary" if token.is_boundary else None)
            if key is None and number in (0, len(draw.tokens) - 1):
                key = "dim"
            opened, closed = style[key] if key else ("", "")
            if token.stand_in:  # one mark around a run of tokens with the same stand-in
                opened, closed = opened * (before != token.stand_in), closed * (after != token.stand_in)
            joins = token.stand_in is not None and before == token.stand_in
            line += (token.gap + opened if not joins else token.gap) + token.text + closed
        blocks.append(f"{style['dim'][0]}{draw.title}: {draw.summary}{style['dim'][1]}\n{line}")
        blocks += [table(draw)] * bool(draw.targets)
    return "\n\n".join(blocks)


HEAD = ("span", "left boundary", "right boundary", "position", "target", "in its place")


def table(draw: Draw) -> str:
    """The SBO targets as aligned columns."""
    rows = [HEAD]
    for target in draw.targets:
        place = "kept" if target.stand_in == "kept" else target.seen
        span = f"{target.span}" if target.position == 1 else ""
        left, right = (target.left, target.right) if target.position == 1 else ("", "")
        position = f"{target.position}" if target.has_sbo else f"{target.position} (no SBO)"
        rows.append((span, left, right, position, target.token, place))
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell + " " * (w - width(cell)) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def width(text: str) -> int:
    """Columns of a terminal that the text takes: Chinese and the like take two a character, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
