"""Whether files are still what was written: their sizes and hashes, kept in a file that is written last."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spanbert.errors import UserError
from spanbert.files import sha256


def describe_files(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of files, by their path within the folder."""
    described = {}
    for path in sorted(files):
        described[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return described


def described_files(value: Any, source: str) -> dict[str, dict[str, Any]]:
    """What ``describe_files`` gave, as a JSON file has it. Raises UserError that names ``source`` when it is not that."""
    if not isinstance(value, dict) or not all(_is_description(one) for one in value.values()):
        raise UserError(f'{source} is damaged: "files" must give bytes and sha256 of each file')
    return value


def _is_description(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("bytes")) is int and isinstance(value.get("sha256"), str)


def find_damage(folder: Path, described: dict[str, dict[str, Any]], *, read: bool) -> str | None:
    """What is wrong with the first file that differs from its description, or None. read: compare hashes, too."""
    for name, expected in described.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{path} is missing"
        except ValueError:  # a name that no file can have
            return f"a file called {name!r} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{path} has {path.stat().st_size:,} bytes, expected {expected['bytes']:,}"
        if read and sha256(path) != expected["sha256"]:
            return f"{path} holds other bytes than were written"
    return None
