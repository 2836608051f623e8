"""What is published of a folder, byte for byte: which files, without local paths and secrets.

The folder itself is only read. A file that may name local paths is published as a copy without
them; a file that holds a secret stops everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_align.hub.cards import public_command, public_text
from hf_align.hub.secrets import holds_secret, own_secrets, without_secrets
from hf_align.types import InputError

PUBLISHED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md", "*.jsonl")
"""Files at the top of a run directory that are published; `report/` and `AUDITED` go with them."""

AUDITED = "audit_samples/*.parquet"
"""The completions of a run's audits."""

RECORDS = ("run.json", "lineage.json", "adapter_config.json")
"""Files that may name local paths: a copy without them is published."""

_BINARY = (".safetensors", ".png", ".parquet", ".model")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Item:
    """A file as it will be on the Hub.

    Attributes:
        path: Its path in the repo.
        content: Where its bytes are, or the bytes.
    """

    path: str
    content: Path | bytes

    @cached_property
    def _hashes(self) -> tuple[int, str, str]:
        sha256, size = hashlib.sha256(), self._size()
        git = hashlib.sha1(b"blob %d\0" % size)
        for block in self._blocks():
            sha256.update(block)
            git.update(block)
        return size, sha256.hexdigest(), git.hexdigest()

    def _size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def _blocks(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
            return
        with self.content.open("rb") as stream:
            while block := stream.read(_BLOCK):
                yield block

    @property
    def size(self) -> int:
        """Bytes."""
        return self._hashes[0]

    @property
    def sha256(self) -> str:
        """Of the content; how large files are known on the Hub."""
        return self._hashes[1]

    @property
    def git_oid(self) -> str:
        """How git, and so the Hub, knows a small file."""
        return self._hashes[2]

    def read(self) -> bytes:
        """The bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def model_items(folder: Path) -> list[Item]:
    """What of a run directory is published.

    Raises:
        OSError: A file holds a secret.
    """
    places = [f"{place}{pattern}" for pattern in PUBLISHED for place in ("", "member-*/")]
    places.append(AUDITED)
    found = {file for pattern in places for file in folder.glob(pattern) if file.is_file()}
    return _items(folder, found | _report_files(folder))


def report_items(folder: Path) -> list[Item]:
    """What of a report's folder is published: its records, card and `report/`.

    Raises:
        OSError: A file holds a secret.
    """
    names = ("run.json", "lineage.json", "README.md", "leaderboard.csv", "battles.jsonl")
    found = {folder / name for name in names if (folder / name).is_file()}
    return _items(folder, found | _report_files(folder))


def _report_files(folder: Path) -> set[Path]:
    return {file for file in (folder / "report").rglob("*") if file.is_file()}


def _items(folder: Path, files: set[Path]) -> list[Item]:
    items = []
    for file in sorted(file for file in files if not file.name.startswith(".")):
        content: Path | bytes = file
        if file.name in RECORDS:
            content = _clean_record(file, folder)
        items.append(Item(file.relative_to(folder).as_posix(), content))
        refuse_secret(items[-1], file)
        if file.suffix == ".parquet":
            _refuse_secret_texts(file)
    return items


def _refuse_secret_texts(file: Path) -> None:
    """Refuses a table of completions with a secret in one of them.

    Raises:
        OSError: It has; nothing has been sent.
        InputError: It is no table.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged; remove it, or make the run again") from error
    own = own_secrets()
    for name in table.column_names:
        if not pa.types.is_string(table[name].type):
            continue
        for place, text in enumerate(table[name].to_pylist()):
            if held := holds_secret(text or "", own):
                raise OSError(
                    f"{file}, row {place + 1:,}, column {name} holds {held}; remove the file, then "
                    "publish again"
                )


def _clean_record(file: Path, folder: Path) -> bytes:
    try:
        record = without_secrets(without_paths(json.loads(file.read_text(encoding="utf-8"))))
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); nothing was published") from error
    if file.name == "adapter_config.json":
        record = _pinned_base(record, folder)
    return (json.dumps(record, indent=2) + "\n").encode()


def _pinned_base(adapter: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The adapter's configuration with the commit of its base, where the base is on the Hub."""
    lineage = folder / "lineage.json"
    if not lineage.is_file():
        return adapter
    base = json.loads(lineage.read_text(encoding="utf-8")).get("model") or {}
    if not base.get("revision"):
        return adapter
    return adapter | {"base_model_name_or_path": base["name"], "revision": base["revision"]}


def refuse_secret(item: Item, shown: Path | str) -> None:
    """Refuses a text that holds a secret.

    Raises:
        OSError: It does; nothing has been sent.
    """
    if item.path.endswith(_BINARY):
        return
    held = holds_secret(item.read().decode("utf-8", "replace"))
    if held:
        raise OSError(f"{shown} holds {held}; remove it there, then publish again")


def without_paths(record: Any) -> Any:
    """A JSON value whose texts hold no absolute path and no token; a recorded command is shown as
    in the card.
    """
    if isinstance(record, dict):
        clean = {key: without_paths(value) for key, value in record.items()}
        if "command" in record and "lineage" in record:
            clean["command"] = public_command(record["command"], record["lineage"])
        return clean
    if isinstance(record, list):
        return [without_paths(value) for value in record]
    return public_text(record) if isinstance(record, str) else record


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path in a repo is one of those that a publication writes.

    A pattern without a slash stands for the top of the repo; `folder/*` for all below the folder.
    """
    return any(fnmatch(path, pattern) for pattern in patterns if "/" in pattern or "/" not in path)
