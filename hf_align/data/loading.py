"""Datasets from the Hub, files and folders: normalised, split by prompt, every row reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hf_align.data import splits as by_prompt
from hf_align.data.folders import open_files, open_local
from hf_align.data.hub import HUB_ID, open_hub
from hf_align.data.layouts import Task
from hf_align.data.mixture import (
    check_mixture,
    cut_to_fractions,
    select_columns,
    select_split,
)
from hf_align.data.preparing import (
    OUTPUT_COLUMNS,
    Tally,
    build_dataset,
    normalise_split,
    unify,
)
from hf_align.data.readers import data_suffix
from hf_align.data.report import DataReport, length_bias, length_stats, repeats
from hf_align.data.sources import DataSource, RawData, RawSplit
from hf_align.types import InputError

if TYPE_CHECKING:
    import datasets

Rows = list[dict[str, object]]

_TEST_NAMES = ("test", "validation", "eval")
_SUFFIXES = {
    "sft": ("_sft",),
    **dict.fromkeys(("preference", "ranking"), ("_prefs",)),
    "prompt": ("_gen", "_prefs", "_sft"),
}
"""alignment-handbook's split names: train_sft, train_prefs, train_gen."""


@dataclass
class LoadedData:
    """A dataset ready for a trainer.

    Attributes:
        splits: `train` and, unless no test split was asked for, `test`, in TRL's columns.
        report: What was read, kept, dropped and counted.
        sources: What went in, for `lineage.json`.
    """

    splits: datasets.DatasetDict
    report: DataReport
    sources: list[DataSource]


def open_source(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    data_files: object = None,
) -> RawData:
    """The splits of a local path if there is one of this name, else of a Hub id.

    Raises:
        InputError: Neither a path that exists nor a Hub id, or a Hub option given for a local path.
        OSError: The Hub cannot be reached, or the repository is absent, private or gated.
    """
    path = Path(name).expanduser()
    if path.exists():
        for option, value in (("--dataset_config", config), ("--dataset_revision", revision)):
            if value is not None:
                raise InputError(f"{option} {value}: {name} is a local path; Hub ids alone have it")
        root = path / data_dir if data_dir else path
        if not root.exists():
            raise InputError(f"data_dir {data_dir}: no such folder in {name}")
        return open_files(name, root, data_files) if data_files else open_local(name, root)
    looks_local = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if looks_local or data_suffix(name) or Path(name).suffix in (".gz", ".txt", ".arrow", ".zip"):
        raise InputError(f"--dataset_name {name}: no such file or folder")
    if not HUB_ID.fullmatch(name):
        raise InputError(
            f"--dataset_name {name}: neither an existing file or folder nor a Hub id 'org/name'"
        )
    return open_hub(name, config, revision, data_dir, data_files)


def load_data(
    name: str | None,
    task: Task,
    *,
    mixture: list[dict] | None = None,
    config: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    columns: Mapping[str, str] | None = None,
    keep_columns: Sequence[str] = (),
    conversational: bool | None = None,
    test_split_size: float = 0.1,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    invalid_rows: Literal["error", "drop"] = "error",
    seed: int = 0,
) -> LoadedData:
    """Reads a dataset in any known layout and gives it TRL's columns for the task.

    Preference data get an explicit prompt. Without a test split, one is made by prompt.

    Args:
        name: Hub id, file, folder or `save_to_disk` folder; None with a mixture.
        task: What the rows are for.
        mixture: TRL's `datasets` list: path, name, data_dir, data_files, split, columns, fraction
            (and revision). Parts are concatenated, then split by prompt.
        config: Hub configuration.
        revision: Hub branch, tag or commit; resolved to a commit first.
        train_split: Source split to train on.
        test_split: Source split to test on; None takes test, validation or eval where there is one.
        columns: Layout column -> the dataset's own column, e.g. `{"prompt": "instruction"}`.
        keep_columns: Further columns to carry along: what a reward function reads, or `margin`,
            which must be a finite number in every row.
        conversational: True wraps plain text into one-turn conversations, False unwraps them, None
            keeps what the source has.
        test_split_size: Share of prompts to hold out where there is no test split; 0 for none.
        max_train_samples: At most so many training rows, chosen by the prompts' hashes.
        max_test_samples: The same for the test rows.
        invalid_rows: Stop at the first faulty row, or drop and count them.
        seed: For the split and the samples.

    Raises:
        InputError: One line on what in the options, the files or the rows cannot be used.
        OSError: The Hub cannot be reached, or the repository is absent, private or gated.
    """
    limits = {"train": max_train_samples, "test": max_test_samples}
    _check_options(name, mixture, test_split, invalid_rows, test_split_size, limits)
    tally = Tally()
    kind = _Kind(task, tuple(keep_columns), invalid_rows)
    if mixture is not None:
        sides, sources = _read_mixture(mixture, columns, kind, tally)
    else:
        raw = open_source(str(name), config, revision)
        chosen = choose_splits(raw, train_split, test_split, task, tally)
        sides, sources = _read_splits(raw, chosen, columns, kind, tally), [raw.source]
    _refuse_nothing_left(sides, tally, name or "the mixture")
    is_conversational = unify(list(sides.values()), conversational, tally)
    sides, keys, overlap = _split_and_limit(sides, test_split_size, limits, seed, tally)
    report = _report(sides, keys, tally, sources, task, is_conversational, overlap)
    return LoadedData(_as_datasets(sides, is_conversational, keep_columns), report, sources)


