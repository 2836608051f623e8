"""What the loopback Hub stores: repos with branches, tags and commits by hash, all in memory."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".bin", ".gz")
COMMIT = re.compile(r"[0-9a-f]{40}")


class Refused(Exception):
    """An answer that is an error: status, code, message."""


@dataclass
class Repo:
    """A repo: `files` are those at the head of main, and may be changed directly.

    `commits` lists the branch of every commit that a client made, `messages` their summaries;
    `fake_sizes` are what `info` says of files instead of their bytes. `host` and `stage` are where
    a Space's app runs, and whether it does.
    """

    private: bool = True
    gated: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, dict[str, bytes]] = field(default_factory=dict)
    fake_sizes: dict[str, int] = field(default_factory=dict)
    host: str | None = None
    stage: str = "RUNNING"

    def __post_init__(self):
        self.heads = {"main": self.files}
        self.depth = {"main": len(self.commits)}

    @property
    def sha(self):
        """The hash of main's head."""
        return self.head("main")

    def head(self, branch: str) -> str:
        """The hash of a branch's head, by its content and how many commits led there."""
        files = self.heads[branch]
        content = [(path, git_oid(data)) for path, data in sorted(files.items())]
        sha = hashlib.sha1(repr((self.depth[branch], content)).encode()).hexdigest()
        self.snapshots.setdefault(sha, dict(files))
        return sha

    def resolve(self, revision: str | None) -> str | None:
        """The commit that a branch, a tag or a hash names; None where it names none."""
        revision = revision or "main"
        if revision in self.heads:
            return self.head(revision)
        if revision in self.tags:
            return self.tags[revision]
        for branch in self.heads:
            self.head(branch)
        return revision if revision in self.snapshots else None

    def add_branch(self, branch: str, start: str) -> None:
        """Starts a branch at a commit."""
        self.heads[branch] = dict(self.snapshots[start])
        self.depth[branch] = next(self.depth[b] for b in self.depth if self.head(b) == start)

    def add_commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Replaces the files of a branch; returns the new head."""
        self.head(branch)
        head = self.heads[branch]
        head.clear()
        head.update(files)
        self.depth[branch] += 1
        self.commits.append(branch)
        self.messages.append(message)
        return self.head(branch)


def git_oid(data: bytes) -> str:
    """The hash that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    """Whether a file is kept outside of git."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > 10 * 2**20)


def entry(path: str, data: bytes) -> dict:
    """A file as `tree` and `paths-info` list it."""
    facts = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
    if is_lfs(path, len(data)):
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\n"
        facts["oid"] = git_oid(f"{pointer}size {len(data)}\n".encode())
        facts["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
    return facts


def tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict]:
    """The files and folders below a folder."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: data for path, data in files.items() if path.startswith(prefix)}
    folders = {
        "/".join(path.split("/")[:depth])
        for path in inside
        for depth in range(1, len(path.split("/")))
    }
    entries = [
        {"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0}
        for path in sorted(folders)
        if path.startswith(prefix)
    ]
    entries += [entry(path, inside[path]) for path in sorted(inside)]
    if not recursive:
        entries = [e for e in entries if "/" not in e["path"][len(prefix) :]]
    return entries
