"""Records that strangers wrote: read as data, within limits, and shown without their effects.

Python's own JSON reader takes NaN, Infinity, a key twice and any size; a record that others decide
by holds none of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from hf_align.types import InputError

MOST_BYTES = 16 * 2**20
"""Largest record that is read; a report with its samples has a few hundred kilobytes."""

_DEEPEST = 64


def read_record(path: Path, label: str, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a JSON file of someone else's.

    Args:
        path: The file.
        label: How messages call it.
        most_bytes: Larger files are not opened.

    Raises:
        InputError: Too large, not JSON, no object, nested too deeply, a key twice, or a number that
            is NaN or infinite.
    """
    record = _read(path, label, most_bytes)
    if not isinstance(record, dict):
        raise InputError(f"{label} is damaged: it holds a {type(record).__name__}, not an object")
    return record


def read_list(path: Path, label: str, most_bytes: int = MOST_BYTES) -> list[Any]:
    """The list in a JSON file of someone else's. Arguments and errors as `read_record`."""
    record = _read(path, label, most_bytes)
    if not isinstance(record, list):
        raise InputError(f"{label} is damaged: it holds a {type(record).__name__}, not a list")
    return record


def _read(path: Path, label: str, most_bytes: int) -> Any:
    check_size(label, path.stat().st_size, most_bytes)
    try:
        return parse_record(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        why = f"it is not JSON ({one_line(error)}); copy it again"
        raise InputError(f"{label} is damaged: {why}") from error
    except RecursionError as error:
        raise InputError(f"{label} is refused: it is nested more than {_DEEPEST} deep") from error
    except ValueError as error:
        raise InputError(f"{label} is refused: {one_line(error)}") from error


def parse_record(text: str) -> Any:
    """A JSON value without anything that JSON does not have.

    Raises:
        ValueError: NaN, an infinite number, a key twice, or values nested more than 64 deep.
    """
    record = json.loads(
        text, parse_constant=_refuse_number, parse_float=_finite, object_pairs_hook=_distinct
    )
    layer = [record]
    for _ in range(_DEEPEST):
        layer = [inner for value in layer for inner in _inside(value)]
        if not layer:
            return record
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_number(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"it holds {digits[:40]}, which is no finite number")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {twice[:40]!r} twice")
    return record


def check_size(label: str, size: int | None, most_bytes: int = MOST_BYTES) -> None:
    """Refuses a record that is too large to be one, before it is downloaded or opened.

    Raises:
        InputError: It has more bytes.
    """
    if size is not None and size > most_bytes:
        raise InputError(
            f"{label} is refused: {size:,} bytes, and no such record has over {most_bytes:,}"
        )


def is_plain_path(name: object) -> bool:
    """Whether a path that someone else wrote stays below the folder that it is relative to."""
    if not isinstance(name, str) or not name or not name.isprintable():
        return False
    path = PurePosixPath(name)
    strange = "\\" in name or ":" in path.parts[0] if path.parts else True
    return not (strange or path.is_absolute() or ".." in path.parts)


def check_paths(names: Iterable[object], label: str) -> None:
    """Refuses a list of files with one that would lie elsewhere.

    Raises:
        InputError: Names the first such path.
    """
    for name in names:
        if not is_plain_path(name):
            raise InputError(
                f"{label} is refused: it lists the file {str(name)[:80]!r}, which would lie "
                "outside its folder"
            )


def one_line(text: object, width: int = 240) -> str:
    """Any text as one printable line: a terminal shows it and does nothing else."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return line if len(line) <= width else line[:width] + "…"
