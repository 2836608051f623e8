"""Publishes datasets: preference pairs, rankings, judgements, selected answers, as Parquet.

A folder or file that a recipe wrote becomes one repo with a configuration per table, splits by
prompt, and a card made from what the tables hold.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_align.hub.accounts import Destination
from hf_align.hub.cards import shown_name
from hf_align.hub.contents import Item, refuse_secret, report_items
from hf_align.hub.dataset_cards import dataset_card
from hf_align.hub.dataset_facts import dataset_facts
from hf_align.hub.publishing import Publication, Published, finished_record, publish, tag_of
from hf_align.hub.secrets import holds_secret, own_secrets
from hf_align.hub.tables import (
    CONFIGS,
    Files,
    Tables,
    find_tables,
    read_table,
    split_tables,
    values_of,
)
from hf_align.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_OWNED = ("README.md", "run.json", "lineage.json", "report/*", "data/*")
_OWNED = (*_OWNED, *(f"{config}/*" for config in CONFIGS))
_GROUP_ROWS = 10_000
_SHARD_BYTES = 500 * 1024**2


def push_dataset(folder: Path, destination: Destination, remedy: str | None = None) -> Published:
    """Publishes a dataset: a folder that a recipe wrote, or one file of data.

    Args:
        folder: Output of `best_of_n`, `filter`, `inspect --output` or another recipe that writes
            data, a folder with one file per split, or such a file; it is only read.
        destination: From `check_destination`.
        remedy: How to try again where the folder is a temporary one.

    Raises:
        InputError: There is nothing that is known to be data, the splits share prompts, or the repo
            holds something else.
        OSError: A row holds a secret, the Hub refused, or could not be reached.
    """
    with plan_dataset(folder, destination) as publication:
        return publish(replace(publication, remedy=remedy), destination)


@contextmanager
def plan_dataset(folder: Path, destination: Destination) -> Iterator[Publication]:
    """What `push_dataset` sends; its files lie in a temporary folder until the block ends.

    Of the destination the card has its name and licence.

    Raises:
        InputError: There is nothing that is known to be data, or the splits share prompts.
        OSError: A row holds a secret.
    """
    folder = _home(folder)
    record = _record(folder)
    report = _report(folder)
    files = find_tables(folder)
    tables = split_tables(_read(files))
    _refuse_secrets(tables)
    facts = dataset_facts(tables)
    name = str(record["name"])
    card = dataset_card(
        destination.repo_id,
        facts,
        {
            config: next(iter(splits.values())).slice(0, 1).to_pylist()[0]
            for config, splits in tables.items()
        },
        record,
        report,
        _body(folder),
        destination.license,
    )
    with tempfile.TemporaryDirectory(prefix="hf_align-") as scratch:
        items = _items(folder, record)
        items += _written(tables, record, Path(scratch))
        items.append(Item("README.md", card.encode()))
        refuse_secret(items[-1], "the dataset's card")
        yield Publication(folder, "dataset", items, _OWNED, name, tag_of(record, items))


def _home(folder: Path) -> Path:
    """The folder that a recipe wrote, where its data/ was named."""
    if folder.name == "data" and (folder.parent / "run.json").is_file():
        return folder.parent
    if not folder.exists():
        raise InputError(f"{folder}: no such file or folder")
    return folder


def _record(folder: Path) -> dict[str, Any]:
    """`run.json`, or one for data that no recipe recorded."""
    if (folder / "run.json").is_file():
        return finished_record(folder)
    name = folder.resolve().name.split(".")[0]
    unknown: dict[str, Any] = {"data": []}
    own = {"schema": 1, "recipe": "publish", "name": name, "status": "finished"}
    return own | {"lineage": unknown}


def _report(folder: Path) -> dict[str, Any]:
    places = (folder / "report" / "report.json", folder / "report.json", folder / "manifest.json")
    file = next((file for file in places if file.is_file()), None)
    read = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        raise InputError(f"{file} holds no report; remove it")
    if file is not None and file.name == "manifest.json":  # of an export of votes
        own = {"protocol": read.get("options"), "dropped": read.get("dropped")}
        return own | (read.get("collection") or {})
    return read


def _body(folder: Path) -> str:
    """What the recipe's own card says below its title, without the lineage, which is said anew."""
    readme = folder / "README.md"
    if not readme.is_file():
        return ""
    text = re.sub(r"\A---\n.*?\n---\n", "", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"\A\s*# .*\n", "", text)
    return re.split(r"^## Lineage$", text, flags=re.MULTILINE)[0]


