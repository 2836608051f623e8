"""A folder built once per machine: whole and verified, or built again.

A builder fills a draft beside the folder, under a lock; a manifest with the size and SHA-256 of
every file is written last and the draft is renamed into place. Opening checks the manifest against
the files, so a half-written, truncated or altered folder is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

MANIFEST = "manifest.json"


def cache_root() -> Path:
    """`hf_align` under HF_HOME, read when called; Hugging Face's default where it is unset."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HOME") or constants.HF_HOME).expanduser() / "hf_align"


def open_or_build(folder: Path, fill: Callable[[Path], None], about: dict[str, object]) -> Path:
    """The folder, after building it if it is absent or damaged; says so if it was damaged.

    Processes that ask at once build once: the others wait for the first.

    Args:
        folder: Where the finished folder lies.
        fill: Writes all files into the empty folder it is given.
        about: What the manifest says beside the files, as JSON.

    Raises:
        OSError: The folder cannot be written.
    """
    if damage(folder) is None:
        return folder
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder.name}: another process is building it; waiting", file=sys.stderr)
        lock.acquire()
    try:
        fault = damage(folder)
        if fault is None:
            return folder
        if folder.exists():
            print(f"{folder}: {fault}; building it again", file=sys.stderr)
        _build(folder, fill, about)
    finally:
        lock.release()
    return folder


def damage(folder: Path) -> str | None:
    """What is wrong with a finished folder, in a few words; None if every file is as built.

    Files that the manifest does not list are ignored.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing"
    try:
        files = json.loads(manifest.read_bytes())["files"].items()
        listed = [(name, entry["size"], entry["sha256"]) for name, entry in files]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not readable"
    for name, size, sha256 in listed:
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, expected {size}"
        if _sha256(file) != sha256:
            return f"{name} was altered"
    return None


def _build(folder: Path, fill: Callable[[Path], None], about: dict[str, object]) -> None:
    # Only the holder of the lock gets here, so these names are left-overs of a killed build.
    draft, damaged = Path(f"{folder}.draft"), Path(f"{folder}.damaged")
    for leftover in (draft, damaged):
        if leftover.exists():
            shutil.rmtree(leftover)
    draft.mkdir()
    try:
        fill(draft)
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        listed = {
            path.relative_to(draft).as_posix(): {
                "size": path.stat().st_size,
                "sha256": _sha256(path),
            }
            for path in files
        }
        manifest = json.dumps({**about, "files": listed}, indent=2)
        (draft / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        # A rename cannot replace a folder that has files in it: move the damaged one away first.
        if folder.exists():
            folder.rename(damaged)
        draft.rename(folder)
    finally:
        for leftover in (draft, damaged):
            if leftover.exists():
                shutil.rmtree(leftover)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
