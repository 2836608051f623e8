"""Where rows come from: what identifies a source, and its splits before any normalisation."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

RawRow = dict[str, object]


@dataclass(frozen=True)
class DataSource:
    """What went in, in the form that `lineage.json` keeps.

    Attributes:
        name: The Hub id or the path, as given.
        kind: A Hub repository, one file, a folder of files, or a `save_to_disk` folder.
        revision: The commit that was read (Hub only).
        sha256: Hash of the local files' names and contents; the folder's own path does not enter.
        files: The local files, relative to the folder.
    """

    name: str
    kind: Literal["hub", "file", "folder", "disk"]
    revision: str | None = None
    sha256: str | None = None
    files: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The form stored in `lineage.json`."""
        return asdict(self)


@dataclass
class RawSplit:
    """The rows of one split, and the file that each came from.

    Attributes:
        rows: Source rows as dictionaries.
        labels: Name of each stretch of rows (a file's name, or a Hub id and split).
        starts: Index of each stretch's first row, ascending from 0.
    """

    rows: list[RawRow]
    labels: list[str]
    starts: list[int]

    def location(self, index: int) -> str:
        """`train.jsonl row 17`: rows are counted from 1 within their file."""
        stretch = bisect_right(self.starts, index) - 1
        return f"{self.labels[stretch]} row {index - self.starts[stretch] + 1}"

    def append(self, other: RawSplit, low: int, high: int) -> None:
        """Adds a stretch of another split, keeping track of where its rows come from."""
        ends = [*other.starts[1:], len(other.rows)]
        for label, start, end in zip(other.labels, other.starts, ends, strict=True):
            first, last = max(low, start), min(high, end)
            if first < last:
                self.labels.append(f"{label}[{first - start}:]" if first > start else label)
                self.starts.append(len(self.rows))
                self.rows += other.rows[first:last]


@dataclass(frozen=True)
class RawData:
    """A source with its splits, each read when asked for.

    Attributes:
        source: What it is.
        readers: Split name -> function that reads it.
        notes: What a user should know about how it was read.
    """

    source: DataSource
    readers: dict[str, Callable[[], RawSplit]]
    notes: list[str] = field(default_factory=list)


def content_hash(files: Sequence[Path], root: Path) -> str:
    """SHA-256 of one file's bytes, or of the (relative name, SHA-256) list of several."""
    if len(files) == 1 and files[0] == root:
        return _file_hash(root)
    listing = "".join(
        f"{path.relative_to(root).as_posix()}\0{_file_hash(path)}\n" for path in sorted(files)
    )
    return hashlib.sha256(listing.encode()).hexdigest()


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
