"""Splits and samples by prompt: every row of a prompt lies on one side, whatever the row order.

A prompt's side depends on nothing but its text and the seed (BLAKE2 hash), so it does not change
when rows are added, permuted or duplicated, nor between machines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hf_align.data.texts import canonical
from hf_align.types import InputError, Text

if TYPE_CHECKING:
    import datasets


def prompt_key(row: Mapping[str, object]) -> bytes:
    """What identifies a row's prompt: `prompt`, else a conversation's opening, else `text`.

    A conversation's opening is everything before its first answer, so dialogues that start alike
    stay together.
    """
    if "prompt" in row:
        text: Text = row["prompt"]  # type: ignore[assignment]
    elif "messages" in row:
        turns: list = row["messages"]  # type: ignore[assignment]
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
        text = turns[: first or 1]
    else:
        text = row["text"]  # type: ignore[assignment]
    return hashlib.blake2b(canonical(text), digest_size=16).digest()


def row_key(row: Mapping[str, object]) -> bytes:
    """What identifies a whole row: equal for exact duplicates alone."""
    content = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def unit_interval(key: bytes, seed: int, purpose: str) -> float:
    """A number in [0, 1), uniform over keys; it depends on key, seed and purpose alone."""
    digest = hashlib.blake2b(key, digest_size=8, person=purpose.encode(), salt=_salt(seed))
    return int.from_bytes(digest.digest(), "big") / 2**64


def _salt(seed: int) -> bytes:
    return hashlib.blake2b(str(seed).encode(), digest_size=16).digest()


def held_out_prompts(keys: Iterable[bytes], test_size: float, seed: int) -> set[bytes]:
    """The prompts of the test side: each with probability `test_size`, at least one on either side.

    Raises:
        InputError: There is one prompt only, or `test_size` is not in (0, 1).
    """
    if not 0 < test_size < 1:
        raise InputError(
            f"--test_split_size {test_size}: expected a fraction between 0 and 1 "
            "(0 for no test split)"
        )
    position = {key: unit_interval(key, seed, "split") for key in keys}
    if len(position) < 2:
        raise InputError(
            f"--test_split_size {test_size}: cannot split {len(position)} distinct prompt(s) into "
            "train and test; give more prompts, a test split, or --test_split_size 0"
        )
    ordered = sorted(position, key=position.__getitem__)
    chosen = {key for key in ordered if position[key] < test_size}
    if not chosen:
        return {ordered[0]}
    return chosen - {ordered[-1]} if len(chosen) == len(ordered) else chosen


def split_by_prompt(dataset: datasets.Dataset, test_size: float, seed: int) -> datasets.DatasetDict:
    """Splits a normalised dataset into train and test, all rows of a prompt on one side.

    Raises:
        InputError: As `held_out_prompts`.
    """
    import datasets

    columns = [c for c in ("prompt", "messages", "text") if c in dataset.column_names][:1]
    keys = [prompt_key(row) for row in dataset.select_columns(columns).to_list()]
    test = held_out_prompts(keys, test_size, seed)
    sides = {
        "train": [i for i, key in enumerate(keys) if key not in test],
        "test": [i for i, key in enumerate(keys) if key in test],
    }
    return datasets.DatasetDict({side: dataset.select(rows) for side, rows in sides.items()})


def sample_rows(
    rows: Sequence[Mapping[str, object]], keys: Sequence[bytes], limit: int, seed: int
) -> list[int]:
    """Indices of at most `limit` rows, chosen in the order of the prompts' hashes, in source order.

    The same rows are chosen whatever the row order, and a smaller limit chooses a subset.
    """
    if limit >= len(rows):
        return list(range(len(rows)))
    order = sorted(
        range(len(rows)),
        key=lambda i: (unit_interval(keys[i], seed, "sample"), row_key(rows[i])),
    )
    return sorted(order[:limit])
