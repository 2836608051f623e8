"""Publishes a finished run: model, tokenizer, card, report and records, in one commit.

Whether that can work (token, its rights, the namespace) is settled before anything is trained. Left
behind are checkpoints, pickles, local paths and tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hf_align.hub.cards import public_command, public_text
from hf_align.revisions import reason
from hf_align.types import InputError

PUBLISHED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md", "*.jsonl")
"""Files at the top of a run directory that are published; `report/` goes with them."""

RECORDS = ("run.json", "lineage.json", "adapter_config.json")
"""Files that may name local paths: a copy without them is published."""

WAITS = (1.0, 2.0, 4.0)
"""Seconds before each further try where the Hub is busy or broken."""

_TIMEOUT = 20.0
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Destination:
    """Where a run is published.

    Attributes:
        repo_id: `namespace/name`.
        private: Whether a repo made for it is private.
        revision: Branch to commit to; None for the main one.
    """

    repo_id: str
    private: bool = True
    revision: str | None = None


def check_destination(
    repo_id: str | None, default_name: str, private: bool = True, revision: str | None = None
) -> Destination:
    """Makes sure that a push will be allowed: two or three small requests, no weights.

    Args:
        repo_id: `namespace/name`, or a name in the user's own namespace; None for `default_name`.
        default_name: Name of the repo where none was given.
        private: False publishes to everyone.
        revision: Branch to commit to.

    Raises:
        InputError: No token, a refused or read-only one, a namespace that is not the user's, a name
            that the Hub does not take, or a public repo where a private one was meant.
        OSError: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi, errors, get_token
    from huggingface_hub.utils import validate_repo_id

    if get_token() is None:
        raise InputError(
            "push_to_hub needs a token with write access: run `hf auth login`, or set HF_TOKEN"
        )
    account = _whoami()
    own = account["name"]
    given = repo_id or default_name
    name = given if "/" in given else f"{own}/{given}"
    try:
        validate_repo_id(name)
    except errors.HFValidationError as error:
        raise InputError(
            f"hub_model_id {name!r}: not a name that the Hub takes; give --hub_model_id {own}/NAME"
        ) from error
    _check_rights(account, name)
    try:
        info = HfApi().model_info(name, timeout=_TIMEOUT)
    except errors.RepositoryNotFoundError:
        return Destination(name, private, revision)
    except (errors.HTTPError, OSError) as error:
        raise OSError(f"hub_model_id {name}: the Hub cannot be asked ({reason(error)})") from error
    if private and not info.private:
        raise InputError(
            f"hub_model_id {name} exists and is public; pass --hub_private_repo false to publish "
            "there, or name another"
        )
    return Destination(name, private, revision)


def _whoami() -> dict[str, Any]:
    from huggingface_hub import HfApi, errors

    try:
        return HfApi().whoami()
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise InputError(
                "push_to_hub: the Hub refuses the token; run `hf auth login --force`, or set "
                "HF_TOKEN to a valid one"
            ) from error
        raise OSError(f"push_to_hub: the Hub cannot be asked ({reason(error)})") from error
    except (errors.HTTPError, OSError) as error:
        raise OSError(f"push_to_hub: the Hub cannot be reached ({reason(error)})") from error


def _check_rights(account: dict[str, Any], repo_id: str) -> None:
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise InputError(
            "push_to_hub: the token can only read; make one with write access and run "
            "`hf auth login --force`, or set HF_TOKEN to it"
        )
    namespace = repo_id.split("/")[0]
    organisations = {entry["name"]: entry.get("roleInOrg") for entry in account.get("orgs", [])}
    writable = [account["name"]]
    writable += [name for name, org_role in organisations.items() if org_role != "read"]
    if namespace not in writable:
        why = "is yours to read only" if namespace in organisations else "is not yours"
        raise InputError(
            f"hub_model_id {repo_id}: the namespace {namespace!r} {why}; "
            f"you can write to {', '.join(writable)}"
        )


def push_run(folder: Path, destination: Destination) -> str:
    """Uploads a finished run in one commit and returns the address that the Hub answered with.

    Args:
        folder: The run directory.
        destination: From `check_destination`.

    Raises:
        OSError: The Hub refused, or could not be reached after several tries; the run stays as it
            is.
    """
    from huggingface_hub import HfApi, errors

    api, target = HfApi(), destination
    try:
        url = _retried(
            lambda: api.create_repo(target.repo_id, private=target.private, exist_ok=True)
        )
        if target.revision is not None:
            _retried(
                lambda: api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)
            )
        _retried(
            lambda: api.create_commit(
                target.repo_id,
                # Made anew for every try: a commit marks the operations it was given.
                operations=_operations(folder),
                commit_message=f"Publish {folder.resolve().name}",
                revision=target.revision,
            )
        )
    except (errors.HTTPError, OSError) as error:
        raise OSError(
            f"the run is complete in {folder}, but could not be published to {target.repo_id} "
            f"({reason(error)}); the same command with --resume_from_checkpoint tries again"
        ) from error
    return str(url)


def _retried(request: Callable[[], _Answer]) -> _Answer:
    """The answer of a request, asked again after `WAITS` where the Hub is busy or broken."""
    from huggingface_hub import errors

    for wait in WAITS:
        try:
            return request()
        except errors.HTTPError as error:
            response = error.response if isinstance(error, errors.HfHubHTTPError) else None
            if response is not None and response.status_code != 429 and response.status_code < 500:
                raise
            time.sleep(wait)
    return request()


def publishable(folder: Path) -> dict[str, Path | bytes]:
    """What of a run directory is published: `{path in the repo: file, or its sanitised content}`.

    Raises:
        OSError: A file holds the token that is about to be used.
    """
    from huggingface_hub import get_token

    places = [f"{place}{pattern}" for pattern in PUBLISHED for place in ("", "member-*/")]
    found = {file for pattern in places for file in folder.glob(pattern)}
    found |= {file for file in (folder / "report").rglob("*") if file.is_file()}
    files: dict[str, Path | bytes] = {}
    token = get_token()
    for file in sorted(file for file in found if not file.name.startswith(".")):
        content: Path | bytes = file
        if file.name in RECORDS:
            record = json.loads(file.read_text(encoding="utf-8"))
            content = (json.dumps(without_paths(record), indent=2) + "\n").encode()
        if token and file.suffix not in (".safetensors", ".png"):
            written = content if isinstance(content, bytes) else file.read_bytes()
            if token.encode() in written:
                raise OSError(f"{file} holds your token; remove it there, then publish again")
        files[file.relative_to(folder).as_posix()] = content
    return files


def _operations(folder: Path) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    return [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in publishable(folder).items()
    ]


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
