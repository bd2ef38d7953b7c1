"""The tour's notebooks as Jupyter wants them: read from their Python files, executed, opened.

    python -m notebooks.tour        (make tour)

writes an .ipynb file beside each Python file and opens Jupyter, where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
ROOT = HERE.parent
#: No cell of the tour should come near it, on a slow machine either.
CELL_SECONDS = 300
JUPYTERS = ("jupyterlab", "notebook")


def sources() -> list[Path]:
    """The notebooks' Python files, in the order of the tour."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def read(path: Path) -> NotebookNode:
    """A notebook without outputs."""
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # or every reading would be another file
    return notebook


def execute(path: Path, cell_seconds: int = CELL_SECONDS) -> NotebookNode:
    """The notebook with its outputs, from a fresh process on one core; pictures are SVG.

    Raises nbclient's CellExecutionError where a cell fails, CellTimeoutError where one takes longer than ``cell_seconds``.
    """
    notebook = read(path)
    unwanted = ("MPLBACKEND", "MATPLOTLIBRC", "TRITON_INTERPRET")  # each would change what the notebook shows
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    client = NotebookClient(
        notebook,
        timeout=cell_seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}},
        extra_arguments=[
            "--log-level=ERROR",  # no word on sockets that only this process knows
            "--HistoryManager.enabled=False",
            "--InlineBackend.figure_formats={'svg'}",
            "--InlineBackend.print_figure_kwargs={'bbox_inches': 'tight', 'metadata': {'Date': None}}",
        ],
    )
    client.execute(env=environment)
    return notebook


def write_ipynb(path: Path) -> Path:
    """The notebook as an .ipynb file beside its Python file. One that a reader has changed stays as it is."""
    notebook, target = read(path), path.with_suffix(".ipynb")
    if target.exists():
        there = nbformat.read(target, as_version=4)
        if [cell.source for cell in there.cells] != [cell.source for cell in notebook.cells]:
            print(f"{target.name} differs from {path.name} and is left as it is: delete it to have it anew")
        return target
    nbformat.write(notebook, target)
    return target


def main() -> None:
    """Write the .ipynb files, then open Jupyter or say what to install."""
    for path in sources():
        write_ipynb(path)
    found = [name for name in JUPYTERS if importlib.util.find_spec(name)]
    if not found:
        print(
            f"The notebooks are in {HERE}: open the .ipynb files in an editor that knows them, with the Python {sys.executable}."
        )
        print(
            f"To have them in the browser, install Jupyter ({sys.executable} -m pip install notebook) and run this again."
        )
        return
    sys.exit(subprocess.run([sys.executable, "-m", found[0], str(HERE)], check=False).returncode)


if __name__ == "__main__":
    main()
