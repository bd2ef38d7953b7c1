"""Whether a prepared corpus is still what was written: sizes whenever it is opened, hashes when asked for.

Arrow files are mapped, not read, so damage to them shows nowhere by itself: a page of zeros is a text of [PAD].
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spanbert.errors import UserError
from spanbert.files import sha256

#: A corpus below this size is read and compared with its hashes when a training run starts: a few seconds.
QUICK_BYTES = 1_000_000_000


def describe_files(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and sha256 of files, by their path within the folder."""
    described = {}
    for path in sorted(files):
        described[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return described


def find_damage(folder: Path, described: dict[str, dict[str, Any]], *, read: bool) -> str | None:
    """What is wrong with the first file that differs from its description, or None. read: compare hashes, too."""
    for name, expected in described.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{path} has {path.stat().st_size:,} bytes, expected {expected['bytes']:,}"
        if read and sha256(path) != expected["sha256"]:
            return f"{path} holds other bytes than were written"
    return None


def check_sizes(folder: Path, settings: dict[str, Any], split: str) -> None:
    """Raise UserError when a file of folder/split is missing or of another size. Old corpora say nothing about it."""
    files = {name: file for name, file in settings.get("files", {}).items() if name.startswith(f"{split}/")}
    if damage := find_damage(folder, files, read=False):
        raise UserError(f"{damage}: the corpus is damaged; copy it again or prepare it again with --overwrite")


def check_counts(folder: Path, settings: dict[str, Any], split: str, blocks: int, tokens: int) -> None:
    """Raise UserError when a split holds other numbers of blocks or tokens than its preparation wrote down."""
    held_out = settings.get("report", {}).get("held_out", {})
    for what, found in (("blocks", blocks), ("tokens", tokens)):
        expected = held_out.get(f"{split}_{what}", found)
        if found != expected:
            raise UserError(
                f"{folder / split} holds {found:,} {what}, but prepare.json says {expected:,}: it is damaged or of another "
                "corpus; copy it again or prepare it again with --overwrite"
            )


def check_hashes(folder: Path, settings: dict[str, Any], *, at_most: int | None = None) -> None:
    """Read all files and raise UserError when one is not as it was written. at_most: not if they are larger (bytes)."""
    files = settings.get("files", {})
    if at_most is not None and sum(file["bytes"] for file in files.values()) > at_most:
        return
    if damage := find_damage(folder, files, read=True):
        raise UserError(f"{damage}: the corpus is damaged; copy it again or prepare it again with --overwrite")
