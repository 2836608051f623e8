"""Files that appear whole or not at all: written under a temporary name beside, then renamed."""

from __future__ import annotations

import os
import tempfile
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


def check_writable(option: str, path: Path) -> None:
    """Makes sure that `path` could be created, by a temporary file in its nearest existing folder.

    Raises:
        OSError: It could not; one line that names the option.
    """
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing if existing.is_dir() else existing / "below"):
            pass
    except OSError as error:
        raise OSError(f"{option} {path} cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all.

    Raises:
        OSError: The file cannot be written; `path` is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
