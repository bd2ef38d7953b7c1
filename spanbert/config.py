"""Configurations are frozen dataclasses, JSON both ways, strict about their keys."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing
from pathlib import Path
from typing import Any, TypeVar, get_origin

from spanbert.errors import UserError
from spanbert.files import RECORDS_BYTES, SETTINGS_BYTES, read_bounded, write_atomic

T = TypeVar("T")

#: The types that ``check_types`` checks, in words.
WORDS_FOR = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types: paths become strings, nested dataclasses dictionaries."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(cls: type[T], values: dict[str, Any], source: str = "the configuration") -> T:
    """The opposite of ``to_dict``. A key that ``cls`` lacks is fatal: it is a typing error or another version's file.

    Raises UserError, naming ``source`` and the key, for that, for a value of another type or out of range, and for a
    key without a default that is missing.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected a JSON object with the keys of {cls.__name__}, not {kind_of(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"{source}: unknown key {unknown[0]!r}; {cls.__name__} knows {', '.join(sorted(fields))}")
    hints = _type_hints(cls)  # type: ignore[arg-type]
    arguments = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            value = from_dict(kind, value, f"{source}: {name}")  # type: ignore[arg-type]
        elif isinstance(value, str) and kind in (Path, Path | None):
            value = Path(value)
        elif isinstance(value, list) and "tuple" in str(kind):
            value = tuple(Path(item) if "Path" in str(kind) else item for item in value)
        elif dataclasses.is_dataclass(kind) and not isinstance(value, kind):  # type: ignore[arg-type]
            raise UserError(f"{source}: {name} is {kind_of(value)}, expected an object")
        elif get_origin(kind) is tuple and not isinstance(value, tuple):
            raise UserError(f"{source}: {name} is {kind_of(value)}, expected a list")
        arguments[name] = value
    absent = [
        field.name
        for field in fields.values()
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if absent:
        raise UserError(f"{source}: lacks the key {absent[0]!r}")
    try:
        for name, value in arguments.items():
            check_type(name, value, hints[name])
        return cls(**arguments)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def save_json(config: Any, path: Path) -> None:
    """Write a dataclass (or plain dictionary) as indented JSON, atomically."""
    values = to_dict(config) if dataclasses.is_dataclass(config) else config
    write_atomic(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, limit: int = SETTINGS_BYTES) -> Any:
    """Read a JSON file of at most ``limit`` bytes, with or without a byte-order mark.

    Raises UserError, naming file and place, when it is missing, unreadable or broken.
    """
    try:
        return json.loads(read_bounded(path, limit, "a JSON file").decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); it may have been cut off") from None


def read_json_object(path: Path, content: str) -> dict[str, Any]:
    """``read_json`` of a file that must be one object; ``content`` says of what. Raises UserError when it is not."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object with {content}, not {kind_of(values)}")
    return values


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; lines that are none (one cut off by a crash) are passed over.

    A file that is not there has none. Raises UserError where one cannot be read.
    """
    records = []
    data = read_bounded(path, RECORDS_BYTES, "a file of JSON lines") if path.exists() else b""
    for line in data.decode("utf-8-sig", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def load_json(cls: type[T], path: Path) -> T:
    """Read a dataclass from a JSON file; unknown keys are fatal."""
    return from_dict(cls, read_json(path), str(path))


def check_types(config: Any) -> None:
    """Every plain field of a dataclass holds a value of its type: for ``__post_init__``, where JSON may have come in.

    An integer will do for a float, nothing else for anything else. Raises UserError that names the field.
    """
    for name, kind in _type_hints(type(config)).items():  # type: ignore[arg-type]
        check_type(name, getattr(config, name), kind)


def check_type(name: str, value: Any, kind: Any) -> None:
    """The same for one value; kinds other than numbers, strings and truth values are not looked at."""
    if kind == tuple[float, ...]:
        if not isinstance(value, tuple):
            raise UserError(f"{name} is {value!r}: expected a list of numbers")
        for one in value:
            check_type(name, one, float)
    if kind not in WORDS_FOR:
        return
    good = type(value) in ((int, float) if kind is float else (kind,))
    if not good or (kind is float and not is_finite(value)):
        raise UserError(f"{name} is {value!r}: expected {WORDS_FOR[kind]}")


def check_range(config: Any, low: float, high: float, *names: str, above: bool = False, below: bool = False) -> None:
    """``low`` ≤ value ≤ ``high`` (``above``: > ``low``; ``below``: < ``high``) for the fields named; None passes.

    Infinity and what is not a number never do. Raises UserError that names the field.
    """
    for name in names:
        value = getattr(config, name)
        if value is None or (
            low <= value <= high and is_finite(value) and not (above and value == low) and not (below and value == high)
        ):
            continue
        least = f"above {low}" if above else f"at least {low}"
        limits = least if high == math.inf else f"{'above ' * above}{low} to {'below ' * below}{high}"
        raise UserError(f"{name} is {value!r}: expected {limits}")


def is_finite(number: float) -> bool:
    """Whether a float can hold it: an integer of JSON or of an option may be too large."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)
