"""The tables of a dataset folder, whichever recipe wrote it: files, what they hold, splits.

A folder has `data/<split>-*.parquet`, `<split>.jsonl`, `<config>/<split>*.parquet` or
`<config>.jsonl`; what a table is for follows from its folder's name or from its columns.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_align.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa

CONFIGS = ("preference", "comparisons", "rankings", "events", "sft", "unpaired", "prompts", "text")
"""What tables are for; the first that a dataset has is what a loader gets without naming one."""

SPLIT_BY_PROMPT = ("preference", "comparisons", "rankings", "events", "unpaired")
"""Tables that are cut into `train` and `test` where they came as one."""

_COLUMNS = (
    ("preference", {"chosen", "rejected"}),
    ("rankings", {"completions", "ranks"}),
    ("unpaired", {"completion", "label"}),
    ("sft", {"completion"}),
    ("sft", {"messages"}),
    ("prompts", {"prompt"}),
    ("text", {"text"}),
)
_OTHER_NAMES = {"ranking": "rankings", "raw": "events", "demonstration": "sft"}  # of vote exports
_SPLITS = ("train", "test", "validation")
_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
_NOT_DATA = ("metrics.jsonl", "samples.jsonl", "battles.jsonl")
_BLOCK = 5_000
_IN_TEST = 10  # one prompt in so many

Files = dict[str, dict[str, list[Path]]]
Tables = dict[str, dict[str, "pa.Table"]]


def find_tables(folder: Path) -> Files:
    """The data files of a folder, or the one file: `{config: {split: [file, …]}}`.

    Raises:
        InputError: There are none, or one holds nothing that is known.
    """
    files = [folder] if folder.is_file() else sorted(_data_files(folder))
    found: Files = {}
    for file in files:
        name = file.name.split(".")[0]
        split = name.split("-")[0]
        named = (_OTHER_NAMES.get(place, place) for place in (file.parent.name, name))
        config = next((place for place in named if place in CONFIGS), None) or _config_of(file)
        split = split if split in _SPLITS and file != folder else "train"
        found.setdefault(config, {}).setdefault(split, []).append(file)
    if not found:
        raise InputError(
            f"{folder} holds no data (no .parquet or .jsonl file, nor data/ with such); name a "
            "dataset's file or folder"
        )
    return {
        config: {split: found[config][split] for split in _SPLITS if split in found[config]}
        for config in CONFIGS
        if config in found
    }


def has_tables(folder: Path) -> bool:
    """Whether a folder holds data files, whatever is in them."""
    return any(True for _ in _data_files(folder))


def _data_files(folder: Path) -> Iterable[Path]:
    places = [folder, *(folder / name for name in ("data", *CONFIGS, *_OTHER_NAMES))]
    for place in places:
        for file in place.glob("*"):
            if file.name.endswith(_SUFFIXES) and file.name not in _NOT_DATA:
                yield file


def _config_of(file: Path) -> str:
    names = set(column_names(file))
    for config, columns in _COLUMNS:
        if columns <= names:
            return config
    raise InputError(
        f"{file} has the columns {', '.join(sorted(names)) or '(none)'}; a dataset has prompt, "
        "chosen and rejected, or completions and ranks, or completion, or messages, or text"
    )


def column_names(file: Path) -> list[str]:
    """The columns of a file; of JSON lines those of the first row.

    Raises:
        InputError: The file is damaged or empty.
    """
    from pyarrow import ArrowInvalid, parquet

    if file.name.endswith(".parquet"):
        try:
            return list(parquet.read_schema(file).names)
        except ArrowInvalid as error:
            raise InputError(f"{file} is no Parquet file ({error}); copy it again") from error
    return list(next(_rows(file), {}))


def read_table(files: Sequence[Path]) -> pa.Table:
    """The rows of several files of one split as one table.

    Raises:
        InputError: A file is damaged, or columns have no one type.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        tables = [
            parquet.read_table(file)
            if file.name.endswith(".parquet")
            else table_of(list(_rows(file)), str(file))
            for file in files
        ]
        return pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{files[0]}: {' '.join(str(error).split())}") from error


def values_of(column: pa.ChunkedArray) -> Iterator[Any]:
    """The values of a column, a few thousand in memory at a time."""
    for start in range(0, len(column), _BLOCK):
        yield from column.slice(start, _BLOCK).to_pylist()


def table_of(rows: Sequence[dict[str, Any]], label: str) -> pa.Table:
    """Rows as a table with every column that any of them has.

    Values of a column that have no one type are kept as JSON text, so that nothing is lost.
    """
    import pyarrow as pa

    if not rows:
        raise InputError(f"{label} has no rows")
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = pa.array([None if v is None else _json(v) for v in values])
    return pa.table(columns)


def _rows(file: Path) -> Iterable[dict[str, Any]]:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{file}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise InputError(f"{file}, line {number}: not an object with columns")
            yield row


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def prompt_keys(table: pa.Table) -> list[str] | None:
    """What tells the prompts of a table apart; None where it has none."""
    if "prompt" not in table.column_names:
        return None
    return [_json(prompt) for prompt in values_of(table.column("prompt"))]


def is_test_prompt(key: str) -> bool:
    """Whether a prompt is held out, by its own hash: it stays where it is as a dataset grows."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % _IN_TEST == 0


def split_tables(tables: Tables) -> Tables:
    """The tables with `train` and `test` of disjoint prompts, the same in every table.

    Splits that came with the data stay; other tables of judged answers are cut accordingly, or one
    prompt in ten is held out by its hash.

    Raises:
        InputError: A prompt is in both splits that came with the data.
    """
    held_out, trained = _given(tables)
    result: Tables = {}
    for config, splits in tables.items():
        keys = prompt_keys(splits["train"]) if list(splits) == ["train"] else None
        if config not in SPLIT_BY_PROMPT or keys is None:
            result[config] = splits
            continue
        mask = [
            key in held_out or (key not in trained and not trained and is_test_prompt(key))
            for key in keys
        ]
        result[config] = _cut(splits["train"], mask)
    return result


def _given(tables: Tables) -> tuple[set[str], set[str]]:
    """Prompts that came held out, and those that came to be trained on."""
    held_out: set[str] = set()
    trained: set[str] = set()
    for config, splits in tables.items():
        if config not in SPLIT_BY_PROMPT or "test" not in splits or "train" not in splits:
            continue
        test, train = (set(prompt_keys(splits[name]) or ()) for name in ("test", "train"))
        both = sorted(test & train)
        if both:
            raise InputError(
                f"{config}: {len(both)} prompts are in train and in test, such as {both[0][:60]}; "
                "split the data by prompt"
            )
        held_out |= test
        trained |= train
    return held_out, trained


def _cut(table: pa.Table, in_test: list[bool]) -> dict[str, pa.Table]:
    import pyarrow as pa

    if not any(in_test) or all(in_test):
        return {"train": table}
    mask = pa.array(in_test)
    return {"train": table.filter(pa.compute.invert(mask)), "test": table.filter(mask)}