def _split_and_limit(
    sides: dict[str, Rows],
    test_split_size: float,
    limits: Mapping[str, int | None],
    seed: int,
    tally: Tally,
) -> tuple[dict[str, Rows], dict[str, list[bytes]], int]:
    """Both sides, their prompts' keys, and how many prompts the source had on both."""
    keys = {side: [by_prompt.prompt_key(row) for row in rows] for side, rows in sides.items()}
    overlap = len(set(keys["train"]) & set(keys.get("test", ())))
    if "test" not in sides and test_split_size > 0:
        sides, keys = _hold_out(sides["train"], keys["train"], test_split_size, seed)
        tally.note(f"no test split: {test_split_size:g} of the prompts held out (seed {seed})")
    for side, limit in limits.items():
        if limit is not None and len(sides.get(side, ())) > limit:
            kept = by_prompt.sample_rows(sides[side], keys[side], limit, seed)
            tally.dropped[f"max_{side}_samples"] = len(sides[side]) - len(kept)
            sides[side] = [sides[side][i] for i in kept]
            keys[side] = [keys[side][i] for i in kept]
    return sides, keys, overlap


@dataclass(frozen=True)
class _Kind:
    task: Task
    keep_columns: tuple[str, ...]
    invalid_rows: Literal["error", "drop"]


def _check_options(
    name: str | None,
    mixture: list[dict] | None,
    test_split: str | None,
    invalid_rows: str,
    test_split_size: float,
    limits: Mapping[str, int | None],
) -> None:
    if (name is None) == (mixture is None):
        raise InputError("give either --dataset_name or a 'datasets' mixture, not both or neither")
    if mixture is not None and test_split is not None:
        raise InputError(
            f"--dataset_test_split {test_split}: a mixture has none; use --test_split_size"
        )
    if invalid_rows not in ("error", "drop"):
        raise InputError(f"--invalid_rows {invalid_rows}: expected 'error' or 'drop'")
    if not 0 <= test_split_size < 1:
        raise InputError(f"--test_split_size {test_split_size}: expected 0 or a fraction below 1")
    for side, limit in limits.items():
        if limit is not None and limit < 1:
            raise InputError(f"--max_{side}_samples {limit}: expected 1 or more")


def _normalised(
    split: RawSplit,
    side: str,
    columns: Mapping[str, str] | None,
    kind: _Kind,
    tally: Tally,
) -> Rows:
    tally.rows_read[side] = tally.rows_read.get(side, 0) + len(split.rows)
    return normalise_split(
        split,
        kind.task,
        tally,
        columns=columns,
        keep_columns=kind.keep_columns,
        invalid_rows=kind.invalid_rows,
    )


def _read_splits(
    raw: RawData,
    chosen: Mapping[str, str],
    columns: Mapping[str, str] | None,
    kind: _Kind,
    tally: Tally,
) -> dict[str, Rows]:
    tally.notes += raw.notes
    return {
        side: _normalised(raw.readers[split](), side, columns, kind, tally)
        for side, split in chosen.items()
    }


def _read_mixture(
    mixture: list[dict], columns: Mapping[str, str] | None, kind: _Kind, tally: Tally
) -> tuple[dict[str, Rows], list[DataSource]]:
    parts, sources = [], []
    for part in check_mixture(mixture):
        raw = open_source(
            part["path"],
            config=part.get("name"),
            revision=part.get("revision"),
            data_dir=part.get("data_dir"),
            data_files=part.get("data_files"),
        )
        tally.notes += raw.notes
        sources.append(raw.source)
        split = select_split(raw, part.get("split") or "train")
        mapping = part.get("columns")
        if isinstance(mapping, list):
            split, mapping = select_columns(split, mapping, part["path"]), None
        parts.append(_normalised(split, "train", mapping or columns, kind, tally))
    cut = cut_to_fractions(parts, [part.get("fraction") for part in mixture], tally)
    return {"train": [row for part in cut for row in part]}, sources


