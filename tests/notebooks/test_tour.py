"""The tour: its notebooks run, what they assert holds, and the pages are those of the notebooks as they are."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from notebooks import render, tour

NOTEBOOKS = tour.sources()
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
PAGE_BYTES, ALL_BYTES = 300_000, 1_500_000


def by_name(path: Path) -> str:
    return path.stem


def problems(path: Path, page: str) -> list[str]:
    """What a page lacks of its notebook: cells, in their order, as they are now."""
    place, missing = 0, []
    for cell in tour.read(path).cells:
        found = page.find(render.cell_text(cell), place)
        if found < 0:
            missing.append(cell.source.splitlines()[0])
        else:
            place = found
    return missing


def broken_links(text: str, folder: Path) -> list[str]:
    links = [link for link in LINK.findall(text) if not link.startswith(("http:", "https:"))]
    return [link for link in links if not (folder / link).exists()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_it_runs_and_gives_the_pictures_of_its_page(path):
    """Every cell is executed, each within a time limit; an assert that fails in one fails here."""
    made = render.page(path, tour.execute(path))
    there = {picture.name for picture in render.PAGES.glob(f"{path.stem}_*")}
    assert made.pictures.keys() == there, "run `make tour-pages`"
    assert made.text.count("```text") == (render.PAGES / f"{path.stem}.md").read_text("utf-8").count("```text")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_its_page_is_of_the_notebook_as_it_is(path):
    page = (render.PAGES / f"{path.stem}.md").read_text("utf-8")
    assert problems(path, page) == [], "run `make tour-pages`"


def test_a_page_that_is_out_of_date_is_seen(tmp_path):
    notebook = tmp_path / "01_made_up.py"
    notebook.write_text("# %% [markdown]\n# # Title\n\n# %%\nx = 1\n\n# %%\ny = 2\n")
    first, second, third = map(render.cell_text, tour.read(notebook).cells)
    assert problems(notebook, f"{first}\n{second}\n{third}") == []
    assert problems(notebook, f"{first}\n{third}") == ["x = 1"]
    assert problems(notebook, f"{first}\n{third}\n{second}") == ["y = 2"]


def test_every_notebook_has_a_page_and_every_page_a_notebook():
    pages = {page.stem for page in render.PAGES.glob("*.md")} - {"README"}
    assert pages == {path.stem for path in NOTEBOOKS}
    pictures = [picture.name for kind in ("svg", "png") for picture in render.PAGES.glob(f"*.{kind}")]
    texts = "".join(page.read_text("utf-8") for page in render.PAGES.glob("*.md"))
    assert [name for name in pictures if f"]({name})" not in texts] == []


def test_the_index_is_up_to_date():
    assert (render.PAGES / "README.md").read_text("utf-8") == render.index(), "run `make tour-pages`"


def test_the_index_says_whole_sentences(tmp_path):
    notebook = tmp_path / "01_made_up.py"
    notebook.write_text("# %% [markdown]\n# # Title\n#\n# What is\n# it? It is this. We ask\n#\n# 1. who\n")
    assert render.title(notebook) == "Title" and render.question(notebook) == "What is it? It is this."
    notebook.write_text("# %% [markdown]\n# # Title\n#\n# " + "So it goes on. " * 100 + "\n")
    assert 280 < len(render.question(notebook)) <= 300 and render.question(notebook).endswith("on.")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_its_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in tour.read(path).cells if cell.cell_type == "markdown")
    assert broken_links(text, tour.HERE) == []
    page = (render.PAGES / f"{path.stem}.md").read_text("utf-8")
    assert broken_links(page, render.PAGES) == []


def test_a_broken_link_is_seen():
    assert broken_links("[a](render.py) [b](nowhere.py#L3) [c](https://x.org/y)", tour.HERE) == ["nowhere.py"]


def test_the_pages_are_small():
    sizes = {file.name: file.stat().st_size for file in render.PAGES.iterdir()}
    assert {name: size for name, size in sizes.items() if size >= PAGE_BYTES} == {}
    assert sum(sizes.values()) < ALL_BYTES


def test_a_failing_assert_fails(tmp_path):
    path = tmp_path / "01_wrong.py"
    path.write_text("# %%\nassert 1 + 1 == 3, 'arithmetic'\n")
    with pytest.raises(CellExecutionError, match="arithmetic"):
        tour.execute(path)


def test_a_cell_that_does_not_end_is_stopped(tmp_path):
    path = tmp_path / "01_slow.py"
    path.write_text("# %%\nimport time\n\ntime.sleep(60)\n")
    with pytest.raises(CellTimeoutError):
        tour.execute(path, cell_seconds=1)


def test_what_a_page_shows_of_an_output():
    page = render.Page()
    outputs = [
        nbformat.v4.new_output("stream", text="\x1b[31mred\x1b[0m\n"),
        nbformat.v4.new_output(
            "display_data", {"image/svg+xml": "<?xml version='1'?>\n<svg/>", "text/plain": "<Figure>"}
        ),
        nbformat.v4.new_output("display_data", {"image/png": "AAEC", "text/plain": "<Figure>"}),
        nbformat.v4.new_output("display_data", {"text/markdown": "| a |\n|---|", "text/plain": "object"}),
        nbformat.v4.new_output("execute_result", {"text/plain": "42"}),
    ]
    for output in outputs:
        render.add_output(page, output, "01_x", "A heading")
    assert page.pictures == {"01_x_1.svg": b"<svg/>\n", "01_x_2.png": b"\x00\x01\x02"}
    shown = [
        "```text\nred\n```",
        "![A heading](01_x_1.svg)",
        "![A heading](01_x_2.png)",
        "| a |\n|---|",
        "```text\n42\n```",
    ]
    assert [part for part in shown if part not in page.text] == []
    assert "Figure" not in page.text


def test_text_that_was_printed_in_parts_is_one_block():
    """Where the parts end is a matter of time: a page would be another one every day."""
    warning = nbformat.v4.new_output("stream", name="stderr", text="a library will change\n")
    parts = [nbformat.v4.new_output("stream", text="one\n"), warning, nbformat.v4.new_output("stream", text="two\n")]
    value = nbformat.v4.new_output("execute_result", {"text/plain": "3"})
    assert [output.get("text") for output in render.merged([*parts, value, *parts])] == [
        "one\ntwo\n",
        None,
        "one\ntwo\n",
    ]
    assert parts[0].text == "one\n"


def test_a_page_leads_to_the_same_files_as_its_notebook():
    text = "[a](../spanbert/cli.py), [b](02_masks.py)"
    assert render.relinked(text) == "[a](../../spanbert/cli.py), [b](02_masks.md)"


def test_the_file_for_jupyter_is_written_once_and_a_readers_changes_stay(tmp_path, capsys):
    source = Path(shutil.copy(NOTEBOOKS[0], tmp_path))
    target = tour.write_ipynb(source)
    assert [cell.source for cell in nbformat.read(target, 4).cells] == [cell.source for cell in tour.read(source).cells]
    notebook = nbformat.read(target, 4)
    notebook.cells[0].source = "my notes"
    nbformat.write(notebook, target)
    assert nbformat.read(tour.write_ipynb(source), 4).cells[0].source == "my notes"
    assert "is left as it is" in capsys.readouterr().out


def test_no_such_notebook_is_one_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "notebooks.render", "99"], cwd=tour.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.strip() == "no notebook's name begins with 99"
