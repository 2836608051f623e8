"""Scored completions as files: those of a run's audits, and the pool that best-of-n chose from.

One Parquet table per audited step, so a reader takes one at a time. A file appears whole or not at
all, and what a stranger wrote is bounded and checked before its texts are unpacked.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_align.files import replacing
from hf_align.records import MOST_BYTES, check_size, one_line, parse_record
from hf_align.types import InputError, Text

if TYPE_CHECKING:
    import pyarrow as pa

AUDIT_SAMPLES = "audit_samples"
"""The folder with the completions of every audit."""

POOL = "pool.parquet"
"""The completions of the first prompts that best-of-n chose from, beside its report."""

MOST_AUDITED = 512
"""Completions of one audit that are kept, those of the first prompts."""

MOST_POOLED = 4096
"""Completions of a pool that are kept, those of the first prompts."""

_MOST_ROWS = 16_384
_MOST_UNPACKED = 128 * 2**20
_NUMBERS = ("gold", "proxy", "log_ratio")
_FILE = re.compile(r"step-(\d{8})\.parquet")
_LARGEST = 1e15


@dataclass(frozen=True)
class ScoredCompletions:
    """N completions with what was measured on each; row i of two audits answers the same prompt.

    Attributes:
        prompts: The prompt of each completion.
        completions: N texts; of a conversation the content of the assistant's message.
        lengths: (N,) tokens, the end token included.
        ended: (N,) whether it ended by itself.
        gold: (N,) gold; None where nothing counts as the truth.
        proxy: (N,) proxy score; None where training optimised no reward.
        log_ratio: (N,) log policy - log reference of the whole completion, nats; None where the
            policy is the reference.
    """

    prompts: list[Text]
    completions: list[str]
    lengths: np.ndarray
    ended: np.ndarray
    gold: np.ndarray | None = None
    proxy: np.ndarray | None = None
    log_ratio: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.completions)

    def first(self, most: int, together: int = 1) -> ScoredCompletions:
        """The first completions, `most` at most, those of one prompt (`together`) all or none."""
        kept = max(1, most // together) * together

        def cut(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[:kept]

        return ScoredCompletions(
            self.prompts[:kept],
            self.completions[:kept],
            self.lengths[:kept],
            self.ended[:kept],
            cut(self.gold),
            cut(self.proxy),
            cut(self.log_ratio),
        )


def audit_file(step: int) -> str:
    """Where in a run's folder the completions of a step's audit are."""
    return f"{AUDIT_SAMPLES}/step-{step:08}.parquet"


def audited_step(path: str) -> int | None:
    """The step of a file of `audit_file`; None for any other path."""
    folder, _, name = path.partition("/")
    found = _FILE.fullmatch(name) if folder == AUDIT_SAMPLES else None
    return int(found[1]) if found else None


def forget_audits(folder: Path, after: int) -> None:
    """Removes the completions of audits after a step: a run that goes on there makes them again.

    Args:
        folder: The run's.
        after: The last step that stays; -1 for none.
    """
    for file in (folder / AUDIT_SAMPLES).glob("*"):
        step = audited_step(f"{AUDIT_SAMPLES}/{file.name}")
        # What a killed process left of a file begins with a dot.
        if file.name.startswith(".") or (step is not None and step > after):
            file.unlink()


def write_completions(path: Path, completions: ScoredCompletions) -> None:
    """Writes a table, whole or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "prompt": [_packed(prompt) for prompt in completions.prompts],
        "is_conversation": [not isinstance(prompt, str) for prompt in completions.prompts],
        "completion": completions.completions,
        "length": pa.array(np.asarray(completions.lengths, dtype=np.int32)),
        "ended": pa.array(np.asarray(completions.ended, dtype=bool)),
    }
    for name in _NUMBERS:
        values = getattr(completions, name)
        columns[name] = pa.array(
            [None] * len(completions) if values is None else np.asarray(values, dtype=np.float64),
            pa.float64(),
        )
    table = pa.table(columns)
    with replacing(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def _packed(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def read_completions(path: Path, label: str) -> ScoredCompletions:
    """Reads a table that someone else may have written.

    Args:
        path: The file.
        label: How messages call it.

    Raises:
        InputError: It is too large, damaged, or holds something else.
    """
    import pyarrow as pa

    check_size(label, path.stat().st_size, MOST_BYTES)
    try:
        table = _read(path, label)
        texts = {name: _texts(table[name], label) for name in ("prompt", "completion")}
        chats = table["is_conversation"].to_pylist()
        numbers = {name: _numbers(table[name], name, label) for name in _NUMBERS}
        lengths = np.asarray(table["length"].to_numpy(), dtype=np.int64)
        ended = np.asarray(table["ended"].to_pylist(), dtype=bool)
    except InputError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{label} is damaged ({one_line(error, 120)}); copy it again") from error
    prompts = [
        _conversation(text, label) if chat else text
        for text, chat in zip(texts["prompt"], chats, strict=True)
    ]
    return ScoredCompletions(prompts, texts["completion"], lengths, ended, **numbers)


def _read(path: Path, label: str) -> pa.Table:
    from pyarrow import parquet

    # A short file can name one long text many times over: as a dictionary it stays short.
    file = parquet.ParquetFile(path, read_dictionary=["prompt", "completion"])
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    rows = file.metadata.num_rows
    if rows > _MOST_ROWS or unpacked > _MOST_UNPACKED or not rows:
        raise InputError(
            f"{label} is refused: {rows:,} rows and {unpacked:,} bytes, and no such file has none, "
            f"over {_MOST_ROWS:,}, or over {_MOST_UNPACKED:,}"
        )
    names = ["prompt", "is_conversation", "completion", "length", "ended", *_NUMBERS]
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        raise InputError(f"{label} is refused: it has no column {missing[0]!r}")
    return file.read(columns=names)


def _texts(column: pa.ChunkedArray, label: str) -> list[str]:
    import pyarrow as pa

    texts: list[str] = []
    for chunk in column.chunks:
        if not pa.types.is_dictionary(chunk.type) or not pa.types.is_string(chunk.type.value_type):
            raise InputError(f"{label} is refused: its texts are of type {chunk.type}")
        words = chunk.dictionary.to_pylist()
        texts += [words[place] for place in chunk.indices.to_pylist()]
    return texts


def _numbers(column: pa.ChunkedArray, name: str, label: str) -> np.ndarray | None:
    if column.null_count == len(column):
        return None
    values = np.asarray(column.to_pylist(), dtype=np.float64)  # None becomes NaN
    if not (np.abs(values) < _LARGEST).all():
        raise InputError(f"{label} is refused: {name} has values that are no finite numbers")
    return values


def _conversation(text: str, label: str) -> Text:
    try:
        messages = parse_record(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{label} is damaged: a prompt is no conversation") from error
    whole = isinstance(messages, list) and all(
        isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content"))
        for m in messages
    )
    if not whole:
        raise InputError(f"{label} is damaged: a prompt is no conversation")
    return [{"role": m["role"], "content": m["content"]} for m in messages]
