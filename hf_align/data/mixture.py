"""Mixtures of datasets with TRL's keys and semantics: shares of the whole, nothing oversampled.

https://huggingface.co/docs/trl/script_utils#trl.DatasetMixtureConfig
"""

from __future__ import annotations

from collections.abc import Sequence

from hf_align.data.preparing import Tally
from hf_align.data.sources import RawData, RawSplit
from hf_align.types import InputError

KEYS = ("path", "name", "data_dir", "data_files", "split", "columns", "fraction", "revision")


def check_mixture(mixture: Sequence[dict]) -> list[dict]:
    """The parts, checked.

    `columns` is TRL's list of columns to keep, or a mapping of layout columns to the part's own.

    Raises:
        InputError: Empty, an unknown key, no path, or fractions given for some parts only, negative
            or all 0.
    """
    if not mixture:
        raise InputError("datasets: the mixture is empty; give at least one {path: …}")
    fractions = [part.get("fraction") for part in mixture if isinstance(part, dict)]
    parts = []
    for number, part in enumerate(mixture, start=1):
        if not isinstance(part, dict) or not isinstance(part.get("path"), str):
            raise InputError(f"datasets: part {number} has no 'path', got {part!r}")
        unknown = sorted(set(part) - set(KEYS))
        if unknown:
            raise InputError(
                f"datasets: part {number} ({part['path']}): unknown key '{unknown[0]}'; "
                f"known keys: {', '.join(KEYS)}"
            )
        _check_fraction(part, number, fractions[0] is not None)
        columns = part.get("columns")
        if columns is not None and not isinstance(columns, (dict, list)):
            raise InputError(
                f"datasets: part {number} ({part['path']}): columns {columns!r}: expected a list "
                "of columns or a mapping"
            )
        parts.append(dict(part))
    if fractions[0] is not None and not sum(fractions) > 0:
        raise InputError("datasets: all fractions are 0; give at least one a share")
    return parts


def _check_fraction(part: dict, number: int, expected: bool) -> None:
    fraction = part.get("fraction")
    if (fraction is not None) != expected:
        raise InputError("datasets: give a fraction for every part of the mixture or for none")
    is_number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
    if expected and not (is_number and fraction >= 0):
        raise InputError(
            f"datasets: part {number} ({part['path']}): fraction {fraction!r}: expected a share "
            "of 0 or more"
        )


def select_split(raw: RawData, spec: str) -> RawSplit:
    """The rows of a split in the notation of `datasets`: `train`, `train[:10%]`, `train+test`.

    https://huggingface.co/docs/datasets/loading#slice-splits

    Raises:
        InputError: The notation is wrong, or there is no such split.
    """
    import datasets

    if spec in raw.readers:
        return raw.readers[spec]()
    try:
        instruction = datasets.ReadInstruction.from_spec(spec)
        wanted = [name.split("[")[0].strip() for name in spec.split("+")]
        read = {name: raw.readers[name]() for name in dict.fromkeys(wanted)}
        ranges = instruction.to_absolute({name: len(split.rows) for name, split in read.items()})
    except KeyError as error:
        raise InputError(
            f"split {spec}: no such split in {raw.source.name}; available: {', '.join(raw.readers)}"
        ) from error
    except (ValueError, AssertionError) as error:
        raise InputError(f"split {spec}: {error}") from error
    selected = RawSplit([], [], [])
    for part in ranges:
        low, high = part.from_ or 0, part.to
        source = read[part.splitname]
        selected.append(source, low, len(source.rows) if high is None else high)
    return selected


def select_columns(split: RawSplit, columns: Sequence[str], source: str) -> RawSplit:
    """The rows with these columns alone, as TRL's `columns` list asks.

    Raises:
        InputError: A column is not there.
    """
    available = set().union(*split.rows)
    for column in columns:
        if column not in available:
            raise InputError(
                f"datasets: columns: no column '{column}' in {source}; "
                f"available: {', '.join(sorted(available))}"
            )
    rows = [{column: row.get(column) for column in columns} for row in split.rows]
    return RawSplit(rows, split.labels, split.starts)


def cut_to_fractions(
    parts: list[list[dict[str, object]]], fractions: Sequence[float | None], tally: Tally
) -> list[list[dict[str, object]]]:
    """The first rows of each part, so that the parts have the target shares.

    With w_i = fraction_i / Σ fraction, the mixture has the largest total for which no part must
    repeat rows, min_i n_i / w_i, and part i gives round(w_i · total) rows. The usable rows count,
    so that dropped rows do not shift the shares.

    Raises:
        InputError: The smallest part leaves no rows at all.
    """
    given = [fraction for fraction in fractions if fraction is not None]
    if not given:
        return parts
    weights = [fraction / sum(given) for fraction in given]
    total = min(len(p) / w for p, w in zip(parts, weights, strict=True) if w > 0)
    cut = [part[: round(w * total)] for part, w in zip(parts, weights, strict=True)]
    left_out = sum(map(len, parts)) - sum(map(len, cut))
    if left_out:
        tally.dropped["fraction"] += left_out
    if not any(cut):
        raise InputError("datasets: the fractions leave no rows; a part is empty or too small")
    return cut
