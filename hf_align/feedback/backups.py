"""Where segments are kept: a private bucket, a private dataset repo, or a folder.

A backup takes whole files under new names, lists them and gives them back. It never rewrites one,
except to erase a person.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hf_align.files import replacing
from hf_align.revisions import unreachable
from hf_align.types import InputError

_DOWNLOADS = 8  # at a time


class Backup(Protocol):
    """A place for segments; every method raises OSError with one line where it cannot be reached.

    Attributes:
        name: What to call it in messages.
    """

    name: str

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Stores files, all of them when it returns."""

    def list(self) -> list[str]:
        """Paths of all segments."""

    def download(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Contents of segments, in the order asked for."""

    def delete(self, paths: Sequence[str]) -> None:
        """Removes segments and, where there is one, the history that still holds them."""


class DirectoryBackup:
    """Segments in a folder: for tests, and for a disk that outlives the server.

    Args:
        folder: Made if absent.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = str(folder)

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Writes files whole; they are on the disk when it returns."""
        for path, content in files.items():
            with replacing(self.folder / path) as temporary:
                temporary.write_bytes(content)

    def list(self) -> list[str]:
        """Paths of all segments."""
        found = self.folder.glob("events/*/*.jsonl")
        # A name with a leading dot is a file that was being written when its server died.
        return sorted(
            path.relative_to(self.folder).as_posix()
            for path in found
            if not path.name.startswith(".")
        )

    def download(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Contents of segments."""
        for path in paths:
            yield path, (self.folder / path).read_bytes()

    def delete(self, paths: Sequence[str]) -> None:
        """Removes segments."""
        for path in paths:
            (self.folder / path).unlink(missing_ok=True)


class DatasetBackup:
    """Segments in a private dataset repo of the Hub, one commit per upload.

    A repo gets slow after a few thousand commits: upload every few minutes, or use a bucket.
    https://huggingface.co/docs/hub/storage-limits

    Args:
        repo_id: `namespace/name`; made, private, if absent.
        token: Token with write access; None for the one signed in with.
    """

    def __init__(self, repo_id: str, token: str | None = None) -> None:
        from huggingface_hub import HfApi

        self.name = f"dataset {repo_id}"
        self.repo_id = repo_id
        self._api = HfApi(token=token)
        self._checked = False

    def upload(self, files: Mapping[str, bytes]) -> None:
        """One commit with all files."""
        from huggingface_hub import CommitOperationAdd

        with _said(self.name):
            self._check()
            self._api.create_commit(
                self.repo_id,
                [CommitOperationAdd(path, content) for path, content in files.items()],
                commit_message=f"Add {len(files)} segment(s)",
                repo_type="dataset",
            )

    def list(self) -> list[str]:
        """Paths of all segments."""
        with _said(self.name):
            self._check()
            files = self._api.list_repo_files(self.repo_id, repo_type="dataset")
        return sorted(path for path in files if path.startswith("events/"))

    def download(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Contents of segments, several requests at a time."""
        with tempfile.TemporaryDirectory() as folder, _said(self.name):

            def fetch(path: str) -> bytes:
                saved = self._api.hf_hub_download(
                    self.repo_id, path, repo_type="dataset", local_dir=folder
                )
                return Path(saved).read_bytes()

            with ThreadPoolExecutor(_DOWNLOADS) as pool:
                yield from zip(paths, pool.map(fetch, paths), strict=True)

    def delete(self, paths: Sequence[str]) -> None:
        """Removes segments, and squashes the history that holds them."""
        from huggingface_hub import CommitOperationDelete

        with _said(self.name):
            self._api.create_commit(
                self.repo_id,
                [CommitOperationDelete(path) for path in paths],
                commit_message="Erase on request",
                repo_type="dataset",
            )
            self._api.super_squash_history(repo_id=self.repo_id, repo_type="dataset")

    def _check(self) -> None:
        """Makes the repo, once; a public one is refused, for votes are personal data."""
        if self._checked:
            return
        self._api.create_repo(self.repo_id, repo_type="dataset", private=True, exist_ok=True)
        if not self._api.dataset_info(self.repo_id).private:
            raise InputError(f"{self.name} is public: back up to a private one")
        self._checked = True


class BucketBackup:
    """Segments in a private storage bucket of the Hub, without a git history.

    https://huggingface.co/docs/huggingface_hub/guides/buckets

    Args:
        bucket_id: `namespace/name`; made, private, if absent.
        token: Token with write access; None for the one signed in with.

    Raises:
        InputError: The installed huggingface_hub has no buckets.
    """

    def __init__(self, bucket_id: str, token: str | None = None) -> None:
        from huggingface_hub import HfApi

        if "batch_bucket_files" not in dir(HfApi):
            raise InputError("backup: huggingface_hub has no buckets; upgrade it, or use a dataset")
        # Its own tries go on for minutes, and a server that is stopped has seconds; what was not
        # uploaded is sent again anyhow. Read when the first file travels.
        os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2")
        self.name = f"bucket {bucket_id}"
        self.bucket_id = bucket_id
        self._api = HfApi(token=token)
        self._checked = False

    def upload(self, files: Mapping[str, bytes]) -> None:
        """All files in one request."""
        with _said(self.name):
            self._check()
            add = [(content, path) for path, content in files.items()]
            self._api.batch_bucket_files(self.bucket_id, add=add)

    def list(self) -> list[str]:
        """Paths of all segments."""
        with _said(self.name):
            self._check()
            tree = self._api.list_bucket_tree(self.bucket_id, prefix="events", recursive=True)
            return sorted(entry.path for entry in tree if entry.path.endswith(".jsonl"))

    def download(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Contents of segments."""
        with tempfile.TemporaryDirectory() as folder, _said(self.name):
            targets = {path: Path(folder) / str(i) for i, path in enumerate(paths)}
            self._api.download_bucket_files(
                self.bucket_id, list(targets.items()), raise_on_missing_files=True
            )
            for path, target in targets.items():
                yield path, target.read_bytes()

    def delete(self, paths: Sequence[str]) -> None:
        """Removes segments."""
        with _said(self.name):
            self._api.batch_bucket_files(self.bucket_id, delete=list(paths))

    def _check(self) -> None:
        if self._checked:
            return
        self._api.create_bucket(self.bucket_id, private=True, exist_ok=True)
        if not self._api.bucket_info(self.bucket_id).private:
            raise InputError(f"{self.name} is public: back up to a private one")
        self._checked = True


def open_backup(target: str, token: str | None = None) -> Backup:
    """The backup that an address names.

    Args:
        target: `bucket:namespace/name`, `dataset:namespace/name`, or a folder.
        token: Token with write access; None for the one signed in with.
    """
    kind, _, name = target.partition(":")
    if kind == "bucket" and name:
        return BucketBackup(name, token)
    if kind == "dataset" and name:
        return DatasetBackup(name, token)
    return DirectoryBackup(target)


@contextmanager
def _said(name: str) -> Iterator[None]:
    """The Hub's errors as one line, and no progress bars: a server backs up every few seconds."""
    from huggingface_hub import errors
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"backup {name}: not a name that the Hub takes") from error
    except (errors.HTTPError, OSError) as error:
        raise OSError(f"backup {name}: {unreachable(error)}") from error
    finally:
        if not quiet:
            enable_progress_bars()
