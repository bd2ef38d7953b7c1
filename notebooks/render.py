"""The tour as pages to read without running anything: every notebook executed, its outputs in Markdown.

    python -m notebooks.render [01 02 …]        (make tour-pages)

writes docs/tour/NAME.md with its pictures beside it, for the notebooks whose names begin so, or for all, and the index
docs/tour/README.md.
"""

from __future__ import annotations

import base64
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nbformat import NotebookNode

from notebooks.tour import ROOT, execute, read, sources

PAGES = ROOT / "docs" / "tour"
PICTURES = {"image/svg+xml": "svg", "image/png": "png"}
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
INDEX_ROOM = 300  # characters about a notebook
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
#: of a picture that matplotlib writes, what no reader looks at
SVG_NOISE = re.compile(r"<\?xml.*?\?>\s*|<!DOCTYPE.*?>\s*|<metadata>.*?</metadata>\s*", re.DOTALL)


@dataclass
class Page:
    """A notebook as Markdown, and its pictures by file name."""

    text: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)


def page(path: Path, notebook: NotebookNode) -> Page:
    """The page of an executed notebook."""
    made = Page(f"<!-- made of notebooks/{path.name} by `make tour-pages`: edit that file -->\n")
    heading = path.stem
    for cell in notebook.cells:
        made.text += f"\n{cell_text(cell)}\n"
        if cell.cell_type == "markdown":
            heading = (HEADING.findall(cell.source) or [heading])[-1]
        for output in merged(cell.get("outputs", ())):
            add_output(made, output, path.stem, heading)
    made.text += f"\n---\n\n{neighbours(path)}\n"
    return made


def cell_text(cell: NotebookNode) -> str:
    """A cell's source as it stands in the page."""
    if cell.cell_type == "code":
        return f"```python\n{cell.source}\n```"
    return relinked(cell.source)


def relinked(text: str) -> str:
    """Links as they lead from docs/tour/: other notebooks to their pages, files of the project one folder further up."""
    text = re.sub(r"\]\((\d\d_\w+)\.py", r"](\1.md", text)
    return text.replace("](../", "](../../")


def merged(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Printed text in one part, however many it came in; without warnings, which differ from machine to machine."""
    whole: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if whole and output.output_type == whole[-1].output_type == "stream":
            whole[-1] = NotebookNode(whole[-1], text=whole[-1].text + output.text)
        else:
            whole.append(output)
    return whole


def add_output(made: Page, output: NotebookNode, stem: str, heading: str) -> None:
    """Printed text, Markdown or a picture. Of several forms of one output the richest that a page can show."""
    if output.output_type == "stream":
        made.text += f"\n```text\n{TERMINAL_COLOURS.sub('', output.text).rstrip()}\n```\n"
        return
    forms = output.get("data", {})
    for kind, ending in PICTURES.items():
        if kind in forms:
            name = f"{stem}_{len(made.pictures) + 1}.{ending}"
            made.pictures[name] = picture(kind, forms[kind])
            made.text += f"\n![{heading}]({name})\n"
            return
    if "text/markdown" in forms:
        made.text += f"\n{relinked(forms['text/markdown'])}\n"
    elif "text/plain" in forms:
        made.text += f"\n```text\n{forms['text/plain'].rstrip()}\n```\n"


def picture(kind: str, content: str) -> bytes:
    if kind == "image/png":
        return base64.b64decode(content)
    lines = SVG_NOISE.sub("", content).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines).encode()


def neighbours(path: Path) -> str:
    """Links to the pages before and after, and to the notebook itself."""
    tour = sources()
    place = tour.index(path)
    links = [f"[← {title(tour[place - 1])}]({tour[place - 1].stem}.md)"] * (place > 0)
    links.append(f"[this notebook](../../notebooks/{path.name})")
    links += [f"[{title(follower)} →]({follower.stem}.md)" for follower in tour[place + 1 : place + 2]]
    return " · ".join(["[the tour](README.md)", *links])


def title(path: Path) -> str:
    """A notebook's first heading."""
    return HEADING.findall(read(path).cells[0].source)[0]


def question(path: Path) -> str:
    """What a notebook is about: the whole sentences of the paragraph under its first heading, as many as the index has room for."""
    paragraphs = read(path).cells[0].source.split("\n\n")
    text = " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else ""
    kept = ""
    for sentence in SENTENCE_END.split(text):
        if not sentence.endswith((".", "?", "!")) or (kept and len(kept) + len(sentence) > INDEX_ROOM):
            break
        kept += f" {sentence}"
    return kept.strip()


INDEX = """<!-- made of notebooks/ by `make tour-pages`: edit notebooks/render.py -->
# A tour of SpanBERT in notebooks

For somebody who knows roughly what a Transformer is and wants to see how this one works. Every notebook asks a question, tries it out
on the project's own small models, and checks what it says: the `assert`s are part of the lesson. No GPU, no download, less than
a minute each.

The pages below are the notebooks with what they gave. To run and change them: `make tour`, which opens them in Jupyter, or says what to
install. They are kept as Python files in [notebooks/](../../notebooks), and `make test` runs them all.

| | |
|---|---|
"""


def index() -> str:
    return INDEX + "".join(f"| [{title(path)}]({path.stem}.md) | {relinked(question(path))} |\n" for path in sources())


def write(path: Path, made: Page) -> None:
    """Write a page with its pictures; those of its last version go."""
    PAGES.mkdir(parents=True, exist_ok=True)
    for old in PAGES.glob(f"{path.stem}_*"):
        old.unlink()
    for name, content in made.pictures.items():
        (PAGES / name).write_bytes(content)
    (PAGES / f"{path.stem}.md").write_text(made.text, encoding="utf-8")


def main(names: list[str]) -> None:
    """Render the notebooks whose file names begin with one of the names, or all."""
    chosen = [path for path in sources() if not names or path.name.startswith(tuple(names))]
    if not chosen:
        sys.exit(f"no notebook's name begins with {' or '.join(names)}")
    for path in chosen:
        begin = time.monotonic()
        made = page(path, execute(path))
        write(path, made)
        size = len(made.text.encode()) + sum(map(len, made.pictures.values()))
        print(f"{path.name}: {time.monotonic() - begin:.0f} s, {len(made.pictures)} pictures, {size / 1000:.0f} kB")
    (PAGES / "README.md").write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
