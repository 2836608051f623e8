"""Whole splits in TRL's columns: mapped, normalised row by row, brought into one form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hf_align.data import layouts
from hf_align.data.layouts import Task, detect_layout
from hf_align.data.rows import normalise_row
from hf_align.data.sources import RawRow, RawSplit
from hf_align.data.texts import InvalidRow, as_completion, as_prompt, split_last_answer
from hf_align.types import InputError

if TYPE_CHECKING:
    import datasets

OUTPUT_COLUMNS = (
    *("prompt", "chosen", "rejected", "completion", "messages", "text", "probability"),
    *("completions", "ranks"),
)
_SAMPLE = 100  # rows that tell the layout

_MESSAGES_SCHEMA_COLUMNS = ("prompt", "chosen", "rejected", "completion", "messages")
_BATCH = 20_000  # rows per Arrow chunk: a chunk's text must stay below 2 GiB


@dataclass
class Tally:
    """What happened to the rows so far, over all splits and parts."""

    dropped: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    layouts: list[str] = field(default_factory=list)
    rows_read: dict[str, int] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Adds a note once."""
        if text not in self.notes:
            self.notes.append(text)


def map_columns(rows: list[RawRow], columns: Mapping[str, str] | None, source: str) -> list[RawRow]:
    """Rows under the layouts' column names; the column that a mapped one replaces is left out.

    Raises:
        InputError: A name that no layout reads, or a column that is not there.
    """
    if not columns:
        return rows
    available = set().union(*rows)
    for role, column in columns.items():
        if role not in (*layouts.COLUMNS, layouts.MARGIN):
            known = ", ".join(layouts.COLUMNS)
            raise InputError(f"columns: cannot map {role!r}; known columns: {known}")
        if column not in available:
            raise InputError(
                f"--{role}_column {column}: no such column in {source}; "
                f"available: {', '.join(sorted(available))}"
            )
    taken = {*columns, *columns.values()}
    return [
        {
            **{name: value for name, value in row.items() if name not in taken},
            **{role: row.get(column) for role, column in columns.items()},
        }
        for row in rows
    ]


def normalise_split(
    raw: RawSplit,
    task: Task,
    tally: Tally,
    *,
    columns: Mapping[str, str] | None = None,
    keep_columns: Sequence[str] = (),
    invalid_rows: Literal["error", "drop"] = "error",
) -> list[dict[str, object]]:
    """All usable rows of a split in TRL's columns; what is not usable goes into the tally.

    Raises:
        InputError: No layout fits, or (with `invalid_rows="error"`) the first faulty row, named by
            file, row and column.
    """
    if not raw.rows:
        raise InputError(f"{', '.join(raw.labels) or 'dataset'}: no rows")
    source = raw.labels[0]
    mapped = map_columns(raw.rows, columns, source)
    names = set().union(*mapped)
    layout = _layout(names, mapped, task, columns, source)
    tally.layouts.append(layout)
    _check_kept(keep_columns, names, source)
    normalised = []
    for index, row in enumerate(mapped):
        try:
            result = normalise_row(row, layout, task)
            kept = {name: _kept(row, name) for name in keep_columns}
        except InvalidRow as error:
            if invalid_rows == "error":
                column = (columns or {}).get(error.column, error.column)
                raise InputError(
                    f"{raw.location(index)}, column '{column}': {error.detail}; "
                    "drop such rows with --invalid_rows drop"
                ) from error
            tally.dropped[error.reason] += 1
            continue
        tally.dropped.update(result.dropped)
        tally.counted.update(result.counted)
        normalised += [{**out, **kept} for out in result.rows] if kept else result.rows
    _note_use(names, keep_columns, layout, task, tally)
    return normalised


def _layout(
    names: set[str],
    rows: list[RawRow],
    task: Task,
    columns: Mapping[str, str] | None,
    source: str,
) -> str:
    """The layout of what the user mapped if that suffices, else of all columns."""
    sample = rows[:_SAMPLE]
    if columns:
        try:
            asking = {"prompt", "input", *layouts.INSTRUCTION_COLUMNS} & names
            return detect_layout({*columns, *asking}, sample, task)
        except InputError:
            pass  # the mapping completes the other columns
    try:
        return detect_layout(names, sample, task)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _check_kept(keep_columns: Sequence[str], names: set[str], source: str) -> None:
    for name in keep_columns:
        if name not in names or name in OUTPUT_COLUMNS:
            why = "a column of the result already" if name in OUTPUT_COLUMNS else "no such column"
            raise InputError(
                f"keep_columns {name!r}: {why} in {source}; available: "
                f"{', '.join(sorted(names - set(OUTPUT_COLUMNS))) or '(none)'}"
            )


