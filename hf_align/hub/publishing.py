"""Publishes runs, datasets and reports: all or nothing, once, and looked at afterwards.

Everything goes up in one commit on top of the one that was read, together with the deletion of
what an earlier publication left there; then the Hub's own list of sizes and hashes is compared with
the files, and the commit is tagged. Each step may be repeated: what is there already is not sent
again, so a publication that was cut off is completed by the same call.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_align.hub.accounts import Destination, Kind, check_repo
from hf_align.hub.cards import THIS_REPO
from hf_align.hub.contents import AUDITED, PUBLISHED, Item, matches, model_items, report_items
from hf_align.hub.models import check_adapter, check_files, check_weights
from hf_align.hub.retrying import Incomplete, is_passing, retried, status_of, why_not
from hf_align.types import InputError

_REPORT = ("run.json", "lineage.json", "README.md", "*.csv", "*.jsonl", "report/*")
# Weights and arguments that another tool pickled there are another model's.
_PICKLES = ("pytorch_model*", "adapter_model.bin", "training_args.bin")
_MODEL = (*PUBLISHED, AUDITED, *_REPORT, *_PICKLES, *(f"member-*/{name}" for name in PUBLISHED))


@dataclass(frozen=True)
class Publication:
    """What is to be published, before the Hub is asked.

    Attributes:
        folder: Where it comes from.
        kind: What the repo holds.
        items: The files.
        owned: Patterns of the files that publications of this kind write; those in the repo that
            this one lacks are deleted.
        name: What the commit calls it.
        tag: Names this state of this run for good.
        again: What the publish recipe is told to try again; None for the folder.
        remedy: How to try again where the folder is a temporary one, so that no recipe could.
    """

    folder: Path
    kind: Kind
    items: list[Item]
    owned: tuple[str, ...]
    name: str
    tag: str
    again: str | None = None
    remedy: str | None = None


@dataclass(frozen=True)
class Published:
    """Where something was published.

    Attributes:
        url: Address of the repo.
        commit: Hash of the commit that holds it.
        tag: The commit's tag.
        changed: Whether a commit was made; False where the repo held it already.
    """

    url: str
    commit: str
    tag: str
    changed: bool


def push_model(folder: Path, destination: Destination) -> Published:
    """Publishes a finished run: model or adapter, tokenizer, card, report and records.

    Args:
        folder: The run directory, which is only read.
        destination: From `check_destination`.

    Raises:
        InputError: The folder holds no finished run with whole weights, or the repo something else.
        OSError: The Hub refused, or could not be reached after several tries.
    """
    return publish(plan_model(folder, destination.license, destination.repo_id), destination)


def push_report(folder: Path, destination: Destination) -> Published:
    """Publishes a report that is no model's own, such as that of `goodhart`, as a dataset repo.

    Args:
        folder: Of the report: `report/`, `README.md` and records, which are only read.
        destination: From `check_destination`.

    Raises:
        InputError: The folder holds no finished report, or the repo something else.
        OSError: The Hub refused, or could not be reached after several tries.
    """
    return publish(plan_report(folder), destination)


def plan_model(folder: Path, license: str | None = None, repo_id: str | None = None) -> Publication:
    """What `push_model` sends; the card states the licence and its own id where they are given.

    Raises:
        InputError: The folder holds no finished run with whole weights.
        OSError: A file holds a secret.
    """
    record = finished_record(folder)
    members = sorted(folder.glob("member-*")) or [folder]
    for member in members:
        names = {file.name for file in member.iterdir()}
        if "adapter_config.json" in names:
            check_adapter(member)
        else:
            check_files(names, str(member))
        check_weights(member, str(member))
    items = [
        finished_card(item, license, repo_id) if item.path == "README.md" else item
        for item in model_items(folder)
    ]
    return _publication(folder, "model", items, _MODEL, record)


def finished_card(card: Item, license: str | None, repo_id: str | None) -> Item:
    """A model's card with its own id, and a licence among its metadata, where they are given."""
    from huggingface_hub import ModelCard

    text = card.read().decode("utf-8")
    if repo_id is not None and THIS_REPO in text:
        card = Item(card.path, text.replace(THIS_REPO, repo_id).encode())
    if license is None:
        return card
    read = ModelCard(card.read().decode("utf-8"))
    read.data.license = license
    return Item(card.path, str(read).encode())


def plan_report(folder: Path) -> Publication:
    """What `push_report` sends.

    Raises:
        InputError: The folder holds no finished report.
        OSError: A file holds a secret.
    """
    record = finished_record(folder)
    items = report_items(folder)
    if not any(item.path.startswith("report/") for item in items):
        raise InputError(f"{folder} holds no report; name the output_dir of a recipe")
    return _publication(folder, "dataset", items, _REPORT, record)


