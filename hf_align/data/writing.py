"""A loaded dataset as files that any loader reads back: one per split, and its report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from hf_align.data.loading import LoadedData


def write_dataset(
    data: LoadedData, output: Path, file_format: Literal["jsonl", "parquet"] = "jsonl"
) -> list[Path]:
    """Writes `train` and `test` in normalised form, then `report.json` and `report.md`.

    Each file appears whole or not at all (temporary file, then rename). A split file of an earlier
    call that this dataset lacks is removed, so that the folder holds one dataset.
    `load_data(output)` reads it back.

    Raises:
        OSError: The folder cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for split, dataset in data.splits.items():
        path = output / f"{split}.{file_format}"
        if file_format == "parquet":
            _replace(path, lambda temporary, rows=dataset: rows.to_parquet(temporary))
        else:
            lines = (json.dumps(row, ensure_ascii=False) for row in dataset)
            _replace(path, lambda temporary, rows=lines: _write_lines(temporary, rows))
        written.append(path)
    for stale in (output / f"{s}.{f}" for s in ("train", "test") for f in ("jsonl", "parquet")):
        if stale not in written:
            stale.unlink(missing_ok=True)
    pages = {
        "report.json": json.dumps(data.report.to_dict(), indent=2, ensure_ascii=False) + "\n",
        "report.md": data.report.to_markdown(),
    }
    for name, text in pages.items():
        _replace(output / name, lambda t, page=text: t.write_text(page, encoding="utf-8"))
        written.append(output / name)
    return written


def _write_lines(path: Path, lines) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
