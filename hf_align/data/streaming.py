"""One split of a dataset as blocks of rows, so that a file larger than memory can be read.

JSON lines, CSV (each also gzipped), Parquet, `save_to_disk` folders and Hub ids are read a block at
a time, as often as asked; a JSON array alone is read whole. Parquet and the Hub keep their types.
"""

from __future__ import annotations

import csv
import gc
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_align.data.folders import open_local, split_files
from hf_align.data.hub import HUB_ID
from hf_align.data.loading import open_source
from hf_align.data.readers import (
    SUFFIXES,
    _csv_row,
    _decode,
    _open_bytes,
    _parse_object,
    data_suffix,
    read_rows,
)
from hf_align.data.sources import DataSource, RawRow
from hf_align.revisions import REMEDY, repo_at, unreachable
from hf_align.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 64 * 1024**2
"""A block ends here even if it has fewer rows than asked for."""

_ARCHIVES = (".gz", ".txt", ".arrow", ".zip")


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one file, or of one Hub split.

    Attributes:
        label: The file, or the Hub id and split.
        first: Position of the first row in it, from 0.
        rows: The rows where the source has no types (JSON, CSV).
        table: The rows where it has (Parquet, the Hub).
    """

    label: str
    first: int
    rows: list[RawRow] | None = None
    table: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.rows is not None else self.table.num_rows

    def location(self, index: int) -> str:
        """`train.jsonl row 17`: rows are counted from 1 within their file."""
        return f"{self.label} row {self.first + index + 1:,}"

    def to_rows(self) -> list[RawRow]:
        """The rows as dictionaries."""
        return self.rows if self.rows is not None else self.table.to_pylist()

    def names(self) -> list[str]:
        """Columns, in the order in which they appear."""
        if self.rows is None:
            return self.table.column_names
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def take(self, indices: Sequence[int]) -> pa.Table:
        """Some of the rows, as an Arrow table.

        Raises:
            InputError: A column mixes types that no Arrow type holds.
        """
        import pyarrow as pa

        if self.table is not None:
            return self.table.take(pa.array(indices, pa.int64()))
        columns = {}
        for name in self.names():
            values = [self.rows[index].get(name) for index in indices]
            try:
                columns[name] = pa.array(values)
            except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
                raise InputError(
                    f"{self.label}, column '{name}': rows {self.first + 1:,} to "
                    f"{self.first + len(self):,} mix types, and a Parquet column has one "
                    f"({_first_line(error)})"
                ) from error
        return pa.table(columns) if columns else pa.table({})


@dataclass(frozen=True)
class RowStream:
    """A split that can be read again and again.

    Attributes:
        describe: Gives the source for `lineage.json`; hashes local files, so call it once.
        read: Blocks of at most so many rows, in order.
        schema: The columns' types where the source has them, metadata included.
        num_rows: How many rows there are; None where only reading tells.
    """

    describe: Callable[[], DataSource]
    read: Callable[[int], Iterator[Block]]
    schema: pa.Schema | None = None
    num_rows: int | None = None


def open_stream(
    name: str, config: str | None = None, revision: str | None = None, split: str = "train"
) -> RowStream:
    """A split of a file, a folder, a `save_to_disk` folder or a Hub id, unread.

    Raises:
        InputError: No such file, folder or split, an unknown file type, or a Hub option for a path.
        OSError: The Hub cannot be reached, or the repository is absent, private or gated.
    """
    path = Path(name).expanduser()
    if not path.exists():
        archive = data_suffix(name) or Path(name).suffix in _ARCHIVES
        if HUB_ID.fullmatch(name) and not archive:
            return _hub_stream(name, config, revision, split)
        open_source(name, config, revision)  # refuses, in the words of all recipes
    for option, value in (("--dataset_config", config), ("--dataset_revision", revision)):
        if value is not None:
            raise InputError(f"{option} {value}: {name} is a local path; Hub ids alone have it")
    if path.is_file():
        if data_suffix(name) is None:
            raise InputError(
                f"--dataset_name {name}: unknown file type; supported: {', '.join(SUFFIXES)}"
            )
        splits, root = {"train": [path]}, path.parent
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved_stream(name, path, split)
    else:
        splits, root = split_files(path)[0], path
    files = splits[_chosen(split, splits, name)]
    schema, num_rows = _parquet_facts(files)
    return RowStream(
        lambda: open_local(name, path).source, partial(_file_blocks, files, root), schema, num_rows
    )


def _chosen(split: str, available: Sequence[str], name: str) -> str:
    """The split, or alignment-handbook's name for it: `train_sft`."""
    for candidate in (split, f"{split}_sft"):
        if candidate in available:
            return candidate
    raise InputError(
        f"--dataset_split {split}: no such split in {name}; available: {', '.join(available)}"
    )