def finished_record(folder: Path) -> dict[str, Any]:
    """The content of `run.json`.

    Raises:
        InputError: There is none, or its run is not finished.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise InputError(f"{folder} holds no run (no run.json); name the output_dir of a recipe")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); copy the run again") from error
    if record.get("status") != "finished":
        raise InputError(f"the run in {folder} is not finished; --resume_from_checkpoint goes on")
    return record


def _publication(
    folder: Path, kind: Kind, items: list[Item], owned: tuple[str, ...], record: dict[str, Any]
) -> Publication:
    return Publication(folder, kind, items, owned, folder.resolve().name, tag_of(record, items))


def tag_of(record: dict[str, Any], items: list[Item]) -> str:
    """A name for this content of this run: recipe, when it started, and a hash of the files."""
    listed = "\n".join(f"{item.path} {item.sha256}" for item in sorted(items, key=_path))
    digest = hashlib.sha256(listed.encode()).hexdigest()[:8]
    started = "".join(c for c in record.get("started", "") if c.isdigit())[:14]
    return "-".join(filter(None, [record.get("recipe", "dataset"), started, digest]))


def _path(item: Item) -> str:
    return item.path


def publish(publication: Publication, destination: Destination) -> Published:
    """Brings a repo to hold a publication, and nothing of an earlier one.

    Raises:
        InputError: The repo is public where a private one was meant, or holds something else.
        OSError: The Hub refused, or could not be reached after several tries; the folder and the
            repo's last publication are as they were.
    """
    from huggingface_hub import HfApi

    api, target, kind = HfApi(), destination, publication.kind
    with _one_line(publication, target):
        url = retried(
            lambda: api.create_repo(
                target.repo_id,
                repo_type=kind,
                private=target.private,
                exist_ok=True,
                space_sdk="gradio" if kind == "space" else None,
            )
        )
        if target.revision is not None:
            retried(
                lambda: api.create_branch(
                    target.repo_id, repo_type=kind, branch=target.revision, exist_ok=True
                )
            )
        commits: list[str] = []
        commit = retried(lambda: _settle(api, publication, target, commits))
        retried(
            lambda: api.create_tag(
                target.repo_id,
                repo_type=kind,
                tag=publication.tag,
                revision=commit,
                exist_ok=True,
            )
        )
    return Published(str(url), commit, publication.tag, bool(commits))


@contextmanager
def _one_line(publication: Publication, target: Destination) -> Iterator[None]:
    """Around the requests: one line that says why, and how to go on."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_passing(error) and status_of(error) is None and not isinstance(error, OSError):
            raise
        raise OSError(_unpublished(publication, target, why_not(error, target.repo_id))) from error


def _unpublished(publication: Publication, target: Destination, why: str) -> str:
    """That it did not work, what became of the data, and what to do."""
    if publication.remedy is not None:
        return (
            f"{publication.name} could not be published to {target.repo_id} ({why}); "
            f"{publication.remedy}"
        )
    again = publication.again or publication.folder
    return (
        f"{publication.folder} is complete, but could not be published to {target.repo_id} "
        f"({why}); `python -m hf_align.recipes.publish {again} --hub_model_id {target.repo_id}` "
        "tries again"
    )


def _settle(api: Any, publication: Publication, target: Destination, commits: list[str]) -> str:
    """One attempt: reads the head, commits what differs on top of it, looks at the result.

    `commits` gets a line before each commit is sent: whether it arrived is seen in the next
    attempt, where the answer was lost.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, errors

    where = {"repo_id": target.repo_id, "repo_type": publication.kind}
    try:
        head = api.repo_info(**where, revision=target.revision)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise Incomplete(f"{target.repo_id} was made, and is not there yet") from error
    listed = remote_files(api, publication.kind, target.repo_id, head.sha)
    check_repo(target, head.private, list(listed))
    changed, stale = differences(publication, listed)
    if not changed and not stale:
        return head.sha
    commits.append(head.sha)
    with warnings.catch_warnings():
        # A run's completions are no dataset that lost its way.
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        done = api.create_commit(
            **where,
            # Made anew for every attempt: a commit marks the operations it was given.
            operations=[
                *(CommitOperationAdd(item.path, _argument(item)) for item in changed),
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=f"Publish {publication.name}",
            commit_description=f"{publication.tag}, by hf_align",
            revision=target.revision,
            parent_commit=head.sha,
        )
    changed, stale = differences(
        publication, remote_files(api, publication.kind, target.repo_id, done.oid)
    )
    wrong = [*(item.path for item in changed), *stale]
    if wrong:
        raise Incomplete(f"{wrong[0]} is not there as it was sent; does a .gitignore name it?")
    return done.oid


def _argument(item: Item) -> bytes | str:
    return item.content if isinstance(item.content, bytes) else str(item.content)


def remote_files(api: Any, kind: Kind, repo_id: str, commit: str) -> dict[str, tuple[int, str]]:
    """The files of a commit: `{path: (size, hash)}`, the hash being that of the storage."""
    from huggingface_hub import RepoFile

    entries = api.list_repo_tree(repo_id, repo_type=kind, recursive=True, revision=commit)
    return {
        entry.path: (entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def differences(
    publication: Publication, listed: dict[str, tuple[int, str]]
) -> tuple[list[Item], list[str]]:
    """What a repo lacks of a publication, and what an earlier one left in it."""
    changed = [
        item
        for item in publication.items
        if listed.get(item.path) not in ((item.size, item.sha256), (item.size, item.git_oid))
    ]
    sent = {item.path for item in publication.items}
    stale = sorted(path for path in listed if path not in sent and matches(path, publication.owned))
    return changed, stale