def _kept(row: RawRow, name: str) -> object:
    """The value of a column that goes along; a margin as a finite number.

    A NaN among the margins would turn the whole batch's loss, and with it the model, into NaN.
    """
    value = row.get(name)
    if name != layouts.MARGIN:
        return value
    if value is None:
        raise InvalidRow("missing", name, "no value (null)")
    try:
        number = float("nan") if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise InvalidRow("bad_margin", name, f"expected a finite number, got {value!r}")
    return number


def _note_use(
    names: set[str], keep_columns: Sequence[str], layout: str, task: Task, tally: Tally
) -> None:
    unused = sorted(names - set(layouts.COLUMNS) - set(keep_columns))
    if unused:
        tally.note(f"columns not used: {', '.join(unused)}")
    if task == "sft" and "preference" in layouts.TASKS[layout]:
        tally.note("preference data used for SFT: trained on the prompt and the chosen completion")
    if task == "ranking" and layout != "ranked":
        tally.note("pairs used as rankings of two completions")


def unify(
    parts: Sequence[list[dict[str, object]]], conversational: bool | None, tally: Tally
) -> bool:
    """Gives all rows of all parts one form, in place; True when that form is messages.

    Where some rows are messages and some plain text, the plain ones become one-turn conversations.

    Args:
        parts: Lists of normalised rows.
        conversational: True wraps plain text; False unwraps one-turn conversations; None does what
            the data need.
        tally: Counts the rows that changed.

    Raises:
        InputError: Whole texts cannot be mixed with prompts, or wrapped; a conversation of several
            turns cannot be unwrapped.
    """
    rows = [row for part in parts for row in part]
    has_text = any("text" in row for row in rows)
    if has_text and (conversational or any("text" not in row for row in rows)):
        raise InputError(
            "rows with 'text' alone cannot become conversations, or be mixed with prompts and "
            "completions; load them separately"
        )
    _answer_form(rows, tally)
    as_messages = any(_is_conversational(row) for row in rows)
    if conversational is False and as_messages:
        for row in rows:
            if _is_conversational(row):
                _unwrap(row)
                tally.counted["unwrapped_rows"] += 1
        return False
    if not (as_messages or conversational):
        return False
    for row in rows:
        if not _is_conversational(row):
            for column in _MESSAGES_SCHEMA_COLUMNS:
                if column in row:
                    wrap = as_prompt if column == "prompt" else as_completion
                    row[column] = wrap(row[column])  # type: ignore[arg-type]
            if "completions" in row:
                row["completions"] = [as_completion(text) for text in row["completions"]]  # type: ignore
            tally.counted["wrapped_rows"] += 1
    return True


def _is_conversational(row: Mapping[str, object]) -> bool:
    return "messages" in row or isinstance(row.get("prompt"), list)


def _answer_form(rows: list[dict[str, object]], tally: Tally) -> None:
    """Conversations beside prompt/completion rows become prompt/completion as well."""
    if all("messages" in row for row in rows) or not any("messages" in row for row in rows):
        return
    for row in rows:
        if "messages" not in row:
            continue
        turns: list = row.pop("messages")  # type: ignore[assignment]
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        row["prompt"], row["completion"] = split_last_answer(turns[: last + 1])
    tally.note("conversations mixed with prompt/completion rows: trained on their last answer only")


def _unwrap(row: dict[str, object]) -> None:
    for column in _MESSAGES_SCHEMA_COLUMNS:
        if row.get(column) is not None:
            row[column] = _content(row[column], column)
    if "completions" in row:
        row["completions"] = [_content(turns, "completion") for turns in row["completions"]]  # type: ignore


def _content(turns: object, column: str) -> str:
    role = "user" if column == "prompt" else "assistant"
    if column == "messages" or len(turns) != 1 or turns[0]["role"] != role:  # type: ignore
        raise InputError(
            f"conversational False: a {column} of several turns or with a system message "
            "cannot become plain text"
        )
    return turns[0]["content"]  # type: ignore[index]


def build_dataset(
    rows: Sequence[Mapping[str, object]], conversational: bool, columns: Sequence[str]
) -> datasets.Dataset:
    """The rows as an in-memory dataset: messages as lists of role and content, the rest as it is.

    Raises:
        InputError: A kept column mixes types.
    """
    import datasets
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    text = pa.list_(message) if conversational else pa.string()
    types = {"probability": pa.float64(), "text": pa.string(), "ranks": pa.list_(pa.int64())}
    types |= dict.fromkeys(_MESSAGES_SCHEMA_COLUMNS, text) | {"completions": pa.list_(text)}
    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        chunks = [values[i : i + _BATCH] for i in range(0, len(values), _BATCH)]
        try:
            kind = types.get(column) or pa.array(values).type
            arrays.append(pa.chunked_array([pa.array(chunk, kind) for chunk in chunks], kind))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"column '{column}' mixes types ({error})") from error
    return datasets.Dataset(pa.table(arrays, names=list(columns)))
