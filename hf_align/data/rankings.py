"""K-wise rankings as data: what a row must hold, and the pairs that it orders.

A ranking is `completions`, a list of texts, and `ranks`, a list of integers beside it: 1 is the
best, and equal ranks are a tie, which orders nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations

from hf_align.data.texts import InvalidRow, is_missing, require_completion
from hf_align.types import Text


def ordered_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """The (better, worse) indices of every strictly ordered pair; ties give none."""
    pairs = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in pairs if ranks[i] != ranks[j]]


def completions_and_ranks(row: Mapping) -> tuple[list[Text], list[int]]:
    """A normalised row's completions and their ranks: a ranking's own, or a pair's two."""
    if "ranks" in row:
        return row["completions"], row["ranks"]
    return [row["chosen"], row["rejected"]], [1, 2]


def require_ranking(row: Mapping) -> tuple[list[Text], list[int]]:
    """The completions and ranks of a source row, checked.

    Raises:
        InvalidRow: `bad_ranks` for unequal lengths, fewer than two, or a rank that is no integer of
            at least 1; `missing` or `not_list`; else as `require_completion`, with the position.
    """
    given = _list_of(row.get("completions"), "completions")
    ranks = _list_of(row.get("ranks"), "ranks")
    if len(ranks) != len(given) or len(ranks) < 2:
        detail = f"{len(ranks)} ranks for {len(given)} completions, expected two or more each"
        raise InvalidRow("bad_ranks", "ranks", detail)
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            detail = f"expected whole numbers, 1 for the best, got {rank!r} in {ranks!r}"
            raise InvalidRow("bad_ranks", "ranks", detail)
    return [_completion(text, place) for place, text in enumerate(given, start=1)], ranks


def _completion(text: object, place: int) -> Text:
    try:
        return require_completion(text, "completions")
    except InvalidRow as error:
        detail = f"completion {place}: {error.detail}"
        raise InvalidRow(error.reason, "completions", detail) from error


def _list_of(value: object, column: str) -> list:
    if is_missing(value):
        raise InvalidRow("missing", column, "no value (null)")
    if isinstance(value, str):  # a CSV cell
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InvalidRow("not_list", column, f"expected a JSON list, got {value!r}") from error
    if not isinstance(value, list):
        raise InvalidRow("not_list", column, f"expected a list, got {type(value).__name__}")
    return value
