"""The page that ``spanbert masks --html`` writes: one self-contained file, light or dark as the reader's system is."""

from __future__ import annotations

from html import escape

from pretrain.inspect.mask_view import Draw, Target, Token

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --text: #1c2330; --soft: #667085; --line: #e3e6eb;
  --mask: #2f6fed; --random: #b3389c; --kept: #18864b; --edge: #b7791f; --edge-soft: #fdf3dc; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1a1f28; --text: #e6e9ef; --soft: #97a1b3;
  --line: #2c3340; --mask: #6b9bff; --random: #e07acb; --kept: #4ac585; --edge: #e0b050; --edge-soft: #322a17; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.5rem; margin: 0 0 .25rem }
h2 { font-size: 1rem; margin: 0 }
p { margin: .25rem 0; color: var(--soft) }
.legend { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 1rem 0 1.5rem; font-size: .875rem; color: var(--soft) }
.legend i { font-style: normal; margin-right: .4rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.25rem; margin-bottom: 1.25rem }
.text { line-height: 2.3; font-size: 1.0625rem; margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere }
.span { border-radius: 3px }
.t { color: var(--c); padding: .1em 0; background: color-mix(in srgb, var(--c) 14%, transparent);
  border-bottom: 2px solid var(--c); -webkit-box-decoration-break: clone; box-decoration-break: clone }
ruby { ruby-position: under } rt { font: 600 .6875rem/1.3 ui-monospace, monospace; color: var(--c) }
.mask { --c: var(--mask) } .random { --c: var(--random) } .kept { --c: var(--kept) }
.edge { background: var(--edge-soft); color: var(--edge); outline: 1px solid var(--edge); border-radius: 4px; padding: 0 .12em }
.special { color: var(--soft); font-size: .8em } .special.edge { color: var(--edge) }
.on { outline: 2px solid currentColor; outline-offset: 2px } tr.on { outline-offset: -2px; outline-color: var(--soft) }
details { margin-top: .75rem } summary { cursor: pointer; color: var(--soft); font-size: .875rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin-top: .5rem; font-size: .875rem }
th { text-align: left; color: var(--soft); font-weight: 500 }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap }
td code { font: .8125rem ui-monospace, monospace } td .stand { color: var(--c); font-weight: 600 }
"""

# pointing at a span, or a row of the table, shows the span, its two boundaries and its rows
SCRIPT = """
document.querySelectorAll('section').forEach(section => {
  const mark = (id, on) => section.querySelectorAll('[data-s]').forEach(e => {
    if (e.dataset.s.split(' ').includes(id)) e.classList.toggle('on', on) });
  section.querySelectorAll('.span, tr[data-s]').forEach(e => {
    e.addEventListener('mouseenter', () => mark(e.dataset.s, true));
    e.addEventListener('mouseleave', () => mark(e.dataset.s, false)) }) })
"""

#: What a page of this command is known by.
PAGE_BEGIN = b"<title>Span masks</title>"

LEGEND = (
    ("mask", "t mask", "word", "[MASK] stands in its place (80 % of spans)"),
    ("random", "t random", "word", "random tokens stand there (10 %), shown below"),
    ("kept", "t kept", "word", "left as it was (10 %), but predicted all the same"),
    ("edge", "edge", "word", "boundary: what the span-boundary objective sees"),
)


def page(draws: list[Draw], about: str) -> str:
    """All draws as one HTML document; the texts are escaped."""
    legend = "".join(f'<span><i class="{style}">{word}</i>{escape(text)}</span>' for _, style, word, text in LEGEND)
    shown = " open" * (len(draws) <= 3)  # the tables of many draws are folded
    sections = "".join(_section(draw, shown) for draw in draws)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{PAGE_BEGIN.decode()}<style>{STYLE}</style></head><body><main><h1>Span masks</h1><p>{escape(about)}</p>"
        f'<div class="legend">{legend}</div>{sections}</main><script>{SCRIPT}</script></body></html>\n'
    )


def _section(draw: Draw, shown: str) -> str:
    rows = "".join(map(_row, draw.targets))
    return (
        f"<section><h2>{escape(draw.title[:1].upper() + draw.title[1:])}</h2><p>{escape(draw.summary)}</p>"
        f'<div class="text">{_text(draw)}</div><details{shown}><summary>What is predicted, and from what</summary>'
        '<div class="scroll"><table><thead><tr><th>Span</th><th>Left boundary</th><th>Right boundary</th>'
        f"<th>Position</th><th>Target</th><th>In its place</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
        "</section>"
    )


def _text(draw: Draw) -> str:
    """The block's tokens, those of a span in one element."""
    parts = []
    for number, token in enumerate(draw.tokens):
        span = draw.span_of[number]
        before = draw.span_of[number - 1] if number else None
        after = draw.span_of[number + 1] if number + 1 < len(draw.tokens) else None
        gap = escape(token.gap)
        if span:
            opened, gap = (f'{gap}<span class="span" data-s="{span}">', "") if span != before else ("", gap)
            parts.append(opened + _target(token, gap) + ("</span>" if span != after else ""))
            continue
        styles = [*(["special"] * (number in (0, len(draw.tokens) - 1))), *(["edge"] * token.is_boundary)]
        if not styles:
            parts.append(gap + escape(token.text))
            continue
        of_spans = " ".join(str(s) for s in (before, after) if s)
        parts.append(f'{gap}<span class="{" ".join(styles)}" data-s="{of_spans}">{escape(token.text)}</span>')
    return "".join(parts)


def _target(token: Token, gap: str) -> str:
    """A target, the gap before it if that is inside the span, and below it the random token that stands there."""
    text = escape(token.text)
    if token.stand_in == "random":
        text = f"<ruby>{text}<rt>{escape(token.seen)}</rt></ruby>"
    return f'<span class="t {token.stand_in}" title="{escape(token.token)}">{gap}{text}</span>'


def _row(target: Target) -> str:
    is_first = target.position == 1
    place = "kept" if target.stand_in == "kept" else target.seen
    position = f"{target.position}" if target.has_sbo else f"{target.position} (no SBO)"
    cells = [
        str(target.span) if is_first else "",
        f"<code>{escape(target.left)}</code>" if is_first else "",
        f"<code>{escape(target.right)}</code>" if is_first else "",
        position,
        f"<code>{escape(target.token)}</code>",
        f'<code class="stand">{escape(place)}</code>',
    ]
    inside = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{target.stand_in}" data-s="{target.span}">{inside}</tr>'
