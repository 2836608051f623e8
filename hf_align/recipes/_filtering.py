"""The work of the `filter` recipe: scores the rows of a stream, finds the cut, copies what is kept.

Of a row only 20 bytes are remembered, in a file; its text is read again when it is copied.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from hf_align.configs import FilterArguments
from hf_align.data.streaming import Block, RowStream, fitted, merged_schema
from hf_align.recipes._filter_inputs import SCORE, Reward, RowReader, Scorable, score_exists
from hf_align.recipes._filter_output import RECORD, ShardWriter, writing
from hf_align.rewards import checked_scores
from hf_align.types import InputError, Text, content_of

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_ROWS = 1000
_MOST_SUBSETS = 1000
_NUM_EXAMPLES = 5  # of each kind
_KINDS = ("kept, highest", "kept, nearest the cut", "dropped, nearest the cut", "dropped, lowest")


def _blocks(stream: RowStream, options: FilterArguments) -> Iterator[Block]:
    """The blocks of the first `max_rows` rows; of a size that lets a batch have similar lengths."""
    left = options.max_rows
    for block in stream.read(max(_BLOCK_ROWS, 4 * options.batch_size)):
        if left is None or len(block) < left:
            yield block
        else:
            rows, table = block.rows and block.rows[:left], block.table and block.table[:left]
            yield replace(block, rows=rows, table=table)
            return
        left = left and left - len(block)


@dataclass
class Scored:
    """What is known of the rows after the first reading.

    Attributes:
        file: One `RECORD` per row, in order.
        schema: Columns and types of all usable rows.
        unusable: Why rows could not be scored, reason -> how many.
        subsets: Labels of `subset_column`, in the order of their numbers.
    """

    file: Path
    schema: pa.Schema | None = None
    unusable: Counter[str] = field(default_factory=Counter)
    subsets: dict[str, int] = field(default_factory=dict)

    def records(self) -> np.ndarray:
        """(N,) records, left on the disk."""
        return np.memmap(self.file, RECORD, mode="r")


def score_rows(
    stream: RowStream, reader: RowReader, reward: Reward, options: FilterArguments, draft: Path
) -> Scored:
    """Reads and scores every row.

    Raises:
        InputError: A faulty row, a reward that fails, or columns that have no one type.
        OSError: The data cannot be read, or the draft cannot be written.
    """
    scored = Scored(draft / "scores.bin", stream.schema)
    total = min(filter(None, (stream.num_rows, options.max_rows)), default=None)
    bar = tqdm(total=total, desc="scored", unit=" rows", disable=None)
    with bar, scored.file.open("wb") as file:
        for block in _blocks(stream, options):
            rows = block.to_rows()
            found = reader.read(block, rows, scored.unusable)
            if stream.schema is None and found:
                usable = block.take([item.index for item in found])
                scored.schema = merged_schema(scored.schema, usable.schema, block.label)
                if options.keep_scores and SCORE in scored.schema.names:
                    raise score_exists()
            records = np.zeros(len(rows), RECORD)
            records["score"] = np.nan
            if found:
                places = [item.index for item in found]
                records["score"][places] = _scores(reward, block, found, options)
                texts = [content_of(item.completion) for item in found]
                records["words"][places] = [len(text.split()) for text in texts]
                records["characters"][places] = [len(text) for text in texts]
                records["group"][places] = [item.group for item in found]
            if options.subset_column is not None:
                records["subset"] = [_subset(row, scored, options) for row in rows]
            with writing(Path(options.output_dir)):
                file.write(records.tobytes())
                file.flush()
            bar.update(len(rows))
    return scored


def _scores(
    reward: Reward, block: Block, found: Sequence[Scorable], options: FilterArguments
) -> np.ndarray:
    """(N,) finite scores: a function gets a batch, a model the block, which it sorts by length."""
    size = len(found) if reward.model is not None else options.batch_size
    scores: list[float] = []
    for start in range(0, len(found), size):
        some = found[start : start + size]
        prompts, completions = [s.prompt for s in some], [s.completion for s in some]
        try:
            given = reward.score(prompts=prompts, completions=completions)
            _refuse_nan(given, [block.location(item.index) for item in some], reward.name)
            scores += checked_scores(given, len(some), reward.name)
        except InputError as error:
            first, last = (block.first + item.index + 1 for item in (some[0], some[-1]))
            where = f"rows {first:,} to {last:,} of {block.label}"
            raise InputError(f"{error} (while scoring {where})") from error
    return np.array(scores)


def _refuse_nan(given: Sequence[float], locations: Sequence[str], name: str) -> None:
    """Names the row, which `checked_scores` does not know."""
    for location, score in zip(locations, given if isinstance(given, list) else [], strict=False):
        if isinstance(score, float) and not math.isfinite(score):
            raise InputError(
                f"reward {name} returned {score} for {location}; a reward that cannot score must "
                "raise"
            )


def _subset(row: Mapping[str, object], scored: Scored, options: FilterArguments) -> int:
    label = str(row.get(str(options.subset_column)))
    number = scored.subsets.setdefault(label, len(scored.subsets))
    if number >= _MOST_SUBSETS:
        raise InputError(
            f"subset_column {options.subset_column} has more than {_MOST_SUBSETS:,} different "
            "values; name a column of categories"
        )
    return number


@dataclass(frozen=True)
class Cut:
    """Where the line is drawn.

    Attributes:
        value: Rows with at least this score are kept.
        wanted: How many rows were asked for; None for a threshold.
    """

    value: float
    wanted: int | None = None


def find_cut(scored: Scored, options: FilterArguments) -> Cut:
    """The threshold, or the score of the last row of the best `keep_fraction`.

    That share of N scored rows is round(N · keep_fraction), half up, and at least one row.

    Raises:
        InputError: No row scores as high as the threshold.
    """
    scores = scored.records()["score"]
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in scored.unusable.items())
        raise InputError(f"{options.dataset_name}: no usable rows; left out: {reasons}")
    if options.threshold is None:
        wanted = max(1, math.floor(scores.size * float(options.keep_fraction or 0) + 0.5))
        place = scores.size - wanted
        return Cut(float(np.partition(scores, place)[place]), wanted)
    if scores.max() < options.threshold:
        raise InputError(
            f"threshold {options.threshold:g} drops all {scores.size:,} rows: the highest score is "
            f"{scores.max():.4g}, the median {np.median(scores):.4g}; lower it"
        )
    return Cut(options.threshold)


@dataclass(frozen=True)
class Example:
    """A row for the report: where it is, its score, and what of it was scored."""

    kind: str
    location: str
    score: float
    prompt: Text
    completion: Text


def example_rows(scores: np.ndarray, cut: float) -> dict[int, str]:
    """Rows to show, row -> kind: nearest to the cut and farthest from it, kept and dropped."""
    chosen: dict[int, str] = {}
    for rows, near, far in ((scores >= cut, *_KINDS[1::-1]), (scores < cut, *_KINDS[2:])):
        places = np.flatnonzero(rows)
        order = places[np.argsort(np.abs(scores[places] - cut), kind="stable")]
        chosen |= dict.fromkeys(order[_NUM_EXAMPLES:][-_NUM_EXAMPLES:].tolist(), far)
        chosen |= dict.fromkeys(order[:_NUM_EXAMPLES].tolist(), near)
    return chosen


def write_kept(
    stream: RowStream,
    reader: RowReader,
    scored: Scored,
    cut: Cut,
    options: FilterArguments,
    draft: Path,
) -> list[Example]:
    """Reads the rows again and writes those that score at least the cut, in order.

    Returns:
        The report's examples, by kind and score.

    Raises:
        OSError: The data changed since they were scored, or the draft cannot be written.
    """
    import pyarrow as pa

    scores = scored.records()["score"]
    schema = scored.schema
    if options.keep_scores:
        schema = schema.append(pa.field(SCORE, pa.float64()))
    shown, examples, start = example_rows(scores, cut.value), [], 0
    with writing(Path(options.output_dir)):
        writer = ShardWriter(draft / "data", schema)
    for block in _blocks(stream, options):
        own = scores[start : start + len(block)]
        if len(own) < len(block):
            break
        kept = np.flatnonzero(own >= cut.value)
        if kept.size:
            table = fitted(block.take(kept), scored.schema)
            if options.keep_scores:
                table = table.append_column(schema.field(SCORE), pa.array(own[kept]))
            with writing(Path(options.output_dir)):
                writer.write(table)
        places = [place for place in range(len(block)) if start + place in shown]
        rows = block.to_rows() if places else []
        for place in places:
            [item] = reader.read(block, [rows[place]], Counter())
            score = float(own[place])
            examples.append(
                Example(
                    shown[start + place],
                    block.location(place),
                    score,
                    item.prompt,
                    item.completion,
                )
            )
        start += len(block)
    if start != len(scores):
        raise OSError(f"{options.dataset_name} changed while it was read; run it again")
    with writing(Path(options.output_dir)):
        writer.close()
    return sorted(examples, key=lambda example: (_KINDS.index(example.kind), -example.score))
