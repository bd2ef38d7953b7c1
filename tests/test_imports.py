"""Who may import whom, read from the source with ``ast``: nothing is imported, so a broken module cannot hide a broken rule.

Every rule is a function from a source tree to a list of sentences, one for each import that breaks it. The rules are
held against the project, and against small made-up trees that break them, so that a rule that sees nothing is noticed.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: a package → the packages of this project that it may import besides itself
LAYERS = {
    "kernels": (),
    "spanbert": ("kernels",),
    "pretrain": ("spanbert",),
    "finetune": ("spanbert",),
    "web": ("spanbert", "pretrain", "finetune"),
    "benchmarks": ("kernels", "spanbert", "pretrain", "finetune", "web"),
}
#: the command line names the stages' modules in a table and imports one when its command is called
COMMAND_LINE = "spanbert.cli"
#: modules that name others of upper layers in strings, to import them when they are asked for: `spanbert.pipeline` too
LATE = (COMMAND_LINE, "spanbert")
#: the one module of spanbert that imports kernels
KERNELS_USER = "spanbert.model.backend"
KERNELS_NEED = ("torch", "triton")
#: packages that `spanbert ask` must not wait for: each takes from 0.2 s to several seconds to import
HEAVY = (
    "datasets",
    "matplotlib",
    "pandas",
    "scipy",
    "tensorboard",
    "torch.distributed.checkpoint",
    "transformers",
    "wandb",
)
ASK = "finetune.tasks.qa.ask"


@dataclass(frozen=True)
class Import:
    """One imported module: ``module`` (dotted, of this project) imports ``target`` (dotted, absolute) on ``line``."""

    module: str
    target: str
    line: int
    lazy: bool  # inside a function, or only for type checkers: not done when the module is imported

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}: {self.target}"

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


@dataclass(frozen=True)
class Tree:
    """The project's modules and what they import."""

    files: dict[str, Path]  # dotted name → file; a package is named as itself
    imports: tuple[Import, ...]
    strings: tuple[Import, ...]  # strings that name a module of the project, as ``import_module`` takes them

    @classmethod
    def read(cls, root: Path) -> Tree:
        files = {}
        for path in sorted(path for layer in LAYERS for path in (root / layer).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        imports, strings = [], []
        for name, path in files.items():
            syntax = ast.parse(path.read_text(encoding="utf-8"), str(path))
            for node, lazy in _walk(syntax, False):
                if isinstance(node, ast.Constant):
                    if isinstance(node.value, str) and node.value in files:
                        strings.append(Import(name, node.value, node.lineno, True))
                    continue
                targets = _targets(node, name, path.name == "__init__.py", files)
                imports += [Import(name, target, node.lineno, lazy) for target in targets]
        return cls(files, tuple(imports), tuple(strings))

    def reached(self, module: str) -> Iterator[tuple[Import, ...]]:
        """Chains of imports that happen when ``module`` is imported, each ending with a module outside the project."""
        chains: list[tuple[Import, ...]] = [()]
        seen = set()
        while chains:
            chain = chains.pop()
            here = chain[-1].target if chain else module
            # importing a.b.c also runs a and a.b
            for name in (".".join(here.split(".")[:n]) for n in range(1, here.count(".") + 2)):
                if name in seen:
                    continue
                seen.add(name)
                for one in self.imports:
                    if one.module == name and not one.lazy:
                        if one.top in LAYERS:
                            chains.append((*chain, one))
                        else:
                            yield (*chain, one)


def _walk(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom | ast.Constant, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom | ast.Constant):
            yield child, lazy
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), True)
            for statement in child.orelse:
                yield from _walk(ast.Module([statement], []), lazy)
        else:
            yield from _walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def _targets(node: ast.Import | ast.ImportFrom, module: str, is_package: bool, files: dict[str, Path]) -> Iterable[str]:
    """``from a.b import c`` is an import of a.b.c where that is a module, and of a.b where c is something in it."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parents = module.split(".")
        parents = parents[: len(parents) - node.level + is_package]
        base = ".".join([*parents, *([base] if base else [])])
    named = [f"{base}.{alias.name}" for alias in node.names]
    if base.partition(".")[0] not in LAYERS:
        return sorted({base, *named})  # outside, a name may be a module or not: `from torch import distributed`
    return sorted({name if name in files else base for name in named})


def against_the_layers(tree: Tree) -> list[str]:
    """Imports, and names of modules in strings, of a layer that the importing one must not know."""
    wrong = []
    for one in (*tree.imports, *(s for s in tree.strings if s.module not in LATE)):
        layer = one.module.partition(".")[0]
        if one.top in LAYERS and one.top not in (layer, *LAYERS[layer]):
            wrong.append(f"{one}: {layer} does not know {one.top}")
    return wrong


def uses_of_kernels(tree: Tree) -> list[str]:
    """Where the model takes its kernels: the modules of spanbert that import kernels, one entry an import."""
    return [one.module for one in tree.imports if one.module.startswith("spanbert") and one.top == "kernels"]


def needs_of_kernels(tree: Tree) -> list[str]:
    """What kernels imports besides itself, torch, triton and the standard library."""
    allowed = {"kernels", *KERNELS_NEED, *sys.stdlib_module_names}
    return [str(one) for one in tree.imports if one.module.partition(".")[0] == "kernels" and one.top not in allowed]


def circles(tree: Tree) -> list[set[str]]:
    """Groups of modules that import one another, imports inside functions and for type checkers included."""
    graph: dict[str, set[str]] = {name: set() for name in tree.files}
    for one in tree.imports:
        if one.target in graph and one.target != one.module:
            graph[one.module].add(one.target)
    found: list[set[str]] = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return found
        except CycleError as error:
            circle: list[str] = error.args[1]
            found.append(set(circle))
            for imported, module in pairwise(circle):
                graph[module].discard(imported)


def heavy_faces(tree: Tree) -> list[str]:
    """What the packages' ``__init__`` import, at once or through others, beyond the standard library.

    The face of kernels offers its ops, which are torch's: it is the one that is left out.
    """
    faces = [
        name for name, path in tree.files.items() if path.name == "__init__.py" and name.split(".")[0] != "kernels"
    ]
    return [
        " → ".join(map(str, chain))
        for face in faces
        for chain in tree.reached(face)
        if chain[-1].top not in sys.stdlib_module_names
    ]


def heavy_imports(tree: Tree, module: str, heavy: Iterable[str]) -> list[str]:
    """Chains of imports from ``module`` to one of the packages ``heavy``."""
    pattern = re.compile("|".join(rf"{re.escape(name)}(\.|$)" for name in heavy))
    return [" → ".join(map(str, chain)) for chain in tree.reached(module) if pattern.match(chain[-1].target)]


@pytest.fixture(scope="module")
def project() -> Tree:
    return Tree.read(ROOT)


def test_the_project_is_read(project):
    """A rule over an empty tree holds for ever."""
    assert {name.partition(".")[0] for name in project.files} >= LAYERS.keys() - {"web"}
    assert "spanbert.model.encoder" in project.files and "spanbert.model" in project.files
    known = {(one.module, one.target) for one in project.imports}
    assert ("spanbert.model.encoder", "torch") in known
    assert ("spanbert.model.encoder", "spanbert.model.config") in known


def test_a_package_imports_only_the_packages_below_it(project):
    assert against_the_layers(project) == []


def test_the_command_line_names_the_stages_and_imports_them_late(project):
    named = {one.top for one in project.strings if one.module == COMMAND_LINE}
    assert named >= {"pretrain", "finetune"}
    eager = [one for one in project.imports if one.module == COMMAND_LINE and not one.lazy]
    assert [str(one) for one in eager if one.top not in ("spanbert", *sys.stdlib_module_names)] == []


def test_the_model_takes_its_kernels_in_one_place(project):
    assert uses_of_kernels(project) == [KERNELS_USER]


def test_kernels_need_torch_and_triton_alone(project):
    assert needs_of_kernels(project) == []


def test_no_modules_import_one_another(project):
    assert circles(project) == []


def test_package_faces_are_light(project):
    assert heavy_faces(project) == []


def test_asking_waits_for_no_heavy_package(project):
    assert ASK in project.files
    assert heavy_imports(project, ASK, HEAVY) == []


@pytest.fixture
def tree(tmp_path):
    """tree({"kernels/a.py": source, …}) → the tree of those files, with an empty ``__init__.py`` where there is none."""

    def make(sources: dict[str, str]) -> Tree:
        for name, source in sources.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
            for parent in path.parents:
                if parent != tmp_path and parent.is_relative_to(tmp_path) and not (parent / "__init__.py").exists():
                    (parent / "__init__.py").write_text("")
        return Tree.read(tmp_path)

    return make


@pytest.mark.parametrize(
    "file, source",
    [
        ("kernels/a.py", "from spanbert.model import heads"),
        ("spanbert/a.py", "import pretrain.data"),
        ("spanbert/a.py", "def f():\n    from finetune import train"),
        ("spanbert/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import finetune"),
        ("spanbert/a.py", "try:\n    import benchmarks\nexcept ImportError:\n    pass"),
        ("spanbert/a.py", "TABLE = {'b': ('pretrain.b', 1)}"),
        ("spanbert/cli.py", "def main():\n    import pretrain.b"),
        ("pretrain/b.py", "from finetune.train import x"),
        ("finetune/a.py", "import pretrain.b"),
        ("finetune/tasks/qa/a.py", "import kernels.attention"),
        ("pretrain/b.py", "import web"),
        ("web/a.py", "import benchmarks.kernels"),
    ],
)
def test_a_wrong_layer_is_seen(tree, file, source):
    made = tree({"pretrain/b.py": "", file: source})
    (wrong,) = against_the_layers(made)
    assert wrong.startswith(file.removesuffix(".py").replace("/", ".") + ", line ")


def test_right_layers_are_let_through(tree):
    made = tree(
        {
            "kernels/a.py": "from . import b\nimport torch",
            "kernels/b.py": "",
            "spanbert/cli.py": "TABLE = {'b': ('pretrain.b', 1)}\nNOT_A_MODULE = 'pretrain.nothing'",
            "spanbert/model.py": "import kernels\nfrom spanbert import cli",
            "pretrain/b.py": "from spanbert.model import x\n'''About finetune.a.'''",
            "finetune/a.py": "from .c import x\nfrom spanbert import model",
            "finetune/c.py": "",
            "web/a.py": "import pretrain.b, finetune.a",
            "benchmarks/a.py": "import kernels.a, finetune.a, web.a",
        }
    )
    assert against_the_layers(made) == []
    assert ("kernels.a", "kernels.b") in {(one.module, one.target) for one in made.imports}


def test_a_second_use_of_kernels_is_seen(tree):
    sources = {"spanbert/model/backend.py": "def f():\n    import kernels"}
    assert uses_of_kernels(tree(sources)) == ["spanbert.model.backend"]
    assert len(uses_of_kernels(tree({**sources, "spanbert/other.py": "from kernels.gelu import bias_gelu"}))) == 2


def test_another_need_of_kernels_is_seen(tree):
    assert needs_of_kernels(tree({"kernels/a.py": "import os, torch\nfrom triton import language as tl"})) == []
    assert needs_of_kernels(tree({"kernels/a.py": "import torch\ndef f():\n    import numpy as np"})) == [
        "kernels.a, line 3: numpy"
    ]


def test_circles_are_seen(tree):
    made = tree(
        {
            "spanbert/a.py": "from spanbert import b",
            "spanbert/b.py": "def f():\n    from .c import x",
            "spanbert/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from spanbert.a import y",
            "spanbert/d.py": "import spanbert.a",
            "finetune/e.py": "import finetune.f",
            "finetune/f.py": "import finetune.e",
        }
    )
    found = sorted(map(sorted, circles(made)))
    assert found == [["finetune.e", "finetune.f"], ["spanbert.a", "spanbert.b", "spanbert.c"]]
    assert circles(tree({"spanbert/c.py": "", "finetune/f.py": ""})) == []


def test_a_heavy_face_is_seen(tree):
    sources = {
        "finetune/tasks/__init__.py": "from spanbert import errors\n\ndef f():\n    import datasets",
        "spanbert/errors.py": "import json",
    }
    assert heavy_faces(tree(sources)) == []
    (wrong,) = heavy_faces(tree({**sources, "spanbert/errors.py": "import json, torch"}))
    assert wrong == "finetune.tasks, line 1: spanbert.errors → spanbert.errors, line 1: torch"


def test_a_heavy_import_on_the_way_is_seen(tree):
    """Also through the ``__init__`` of a package on the way, and where a name is imported from a package."""
    sources = {
        "finetune/a.py": "from spanbert.training.b import x\nfrom datasets_of_mine import y",
        "spanbert/training/b.py": "import torch\ndef f():\n    import matplotlib.pyplot",
    }
    assert heavy_imports(tree(sources), "finetune.a", HEAVY) == []
    wrong = heavy_imports(
        tree({**sources, "spanbert/training/b.py": "from torch.distributed import checkpoint"}), "finetune.a", HEAVY
    )
    assert len(wrong) == 1 and wrong[0].endswith("spanbert.training.b, line 1: torch.distributed.checkpoint")
    made = tree({**sources, "spanbert/training/b.py": "", "spanbert/training/__init__.py": "import matplotlib.pyplot"})
    assert len(heavy_imports(made, "finetune.a", HEAVY)) == 1
