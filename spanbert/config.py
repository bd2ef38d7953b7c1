"""Configurations are frozen dataclasses, JSON both ways, strict about their keys."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from spanbert.errors import UserError
from spanbert.files import write_atomic

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types: paths become strings, nested dataclasses dictionaries."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(cls: type[T], values: dict[str, Any], source: str = "the configuration") -> T:
    """The opposite of ``to_dict``. A key that ``cls`` lacks is fatal: it is a typing error or another version's file."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"{source}: unknown key {unknown[0]!r}; {cls.__name__} knows {', '.join(sorted(fields))}")
    hints = _type_hints(cls)
    arguments = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            value = from_dict(kind, value, f"{source}: {name}")  # type: ignore[arg-type]
        elif isinstance(value, str) and kind in (Path, Path | None):
            value = Path(value)
        elif isinstance(value, list) and "tuple" in str(kind):
            value = tuple(Path(item) if "Path" in str(kind) else item for item in value)
        arguments[name] = value
    return cls(**arguments)


def save_json(config: Any, path: Path) -> None:
    """Write a dataclass (or plain dictionary) as indented JSON, atomically."""
    values = to_dict(config) if dataclasses.is_dataclass(config) else config
    write_atomic(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError, naming file and place, when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); it may have been cut off") from None


def load_json(cls: type[T], path: Path) -> T:
    """Read a dataclass from a JSON file; unknown keys are fatal."""
    return from_dict(cls, read_json(path), str(path))


def _type_hints(cls: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls)
