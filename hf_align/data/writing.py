"""A loaded dataset as files that any loader reads back: one per split, and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from hf_align.data.loading import LoadedData
from hf_align.files import replacing, write_text


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
            with replacing(path) as temporary:
                dataset.to_parquet(temporary)
        else:
            with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in dataset)
        written.append(path)
    for stale in (output / f"{s}.{f}" for s in ("train", "test") for f in ("jsonl", "parquet")):
        if stale not in written:
            stale.unlink(missing_ok=True)
    pages = {
        "report.json": json.dumps(data.report.to_dict(), indent=2, ensure_ascii=False) + "\n",
        "report.md": data.report.to_markdown(),
    }
    for name, text in pages.items():
        write_text(output / name, text)
        written.append(output / name)
    return written