def _items(folder: Path, record: dict[str, Any]) -> list[Item]:
    """Records and report; the card is made anew."""
    if folder.is_file():
        items = []
    else:
        items = [item for item in report_items(folder) if item.path != "README.md"]
    if not any(item.path == "run.json" for item in items):
        text = json.dumps(record | {"versions": _versions()}, indent=2) + "\n"
        items.append(Item("run.json", text.encode()))
    for name in ("report.json", "report.md") if folder.is_dir() else ():
        if (folder / name).is_file():
            item = Item(f"report/{name}", folder / name)
            refuse_secret(item, folder / name)
            items.append(item)
    return items


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("hf_align", "pyarrow")}


def _read(files: Files) -> Tables:
    return {
        config: {split: read_table(paths) for split, paths in splits.items()}
        for config, splits in files.items()
    }


def _written(tables: Tables, record: dict[str, Any], scratch: Path) -> list[Item]:
    """The tables as Parquet, in shards that the Hub's viewer copes with."""
    from pyarrow import parquet

    items = []
    for config, splits in tables.items():
        for split, table in splits.items():
            table = with_provenance(table, config, record)
            shards = max(1, -(-table.nbytes // _SHARD_BYTES))
            rows = -(-table.num_rows // shards)
            for shard in range(shards):
                path = f"{config}/{split}-{shard:05}-of-{shards:05}.parquet"
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                part = table.slice(shard * rows, rows)
                parquet.write_table(part, scratch / path, row_group_size=_GROUP_ROWS)
                items.append(Item(path, scratch / path))
    return items


def with_provenance(table: pa.Table, config: str, record: dict[str, Any]) -> pa.Table:
    """A table of a run whose every row says where it is from: policy, reward model, source data.

    Names are those of the lineage, with the commit or the content hash; columns that are there
    already stay.
    """
    import pyarrow as pa

    if config not in ("sft", "preference", "rankings", "unpaired"):
        return table
    lineage = record.get("lineage") or {}
    rewards = lineage.get("reward_models") or filter(None, [lineage.get("reward_model")])
    origins = {
        "policy": [lineage[role] for role in ("model",) if lineage.get(role)],
        "reward_model": list(rewards),
        "source_dataset": lineage.get("data") or [],
    }
    added = {
        name: ", ".join(shown_name(source, whole=True) for source in sources)
        for name, sources in origins.items()
        if sources and name not in table.column_names
    }
    for name, origin in added.items():
        table = table.append_column(name, pa.array([origin] * len(table), pa.string()))
    if added:  # the recorded features lack these columns
        metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != b"huggingface"}
        table = table.replace_schema_metadata(metadata or None)
    return table


def _refuse_secrets(tables: Tables) -> None:
    """Refuses rows that hold a secret.

    Raises:
        OSError: One does; nothing has been sent.
    """
    own = own_secrets()
    for config, splits in tables.items():
        for split, table in splits.items():
            for name in table.column_names:
                place = _secret_row(table.column(name), own)
                if place is not None:
                    raise OSError(
                        f"{config}, {split} row {place + 1:,}, column {name} holds what looks like "
                        "a token or a key; remove the row, then publish again"
                    )


def _secret_row(column: pa.ChunkedArray, own: list[str]) -> int | None:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return None
    for place, value in enumerate(values_of(column)):
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        if holds_secret(text, own):
            return place
    return None