# ------------------------------------------------------------------------------------- local files


def _file_blocks(files: Sequence[Path], root: Path, size: int) -> Iterator[Block]:
    for path in files:
        label, empty = path.relative_to(root).as_posix(), True
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes)")
        blocks = _parquet_blocks if data_suffix(path.name) == ".parquet" else _text_blocks
        for block in blocks(path, label, size):
            empty = False
            yield block
        if empty:
            raise InputError(f"{path} is empty: it holds no rows")


def _text_blocks(path: Path, label: str, size: int) -> Iterator[Block]:
    rows: list[RawRow] = []
    first = num_bytes = 0
    for row, row_bytes in _text_rows(path):
        rows.append(row)
        num_bytes += row_bytes
        if len(rows) == size or num_bytes > BLOCK_BYTES:
            yield Block(label, first, rows)
            first, rows, num_bytes = first + len(rows), [], 0
    if rows:
        yield Block(label, first, rows)


def _text_rows(path: Path) -> Iterator[tuple[RawRow, int]]:
    """Rows, and about how many bytes each takes."""
    suffix = str(data_suffix(path.name)).removesuffix(".gz")
    if suffix == ".json":
        yield from ((row, 0) for row in read_rows(path))
        return
    with _open_bytes(path) as stream:
        yield from (_json_lines if suffix == ".jsonl" else _csv_rows)(path, stream)


def _json_lines(path: Path, stream: io.BufferedIOBase) -> Iterator[tuple[RawRow, int]]:
    for number, line in enumerate(stream, start=1):
        where = f"{path} line {number}"
        text = _decode(line, where, first=number == 1)
        if text.strip():
            yield _parse_object(text, where), len(line)


