"""The mix of an online round: its pairs and the older ones, each row with round and policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_align.data import load_data
from hf_align.data.loading import open_source
from hf_align.files import write_text
from hf_align.hub import shown_name
from hf_align.recipes._inputs import TESTBED
from hf_align.recipes._online_prompts import Made, held_out, key_of
from hf_align.recipes._run import Run
from hf_align.testbed import build_testbed
from hf_align.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from hf_align.recipes._online_parts import PartArguments


def make_mix(options: PartArguments) -> Made:
    """The part `mix`.

    Raises:
        InputError: The initial pairs are of another form than the rounds'.
    """
    import pyarrow as pa

    folders = [Path(name) for name in options.pairs or []]
    tables = [_round_table(folder, number) for number, folder in enumerate(folders, start=1)]
    for_test = held_out(Path(str(options.prompts)))
    sources = [data_of(folder) for folder in folders]
    splits = {"train": [], "test": []}
    if options.initial_pairs is not None:
        initial, source = _initial(options)
        sources.append(source)
        for split, table in initial.items():
            splits[split].append(table)
            for_test |= {*map(key_of, table["prompt"].to_pylist())} if split == "test" else set()
    for table in tables:
        tested = np.array([key_of(prompt) in for_test for prompt in table["prompt"].to_pylist()])
        splits["train"].append(table.filter(pa.array(~tested)))
        splits["test"].append(table.filter(pa.array(tested)))
    *older, newest = splits["train"]
    rng = np.random.default_rng([options.seed, len(folders)])
    older = [_share(table, options.old_share, rng) for table in older]
    try:
        mixed = {
            split: pa.concat_tables(parts, promote_options="default")
            for split, parts in (("train", [*older, newest]), ("test", splits["test"]))
        }
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"initial_pairs {options.initial_pairs}: they and the rounds' pairs must both be "
            "conversations, or both plain text"
        ) from error
    mixed["train"] = _without(mixed["train"], for_test)

    def write(run: Run) -> None:
        for split, table in mixed.items():
            write_table(run.path / "data" / f"{split}-00000-of-00001.parquet", table)
        write_text(run.path / "report" / "report.json", json.dumps(_counts(mixed), indent=2) + "\n")
        write_text(run.path / "README.md", _card(run, mixed))

    return write, {"data": sources}


def write_table(file: Path, table: pa.Table) -> None:
    """Writes Parquet, with the folders that it needs."""
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file)


def _round_table(folder: Path, number: int) -> pa.Table:
    """A round's pairs with the columns `round` and `policy`, which says who wrote both."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.concat_tables(map(parquet.read_table, sorted((folder / "data").glob("*.parquet"))))
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    policy = shown_name(lineage["model"])
    return _with_origin(table, number, policy)


def _with_origin(table: pa.Table, number: int, policy: str) -> pa.Table:
    import pyarrow as pa

    table = table.replace_schema_metadata(None)
    rounds = pa.array([number] * len(table), pa.int64())
    policies = pa.array([policy] * len(table), pa.string())
    return table.append_column("round", rounds).append_column("policy", policies)


def _initial(options: PartArguments) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    import pyarrow as pa

    name = str(options.initial_pairs)
    path = str(build_testbed().preferences_path) if name == TESTBED else name
    data = load_data(path, "preference", test_split_size=options.test_share)
    columns = ("prompt", "chosen", "rejected")
    tables = {
        split: _with_origin(pa.table({c: rows[c][:] for c in columns}), 0, "")
        for split, rows in data.splits.items()
    }
    shown = {"name": "testbed-preference"} if name == TESTBED else {}
    return tables, data.sources[0].to_dict() | shown


def _share(table: pa.Table, share: float, rng: np.random.Generator) -> pa.Table:
    """So many of the rows, drawn; a round has about one row per prompt."""
    kept = rng.permutation(len(table))[: round(share * len(table))]
    return table.take(np.sort(kept))


def _without(table: pa.Table, keys: set[str]) -> pa.Table:
    import pyarrow as pa

    stays = [key_of(prompt) not in keys for prompt in table["prompt"].to_pylist()]
    return table.filter(pa.array(stays))


def _counts(mixed: dict[str, pa.Table]) -> dict[str, Any]:
    rounds = {split: table["round"].to_pylist() for split, table in mixed.items()}
    return {
        "pairs": {
            f"round {number}, {split}": numbers.count(number)
            for split, numbers in rounds.items()
            for number in sorted(set(numbers))
        }
    }


def _card(run: Run, mixed: dict[str, pa.Table]) -> str:
    lines = [
        "---\ntags:\n- hf-align\n- preferences\n---\n",
        f"# {run.record['name']}: comparisons of several rounds\n",
        "Pairs of completions of the policy as it was in each round; `round` 0 is what there was "
        "before. `policy` names who wrote both, with its hash. Splits are by prompt, and no prompt "
        "returns in another round.\n",
        "| pairs | count |",
        "|---|---:|",
        *(f"| {name} | {count:,} |" for name, count in _counts(mixed)["pairs"].items()),
    ]
    return "\n".join([*lines, ""])


def data_of(folder: Path) -> dict[str, Any]:
    """The pairs of a folder as a lineage names them."""
    return open_source(str(folder / "data")).source.to_dict()
