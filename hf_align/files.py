"""Files that appear whole or not at all: written under a temporary name beside, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` when the block ends without an error.

    The folder is made if need be. The bytes reach the disk before the rename, so that after a crash
    `path` holds its old content or its new one. Ordinary permissions apply (those of `open`).

    Raises:
        OSError: The file cannot be written; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers choose a format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all.

    Raises:
        OSError: The file cannot be written; `path` is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
