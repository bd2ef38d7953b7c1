"""Our JavaScript modules as one script: pages opened from a file may not import another file.

Each module becomes a function's scope that returns what it exports, in the order in which they import one another. Only
the forms of import and export that our modules use are known; any other raises, so nothing is dropped unseen.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_NAME = r"[A-Za-z_$][\w$]*"
_NAMES = r"\{(?P<names>[\s\w$,]*)\}"
_SOURCE = r"""(?P<quote>["'])(?P<source>\.\.?/[\w./-]+\.js)(?P=quote)\s*;"""
IMPORT = re.compile(rf"^import\s+(?:{_NAMES}|\*\s+as\s+(?P<whole>{_NAME}))\s+from\s+{_SOURCE}[ \t]*$", re.MULTILINE)
EXPORT_DECLARED = re.compile(
    rf"^export\s+(?=(?:async\s+)?(?:function\*?|class|const|let)\s+(?P<name>{_NAME}))", re.MULTILINE
)
EXPORT_NAMES = re.compile(rf"^export\s+{_NAMES}\s*;[ \t]*$", re.MULTILINE)
#: What would still be an import or export once the known forms are gone.
UNKNOWN = re.compile(r"^\s*(?:import\b(?!\.meta)|export\b).*|\bimport\s*\(.*|\bimport\.meta\b.*", re.MULTILINE)
CLOSES = re.compile(r"</script|<!--", re.IGNORECASE)  # ends a script element, or turns what follows into a comment


class BundleError(Exception):
    """A module that cannot be bundled: a mistake in our own files."""


@dataclass
class _Module:
    name: str
    body: str
    imports: list[str] = field(default_factory=list)


def bundle(modules: Mapping[str, str], entry: str) -> str:
    """One script from ``modules`` (file name → text): ``entry`` and all that it imports, each run once.

    Raises BundleError on an import of a module that is not there or imports in a circle, and on a form it does not know.
    """
    order: list[_Module] = []
    _visit(modules, entry, (), order)
    numbers = {module.name: number for number, module in enumerate(order)}
    parts = []
    for number, module in enumerate(order):
        body = re.sub(r"\0(.+?)\0", lambda match: f"module{numbers[match[1]]}", module.body)
        parts.append(f"// --- {module.name}\nconst module{number} = (() => {{\n{body.strip()}\n}})();\n")
    return f'"use strict";\n{{\n{"".join(parts)}}}\n'  # a block of its own: several bundles may stand on a page


def _visit(modules: Mapping[str, str], name: str, importers: tuple[str, ...], order: list[_Module]) -> None:
    if name in importers:
        raise BundleError(f"{' → '.join((*importers, name))}: modules that import one another cannot be bundled")
    if name not in modules:
        raise BundleError(
            f"{importers[-1] if importers else 'the page'} imports {name}, which is not among the modules"
        )
    if any(module.name == name for module in order):
        return
    module = _rewritten(name, modules[name])
    for imported in module.imports:
        _visit(modules, imported, (*importers, name), order)
    order.append(module)


def _rewritten(name: str, text: str) -> _Module:
    """The module with its imports as constants (a module's number, not known yet, between NULs) and its exports returned."""
    module = _Module(name, "")
    exports: dict[str, str] = {}

    def imported(match: re.Match[str]) -> str:
        source = posixpath.normpath(posixpath.join(posixpath.dirname(name), match["source"]))
        module.imports.append(source)
        if match["whole"]:
            return f"const {match['whole']} = \0{source}\0;"
        pairs = [f"{theirs}: {ours}" if ours != theirs else ours for theirs, ours in _names(name, match["names"])]
        return f"const {{ {', '.join(pairs)} }} = \0{source}\0;"

    def exported(match: re.Match[str]) -> str:
        exports.update({theirs: ours for ours, theirs in _names(name, match["names"])})
        return ""

    def declared(match: re.Match[str]) -> str:
        exports[match["name"]] = match["name"]
        return ""

    body = EXPORT_DECLARED.sub(declared, EXPORT_NAMES.sub(exported, IMPORT.sub(imported, text)))
    left = UNKNOWN.search(body)
    if left:
        raise BundleError(f"{name}: cannot bundle {left[0].strip()!r}")
    if CLOSES.search(body):
        raise BundleError(f"{name}: {CLOSES.search(body)[0]!r} would end the page's script")  # type: ignore[index]
    listed = ", ".join(f"{theirs}: {ours}" if ours != theirs else ours for theirs, ours in exports.items())
    module.body = f"{body.strip()}\nreturn {{ {listed} }};"
    return module


def _names(module: str, listed: str) -> list[tuple[str, str]]:
    """``a, b as c`` → (a, a), (b, c)."""
    pairs = []
    for item in filter(None, map(str.strip, listed.split(","))):
        match = re.fullmatch(rf"({_NAME})(?:\s+as\s+({_NAME}))?", item)
        if match is None:
            raise BundleError(f"{module}: cannot bundle the name {item!r}")
        pairs.append((match[1], match[2] or match[1]))
    return pairs
