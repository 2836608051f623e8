"""Rows of one local file: JSON lines, JSON, CSV (each also gzipped) or Parquet.

JSON is parsed here, line by line, because rows that hold a string where others hold messages have
no Arrow type; and because a damaged file should be named with its line. Nothing is cached.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_align.data.sources import RawRow
from hf_align.types import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")


def data_suffix(name: str) -> str | None:
    """The suffix if it is one that can be read: `.jsonl.gz` of `train.jsonl.gz`."""
    lower = name.lower()
    return next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), None)


def read_rows(path: Path) -> list[RawRow]:
    """All rows of a file.

    Raises:
        InputError: Unknown suffix, empty, not UTF-8, truncated gzip, or malformed content; the
            message names the file and, where there is one, the line.
        OSError: The file cannot be opened.
    """
    suffix = data_suffix(path.name)
    if suffix is None:
        raise InputError(f"cannot read {path}: unknown file type; supported: {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)")
    if suffix == ".parquet":
        rows = _read_parquet(path)
    else:
        read = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
        with _open_bytes(path) as stream:
            rows = read[suffix.removesuffix(".gz")](path, stream)
    if not rows:
        raise InputError(f"{path} is empty: it holds no rows")
    return rows


@contextmanager
def _open_bytes(path: Path) -> Iterator[io.BufferedIOBase]:
    opener: Callable[[Path], io.BufferedIOBase] = (
        gzip.open if path.name.lower().endswith(".gz") else (lambda p: p.open("rb"))
    )  # type: ignore[assignment]
    try:
        with opener(path) as stream:
            yield stream
    except gzip.BadGzipFile as error:
        raise InputError(f"{path} is not a gzip file, or a damaged one ({error})") from error
    except (EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is a truncated or damaged gzip file ({error}); copy it again"
        ) from error


def _read_jsonl(path: Path, stream: io.BufferedIOBase) -> list[RawRow]:
    rows = []
    for number, line in enumerate(stream, start=1):
        text = _decode(line, f"{path} line {number}", first=number == 1)
        if text.strip():
            rows.append(_parse_object(text, f"{path} line {number}"))
    return rows


def _decode(data: bytes, where: str, first: bool = True) -> str:
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}); "
            "convert the file to UTF-8"
        ) from error


def _parse_object(text: str, where: str) -> RawRow:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: invalid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: expected an object with named columns, got {type(value).__name__}"
        )
    return value


def _read_json(path: Path, stream: io.BufferedIOBase) -> list[RawRow]:
    """An array of rows, an object around one, or JSON lines under the wrong name."""
    data = stream.read()
    text = _decode(data, str(path))
    if not text.strip():
        return []
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return _read_jsonl(path, io.BytesIO(data))
        raise InputError(f"{path}: invalid JSON ({error})") from error
    if isinstance(value, dict):
        arrays = [item for item in value.values() if isinstance(item, list)]
        if len(value) == 1 and arrays and all(map(_is_row, arrays[0])):
            value = arrays[0]
        else:
            value = [value]  # one JSON line is a whole JSON document as well
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list of rows, got {type(value).__name__}")
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise InputError(
                f"{path} row {number}: expected an object with named columns, "
                f"got {type(row).__name__}"
            )
    return value


def _is_row(item: object) -> bool:
    # `{"messages": [{"role": …}]}` is one row with a conversation, not a wrapper around rows.
    return isinstance(item, dict) and not ("role" in item or "from" in item)


def _read_csv(path: Path, stream: io.BufferedIOBase) -> list[RawRow]:
    """Cells as text; a cell that is a JSON list of objects (a conversation) is parsed."""
    limit = csv.field_size_limit()
    # A long conversation exceeds the 128 KiB that Python allows a cell.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    try:
        reader = csv.DictReader(text, strict=True)
        return [_csv_row(path, reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); "
            "convert the file to UTF-8"
        ) from error
    except csv.Error as error:
        raise InputError(f"{path} line {reader.reader.line_num}: invalid CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _csv_row(path: Path, line: int, row: dict) -> RawRow:
    where = f"{path} line {line}"
    if None in row:
        raise InputError(f"{where}: more cells than the header names; quote cells with commas")
    if None in row.values():
        raise InputError(f"{where}: fewer cells than the header names")
    return {
        name: _csv_cell(cell, where, name) if cell.startswith("[{") else cell
        for name, cell in row.items()
    }


def _csv_cell(cell: str, where: str, name: str) -> object:
    try:
        return json.loads(cell)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}, column '{name}': looks like messages, but is not JSON ({error}); "
            "write conversations as JSON, or use .jsonl"
        ) from error


def _read_parquet(path: Path) -> list[RawRow]:
    import pyarrow
    from pyarrow import parquet

    rows: list[RawRow] = []
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                rows += batch.to_pylist()
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable Parquet file ({reason})") from error
    except OSError as error:
        # Arrow reports damaged pages as OSError, without an errno; the disk's own errors have one.
        if error.errno is not None:
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is a damaged Parquet file ({reason})") from error
    return rows
