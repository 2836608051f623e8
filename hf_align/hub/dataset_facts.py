"""What can be counted in a preference dataset: rows, prompts, agreement, length and position bias.

Shares come with intervals clustered by prompt; a fact whose columns are missing is None.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_align.hub.tables import Tables, prompt_keys, values_of
from hf_align.statistics import clustered_share
from hf_align.types import content_of

if TYPE_CHECKING:
    import pyarrow as pa

ANNOTATORS = ("annotator", "annotator_id", "judge")
"""Columns that say who judged."""

_CHOICES = ("choice", "preference", "vote")
_FIRST, _SECOND = ("a", "left", "first"), ("b", "right", "second")


def dataset_facts(tables: Tables) -> dict[str, Any]:
    """Everything that the tables themselves tell: the numbers of a dataset card.

    Returns:
        `configs` (rows, prompts, prompts that splits share, and columns of each table),
        `annotators`, `agreement`, `length_bias`, `position_bias`, `choices`; plain values, ready
        for JSON.
    """
    pairs = _joined(tables, "preference")
    judged = _joined(tables, "comparisons") or pairs
    return {
        "configs": {config: _config_facts(splits) for config, splits in tables.items()},
        "annotators": _annotators(judged),
        "agreement": _agreement(pairs),
        "length_bias": _length_bias(pairs),
        "position_bias": _position_bias(judged),
        "choices": _choices(judged),
    }


def _joined(tables: Tables, config: str) -> pa.Table | None:
    import pyarrow as pa

    splits = tables.get(config)
    if not splits:
        return None
    return pa.concat_tables(splits.values(), promote_options="default")


def _config_facts(splits: dict[str, pa.Table]) -> dict[str, Any]:
    schema = next(iter(splits.values())).schema
    counts, seen, shared = {}, set(), set()
    for split, table in splits.items():
        keys = prompt_keys(table)
        counts[split] = {"rows": table.num_rows, "prompts": None if keys is None else len({*keys})}
        shared |= seen & set(keys or ())
        seen |= set(keys or ())
    columns = {field.name: str(field.type) for field in schema}
    return {"splits": counts, "shared_prompts": len(shared), "columns": columns}


def _column(table: pa.Table | None, names: Sequence[str]) -> list[Any] | None:
    if table is None:
        return None
    name = next((name for name in names if name in table.column_names), None)
    return None if name is None else table.column(name).to_pylist()


def _annotators(table: pa.Table | None) -> dict[str, int] | None:
    """How many there are, and how many judgements they gave; not who they are."""
    given = _column(table, ANNOTATORS)
    if given is None:
        return None
    counts = sorted(Counter(given).values())
    return {"number": len(counts), "fewest": counts[0], "most": counts[-1]}


def _agreement(table: pa.Table | None) -> dict[str, Any] | None:
    """How often two annotators of one pair of answers prefer the same one."""
    names = _column(table, ANNOTATORS)
    if table is None or names is None:
        return None
    prompts = prompt_keys(table) or []
    answers = [table.column(name).to_pylist() for name in ("chosen", "rejected")]
    votes: dict[Any, dict[Any, str]] = defaultdict(dict)
    for prompt, chosen, rejected, who in zip(prompts, *answers, names, strict=True):
        pair = (prompt, *sorted((repr(chosen), repr(rejected))))
        votes[pair][who] = repr(chosen)
    same, cluster = [], []
    for (prompt, *_), by_annotator in votes.items():
        counts, n = Counter(by_annotator.values()), len(by_annotator)
        if n > 1:
            alike = sum(c * (c - 1) for c in counts.values()) / (n * (n - 1))
            same.append(alike)
            cluster.append(prompt)
    return _share(same, cluster)


def _length_bias(table: pa.Table | None) -> dict[str, Any] | None:
    """How often the chosen answer is the longer one, in characters; equal lengths count half."""
    if table is None or not {"chosen", "rejected"} <= {*table.column_names}:
        return None
    lengths = [
        np.array([len(content_of(text)) for text in values_of(table.column(name))])
        for name in ("chosen", "rejected")
    ]
    longer = (np.sign(lengths[0] - lengths[1]) + 1) / 2
    return _share(longer.tolist(), prompt_keys(table) or range(len(longer)))


def _choices(table: pa.Table | None) -> dict[str, int] | None:
    """How often each answer to the question "which is better?" was given."""
    given = _column(table, _CHOICES)
    if given is None or not all(isinstance(choice, str) for choice in given):
        return None
    return dict(Counter(given).most_common())


def _position_bias(table: pa.Table | None) -> dict[str, Any] | None:
    """How often the answer that was shown first won, of the decided ones."""
    given = _column(table, _CHOICES)
    if table is None or given is None:
        return None
    keys = prompt_keys(table) or [str(index) for index in range(len(given))]
    decided = [
        (float(choice.lower() in _FIRST), key)
        for choice, key in zip(given, keys, strict=True)
        if isinstance(choice, str) and choice.lower() in _FIRST + _SECOND
    ]
    return _share([first for first, _ in decided], [key for _, key in decided])


def _share(values: Sequence[float], prompts: Sequence[Any]) -> dict[str, Any] | None:
    if not values:
        return None
    numbers = {key: place for place, key in enumerate(dict.fromkeys(prompts))}
    clusters = np.array([numbers[key] for key in prompts])
    return clustered_share(np.asarray(values, dtype=float), clusters).to_dict()
