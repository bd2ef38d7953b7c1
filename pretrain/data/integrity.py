"""Whether a prepared corpus is still what was written: sizes whenever it is opened, hashes when asked for.

Arrow files are mapped, not read, so damage to them shows nowhere by itself: a page of zeros is a text of [PAD].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spanbert.errors import UserError
from spanbert.integrity import described_files, find_damage

#: A corpus below this size is read and compared with its hashes when a training run starts: a few seconds.
QUICK_BYTES = 1_000_000_000


def files_of(folder: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a corpus's settings say of its files; those of old corpora say nothing. Raises UserError for damaged ones."""
    return described_files(settings.get("files", {}), f"{folder}/prepare.json")


def check_sizes(folder: Path, settings: dict[str, Any], split: str) -> None:
    """Raise UserError when a file of folder/split is missing or of another size. Old corpora say nothing about it."""
    files = {name: file for name, file in files_of(folder, settings).items() if name.startswith(f"{split}/")}
    if damage := find_damage(folder, files, read=False):
        raise UserError(f"{damage}: the corpus is damaged; copy it again or prepare it again with --overwrite")


def check_counts(folder: Path, settings: dict[str, Any], split: str, blocks: int, tokens: int) -> None:
    """Raise UserError when a split holds other numbers of blocks or tokens than its preparation wrote down."""
    report = settings.get("report", {})
    held_out = report.get("held_out", {}) if isinstance(report, dict) else {}
    if not isinstance(held_out, dict):
        raise UserError(f'{folder}/prepare.json is damaged: "held_out" must be an object; prepare it again')
    for what, found in (("blocks", blocks), ("tokens", tokens)):
        expected = held_out.get(f"{split}_{what}", found)
        if found != expected:
            raise UserError(
                f"{folder / split} holds {found:,} {what}, but prepare.json says {expected}: it is damaged or of another "
                "corpus; copy it again or prepare it again with --overwrite"
            )


def check_hashes(folder: Path, settings: dict[str, Any], *, at_most: int | None = None) -> None:
    """Read all files and raise UserError when one is not as it was written. at_most: not if they are larger (bytes)."""
    files = files_of(folder, settings)
    if at_most is not None and sum(file["bytes"] for file in files.values()) > at_most:
        return
    if damage := find_damage(folder, files, read=True):
        raise UserError(f"{damage}: the corpus is damaged; copy it again or prepare it again with --overwrite")