def _csv_rows(path: Path, stream: io.BufferedIOBase) -> Iterator[tuple[RawRow, int]]:
    limit = csv.field_size_limit()
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
    try:
        for row in reader:
            # The row first: its check tells a short row, whose missing cells have no length.
            yield _csv_row(path, reader.line_num, row), sum(map(len, row.values()))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); "
            "convert the file to UTF-8"
        ) from error
    except csv.Error as error:
        raise InputError(f"{path} line {reader.reader.line_num}: invalid CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _parquet_blocks(path: Path, label: str, size: int) -> Iterator[Block]:
    import pyarrow as pa
    from pyarrow import parquet

    first = 0
    # Prefetching keeps all that was read until the file is closed; and as a file may be one row
    # group, a column is read through a buffer.
    options = {"pre_buffer": False, "buffer_size": 1 << 20}
    with _readable(path), parquet.ParquetFile(path, **options) as file:
        groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        per_row = sum(group.total_byte_size for group in groups) // max(1, file.metadata.num_rows)
        size = max(1, min(size, BLOCK_BYTES // max(1, per_row)))
        for batch in file.iter_batches(batch_size=size):
            if batch.num_rows:
                yield Block(label, first, table=pa.Table.from_batches([batch]))
                first += batch.num_rows


def _parquet_facts(files: Sequence[Path]) -> tuple[pa.Schema | None, int | None]:
    """The schema of Parquet files and their number of rows, from their footers."""
    from pyarrow import parquet

    if any(data_suffix(path.name) != ".parquet" or not path.stat().st_size for path in files):
        return None, None
    schema, num_rows = None, 0
    for path in files:
        with _readable(path), parquet.ParquetFile(path) as file:
            num_rows += file.metadata.num_rows
            schema = merged_schema(schema, file.schema_arrow, path.name)
    return schema, num_rows


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path} is not a readable Parquet file ({_first_line(error)})") from error
    except OSError as error:
        # Arrow reports damaged pages as OSError, without an errno; the disk's own errors have one.
        if error.errno is not None:
            raise
        raise InputError(f"{path} is a damaged Parquet file ({_first_line(error)})") from error


# ------------------------------------------------------------------- Arrow folders and the Hub


def _saved_stream(name: str, path: Path, split: str) -> RowStream:
    import datasets
    import pyarrow as pa

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is not a readable save_to_disk folder ({error})") from error
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    chosen = _chosen(split, list(splits), name)
    data = splits[chosen]
    return RowStream(
        lambda: open_local(name, path).source,
        partial(_arrow_blocks, data, f"{name} {chosen}"),
        data.features.arrow_schema,
        len(data),
    )


def _hub_stream(name: str, config: str | None, revision: str | None, split: str) -> RowStream:
    commit, _ = repo_at("dataset", name, revision)
    import datasets

    with _hub_errors(name):
        loaded = datasets.load_dataset(name, config, revision=commit, streaming=True)
    chosen = _chosen(split, list(loaded), name)
    data = loaded[chosen]
    return RowStream(
        lambda: DataSource(name, "hub", revision=commit),
        partial(_hub_blocks, data, name, f"{name} {chosen}"),
        data.features.arrow_schema if data.features is not None else None,
    )


def _hub_blocks(data: Any, name: str, label: str, size: int) -> Iterator[Block]:
    try:
        with _hub_errors(name):
            yield from _arrow_blocks(data, label, size)
    finally:
        # Threads of pyarrow's scanner that outlive it can abort Python as it ends:
        # https://github.com/apache/arrow/issues/45214
        gc.collect()


def _arrow_blocks(data: Any, label: str, size: int) -> Iterator[Block]:
    first = 0
    for table in data.with_format("arrow").iter(batch_size=size):
        yield Block(label, first, table=table)
        first += table.num_rows


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """What the datasets library raises on a Hub id, as one line.

    Raises:
        InputError: The configuration is missing or unknown, or reading needs the repo's code.
        OSError: The rest.
    """
    import datasets
    import pyarrow as pa
    from huggingface_hub import errors

    missing = (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError)
    try:
        yield
    except (*missing, errors.EntryNotFoundError) as error:
        raise OSError(f"Hub dataset '{name}': {_first_line(error)}; {REMEDY}") from error
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowException) as error:
        cause = _first_line(error.__cause__ or error)
        raise OSError(
            f"Hub dataset '{name}' could not be read as one table ({cause}); {REMEDY}"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"--dataset_name {name}: cannot be read without running its code "
            f"({_first_line(error)}); convert it to Parquet or JSON lines and pass the folder"
        ) from error
    except (errors.HTTPError, OSError) as error:
        raise OSError(f"Hub dataset '{name}': {unreachable(error)}, {REMEDY}") from error
    except ValueError as error:
        hint = "choose one with --dataset_config" if "onfig" in str(error) else REMEDY
        raise InputError(
            f"--dataset_name {name}: {' '.join(str(error).split())}; {hint}"
        ) from error


# ------------------------------------------------------------------------------------------- types


def merged_schema(known: pa.Schema | None, other: pa.Schema, where: str) -> pa.Schema:
    """One schema for both: columns of either, null as any type, whole numbers as floats.

    Raises:
        InputError: A column has two types that no one type holds.
    """
    import pyarrow as pa

    if known is None or known.equals(other):
        return other if known is None else known
    try:
        return pa.unify_schemas([known, other], promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{where}: a column has another type than before, and a Parquet column has one "
            f"({_first_line(error)})"
        ) from error


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in the columns and types of a schema that `merged_schema` made of its own."""
    import pyarrow as pa

    if not table.schema.equals(schema):
        table = pa.concat_tables([schema.empty_table(), table], promote_options="permissive")
    return table.cast(schema)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
