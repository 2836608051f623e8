"""Exports as files: split by prompt, written whole, with a manifest that says what was left out."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TextIO

from hf_align.feedback.collected import collected
from hf_align.feedback.exports import Counts, ExportOptions, Kind, Row, export_rows
from hf_align.feedback.store import Store
from hf_align.feedback.texts import canonical, check_name, spreadsheet_cell
from hf_align.files import write_text
from hf_align.types import InputError

Format = Literal["jsonl", "parquet", "csv"]
_BLOCK = 5_000  # rows of a Parquet row group


def split_of(prompt: object, test_share: float, seed: int = 0) -> str:
    """ "train" or "test", by the prompt alone: all rows of a prompt fall on the same side."""
    key = f"{seed}:{prompt if isinstance(prompt, str) else canonical(prompt)}".encode()
    fraction = int.from_bytes(hashlib.sha256(key).digest()[:7], "big") / 2**56
    return "test" if fraction < test_share else "train"


def write_export(
    store: Store,
    project: str,
    folder: str | Path,
    kind: Kind,
    options: ExportOptions | None = None,
    *,
    file_format: Format = "jsonl",
    test_share: float = 0.1,
    seed: int = 0,
    described: bool = False,
) -> dict[str, Any]:
    """Writes an export to `folder/train.<format>` and `folder/test.<format>`, and its manifest.

    Raw events are one file, `events.<format>`. In CSV, texts that a spreadsheet would run as a
    formula get an apostrophe in front, so read a CSV back with care.

    Args:
        store: The store.
        project: The project.
        folder: Made; must not exist.
        kind: As `export_rows`.
        options: As `export_rows`.
        file_format: "jsonl", "parquet" or "csv".
        test_share: Share of the prompts that fall into the test split.
        seed: Of the split.
        described: Whether the manifest says how the votes were collected, for a card.

    Returns:
        The manifest: rows per file with its hash, what was dropped, the options.

    Raises:
        InputError: The folder exists, or an unknown format or kind.
        OSError: It cannot be written; no folder is left behind.
    """
    check_name("project", project)
    folder, options = Path(folder), options or ExportOptions()
    _check_export(folder, file_format, test_share)
    counts = Counts()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        rows = export_rows(store, project, kind, options, counts)
        sizes = _write_rows(
            rows, partial, file_format, lambda row: _file_of(row, kind, test_share, seed)
        )
        manifest = {
            **{"project": project, "kind": kind, "options": asdict(options), "seed": seed},
            **{"test_share": test_share, "items": counts.items, "rows": sizes},
            "dropped": dict(sorted(counts.dropped.items())),
            "sha256": {path.name: _sha256(path) for path in sorted(partial.iterdir())},
        }
        if described:
            manifest["collection"] = collected(store, project, kind, options)
        write_text(partial / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _check_export(folder: Path, file_format: str, test_share: float) -> None:
    if folder.exists():
        raise InputError(f"export {folder} exists: name another folder")
    if file_format not in _WRITERS or not 0 <= test_share < 1:
        raise InputError(
            f"export format {file_format!r}, test_share {test_share}: expected one of "
            f"{', '.join(_WRITERS)}, and a share from 0 to below 1"
        )


def _file_of(row: Row, kind: Kind, test_share: float, seed: int) -> str:
    return "events" if kind == "raw" else split_of(row["prompt"], test_share, seed)


def _write_rows(
    rows: Iterable[Row], folder: Path, file_format: Format, name_of: Callable[[Row], str]
) -> dict[str, int]:
    """Writes each row to the file that it belongs to; how many went into each."""
    sizes: dict[str, int] = {}
    with ExitStack() as stack:
        writers: dict[str, Callable[[Row], None]] = {}
        for row in rows:
            name = name_of(row)
            if name not in writers:
                path = folder / f"{name}.{file_format}"
                writers[name] = stack.enter_context(_WRITERS[file_format](path))
            writers[name](row)
            sizes[name] = sizes.get(name, 0) + 1
    return sizes


def _sha256(path: Path) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


class _JsonLines:
    def __init__(self, path: Path) -> None:
        self._stream: TextIO = path.open("w", encoding="utf-8")

    def __enter__(self) -> Callable[[Row], None]:
        return lambda row: self._write(row)

    def _write(self, row: Row) -> None:
        self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class _Csv(_JsonLines):
    """Cells that no spreadsheet runs; the columns are those of the first row."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._stream)
        self._columns: list[str] = []

    def _write(self, row: Row) -> None:
        if not self._columns:
            self._columns = list(row)
            self._writer.writerow(self._columns)
        self._writer.writerow([spreadsheet_cell(row.get(name)) for name in self._columns])


class _Parquet:
    """Row groups of a fixed size, so that memory does not grow with the rows."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows, self._writer = path, [], None

    def __enter__(self) -> Callable[[Row], None]:
        return self._add

    def _add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == _BLOCK:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            table = pa.Table.from_pylist(self._rows)
            self._writer = pq.ParquetWriter(self._path, table.schema)
        else:
            table = pa.Table.from_pylist(self._rows, schema=self._writer.schema)
        self._writer.write_table(table)
        self._rows = []

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._write()
        if self._writer is not None:
            self._writer.close()


_WRITERS: dict[str, Any] = {"jsonl": _JsonLines, "csv": _Csv, "parquet": _Parquet}
