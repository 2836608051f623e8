"""Splits of a local path: one file, a folder of split files, or a `save_to_disk` folder.

A folder's splits are told by file names (`train.jsonl`, `test-00000-of-00002.parquet`), by one
sub-folder per split, or by a Hub snapshot's `data/` folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hf_align.data.readers import SUFFIXES, data_suffix, read_rows
from hf_align.data.sources import DataSource, RawData, RawSplit, content_hash
from hf_align.types import InputError

_SPLIT = re.compile(
    r"(train|test|validation|valid|val|dev|evaluation|eval)((?:_(?:sft|prefs|gen))?)(?=[^a-z]|$)"
)
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "evaluation": "eval"}


def open_local(name: str, path: Path) -> RawData:
    """The splits of a file or folder that exists.

    Args:
        name: The path as the user wrote it.
        path: The same, expanded.

    Raises:
        InputError: Unknown file type, no data files, or one split in two formats.
    """
    if path.is_file():
        if data_suffix(path.name) is None:
            raise InputError(
                f"--dataset_name {name}: unknown file type; supported: {', '.join(SUFFIXES)}"
            )
        source = DataSource(name, "file", sha256=content_hash([path], path), files=[path.name])
        return RawData(source, {"train": partial(_read_files, [path], path.parent)})
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _open_saved(name, path)
    splits, notes = split_files(path)
    files = [file for members in splits.values() for file in members]
    source = DataSource(
        name,
        "folder",
        sha256=content_hash(files, path),
        files=sorted(file.relative_to(path).as_posix() for file in files),
    )
    readers: dict[str, Callable[[], RawSplit]] = {
        split: partial(_read_files, members, path) for split, members in splits.items()
    }
    return RawData(source, readers, notes)


def open_files(name: str, root: Path, data_files: object) -> RawData:
    """The named files of a folder: one name, a list (split train), or a mapping split -> name(s).

    Raises:
        InputError: A file does not exist, or the value is none of these.
    """
    given = data_files if isinstance(data_files, dict) else {"train": data_files}
    splits: dict[str, list[Path]] = {}
    for split, names in given.items():
        listed = [names] if isinstance(names, str) else names
        if not isinstance(listed, list) or not listed:
            raise InputError(
                f"data_files {data_files!r}: expected file names, or split: file names"
            )
        splits[split] = []
        for pattern in listed:
            matches = sorted(root.glob(pattern))
            if not matches:
                raise InputError(f"data_files: no such file: {root / pattern}")
            splits[split] += matches
    files = sorted({file for members in splits.values() for file in members})
    source = DataSource(
        name,
        "folder",
        sha256=content_hash(files, root),
        files=[file.relative_to(root).as_posix() for file in files],
    )
    return RawData(
        source, {split: partial(_read_files, members, root) for split, members in splits.items()}
    )


def split_files(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Which files hold which split, and what was left out.

    Raises:
        InputError: There are no data files, or a split comes in two formats (twice the same rows?).
    """
    files = _data_files(root)
    if not files:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
        named = {folder: split_name(folder.name) for folder in folders}
        by_folder = {
            split: _data_files(folder)
            for folder, split in named.items()
            if split and _data_files(folder)
        }
        if by_folder:
            return by_folder, []
        if (root / "data").is_dir():
            return split_files(root / "data")
        raise InputError(f"{root} holds no data files; supported: {', '.join(SUFFIXES)}")
    splits: dict[str, list[Path]] = {}
    for file in files:
        split = split_name(file.name)
        if split:
            splits.setdefault(split, []).append(file)
    if not splits and (root / "data").is_dir():
        return split_files(root / "data")  # records of a run lie beside the data that it made
    if not splits:
        splits = {"train": files}
    for split, members in splits.items():
        suffixes = sorted({data_suffix(file.name) or "" for file in members})
        if len(suffixes) > 1:
            raise InputError(
                f"{root}: split '{split}' comes as {' and as '.join(suffixes)} "
                f"({', '.join(file.name for file in members)}); keep one format"
            )
    used = {file for members in splits.values() for file in members}
    unused = [file.name for file in files if file not in used]
    notes = [f"files without a split in their name, not read: {', '.join(unused)}"]
    return splits, notes if unused else []


def split_name(name: str) -> str | None:
    """The split in a name: `train_prefs-00000-of-00001.parquet` -> `train_prefs`, else None."""
    match = _SPLIT.match(name.lower())
    return _ALIASES.get(match[1], match[1]) + match[2] if match else None


def _data_files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith(".") and data_suffix(file.name)
    )


def _read_files(files: list[Path], root: Path) -> RawSplit:
    split = RawSplit([], [], [])
    for file in files:
        split.labels.append(file.relative_to(root).as_posix())
        split.starts.append(len(split.rows))
        split.rows += read_rows(file)
    return split


def _open_saved(name: str, path: Path) -> RawData:
    import datasets
    import pyarrow

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pyarrow.ArrowInvalid) as error:
        raise InputError(f"{path} is not a readable save_to_disk folder ({error})") from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    source = DataSource(
        name,
        "disk",
        sha256=content_hash(files, path),
        files=[file.relative_to(path).as_posix() for file in files],
    )
    return RawData(
        source,
        {split: partial(_as_rows, data, f"{name} {split}") for split, data in splits.items()},
    )


def _as_rows(data, label: str) -> RawSplit:
    return RawSplit(data.with_format(None).to_list(), [label], [0])