def choose_splits(
    raw: RawData, train_split: str, test_split: str | None, task: Task, tally: Tally
) -> dict[str, str]:
    """The source's splits to use: `train` and, where there is one, `test`.

    Names of alignment-handbook (`train_prefs`, `test_sft`, …) stand in for plain ones.

    Raises:
        InputError: A split does not exist; the message lists those that do.
    """
    available = list(raw.readers)
    suffixes = ("", *_SUFFIXES[task])
    train = _first(available, [train_split + suffix for suffix in suffixes])
    if train is None:
        raise InputError(
            f"--dataset_train_split {train_split}: no such split in {raw.source.name}; "
            f"available: {', '.join(available)}"
        )
    wanted = [test_split] if test_split is not None else list(_TEST_NAMES)
    names = [name + suffix for name in wanted for suffix in suffixes]
    test = _first(available, [name for name in names if name != train])
    if test is None and test_split is not None:
        raise InputError(
            f"--dataset_test_split {test_split}: no such split in {raw.source.name} besides "
            f"'{train}'; available: {', '.join(available)}"
        )
    chosen = {"train": train} if test is None else {"train": train, "test": test}
    renamed = [f"{side} = '{split}'" for side, split in chosen.items() if side != split]
    if renamed and len(available) > 1:
        tally.note(f"splits used: {', '.join(renamed)}")
    unused = [split for split in available if split not in chosen.values()]
    if unused:
        tally.note(f"splits not used: {', '.join(unused)}")
    return chosen


def _first(available: Sequence[str], candidates: Sequence[str]) -> str | None:
    return next((name for name in candidates if name in available), None)


def _refuse_nothing_left(sides: Mapping[str, Rows], tally: Tally, name: str) -> None:
    for side, rows in sides.items():
        if rows:
            continue
        reasons = ", ".join(f"{reason} {count}" for reason, count in tally.dropped.items())
        if set(tally.dropped) == {"identical_pair"}:
            raise InputError(
                f"{name}: chosen and rejected are identical in all "
                f"{tally.dropped['identical_pair']} pairs of {side}; there is nothing to learn"
            )
        raise InputError(
            f"{name}: no usable rows in {side} of {tally.rows_read[side]} read; dropped: {reasons}"
        )


def _hold_out(
    rows: Rows, keys: list[bytes], test_size: float, seed: int
) -> tuple[dict[str, Rows], dict[str, list[bytes]]]:
    held_out = by_prompt.held_out_prompts(keys, test_size, seed)
    train = [i for i, key in enumerate(keys) if key not in held_out]
    test = [i for i, key in enumerate(keys) if key in held_out]
    indices = {"train": train, "test": test}
    return (
        {side: [rows[i] for i in chosen] for side, chosen in indices.items()},
        {side: [keys[i] for i in chosen] for side, chosen in indices.items()},
    )


def _report(
    sides: Mapping[str, Rows],
    keys: Mapping[str, list[bytes]],
    tally: Tally,
    sources: list[DataSource],
    task: Task,
    conversational: bool,
    overlap: int,
) -> DataReport:
    everything = [row for rows in sides.values() for row in rows]
    warnings = []
    counted = {**tally.counted, **repeats(everything)}
    if overlap:
        counted["prompt_overlap"] = overlap
        warnings.append(f"{overlap} prompts of the test split are also in train: not held out")
    return DataReport(
        sources=sources,
        task=task,
        layout=" + ".join(dict.fromkeys(tally.layouts)),
        conversational=conversational,
        rows_read=tally.rows_read,
        rows_kept={side: len(rows) for side, rows in sides.items()},
        dropped=dict(tally.dropped),
        counted=counted,
        notes=tally.notes,
        warnings=warnings,
        lengths=length_stats(everything),
        length_bias=length_bias(everything),
        prompts={side: len(set(side_keys)) for side, side_keys in keys.items()},
        overlap=overlap,
    )


def _as_datasets(
    sides: Mapping[str, Rows], conversational: bool, keep_columns: Sequence[str]
) -> datasets.DatasetDict:
    import datasets

    present = set().union(*(row for rows in sides.values() for row in rows))
    columns = [name for name in (*OUTPUT_COLUMNS, *keep_columns) if name in present]
    return datasets.DatasetDict(
        {side: build_dataset(rows, conversational, columns) for side, rows in sides.items()}
    )
