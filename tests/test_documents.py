"""The files that the pages for readers of the code name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "docs/architecture.md")


def named_files(page: str) -> set[str]:
    """Paths in code spans and links, from the project's root; `NAME` stands for something still to be named."""
    spans = re.findall(r"`([\w./]+\.(?:py|md|txt|toml))`", page) + re.findall(r"\]\(([\w./]+)\)", page)
    return {span for span in spans if "/" in span and "NAME" not in span.split("/")[-2] + span.split("/")[-1]}


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_a_page_names_is_there(name):
    files = named_files((ROOT / name).read_text(encoding="utf-8"))
    assert len(files) > 20
    assert sorted(file for file in files if not (ROOT / file).is_file()) == []


def test_names_of_files_are_seen():
    page = "See `spanbert/cli.py`, [that](docs/kernels.md), `kernels/NAME_kernel.py`, `config.json` and `finetune/tasks/NAME/`."
    assert named_files(page) == {"spanbert/cli.py", "docs/kernels.md"}
