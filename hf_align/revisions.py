"""Which commit of a Hub repo a name and a branch stand for now; whatever is in the way is one line.

Torch-free, and asked before anything is downloaded. The look-up is not retried by the client, so an
unreachable Hub answers at once.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from hf_align.records import check_paths
from hf_align.types import InputError

_TIMEOUT = 10
# What the client of large files makes of an answer: a ConnectionError with its text alone.
_ANSWERED = re.compile(r"HTTP status \w+ error \((\d{3})")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OPTIONS = {"dataset": "dataset_name", "model": "model_name_or_path"}
REMEDY = "or download it and pass the folder or file instead"


def repo_at(
    kind: Literal["dataset", "model"], name: str, revision: str | None = None
) -> tuple[str, list[str]]:
    """The commit hash of a repo at a branch, tag or commit, and the names of its files.

    Offline, a full commit hash stands for itself (its files may be in the cache; none are named).

    Raises:
        InputError: The id is not a valid one, or a file in it would lie outside of its folder.
        OSError: One line that tells an unreachable Hub, an absent or private repository, a gated
            one and an unknown revision apart, and says how to go on with a local copy.
    """
    commit, sizes = sizes_at(kind, name, revision, sizes=False)
    return commit, list(sizes)


def sizes_at(
    kind: Literal["dataset", "model"],
    name: str,
    revision: str | None = None,
    sizes: bool = True,
) -> tuple[str, dict[str, int | None]]:
    """As `repo_at`, with the bytes that each file has; None where the Hub was not asked.

    Raises:
        InputError: As `repo_at`.
        OSError: As `repo_at`.
    """
    from huggingface_hub import HfApi, errors

    what = f"Hub {kind} {name!r}"
    look_up = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        info = look_up(name, revision=revision, timeout=_TIMEOUT, files_metadata=sizes)
    except errors.HFValidationError as error:
        raise InputError(
            f"{_OPTIONS[kind]} {name}: neither a file or folder nor a Hub id of the form org/name"
        ) from error
    except errors.GatedRepoError as error:
        raise OSError(
            f"{what} is gated: accept its terms on its page and run `hf auth login`, {REMEDY}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise OSError(f"{what} has no revision {revision!r}: check --{kind}_revision") from error
    except errors.RepositoryNotFoundError as error:
        raise OSError(
            f"{what} does not exist, or is private and you are not signed in (`hf auth login`): "
            f"check the id, {REMEDY}"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        if revision and _COMMIT.fullmatch(revision):
            return revision, {}
        raise OSError(
            f"{what}: HF_HUB_OFFLINE is set; unset it, give a cached commit with "
            f"--{kind}_revision, {REMEDY}"
        ) from error
    except (errors.HTTPError, OSError) as error:
        raise OSError(f"{what}: {unreachable(error)}, {REMEDY}") from error
    listed = {file.rfilename: file.size for file in info.siblings or []}
    check_paths(listed, what)
    return info.sha, listed


def unreachable(error: Any) -> str:
    """What to say of a request that the Hub refused or never got, and what to do about it."""
    status = _status(error)
    if status is None:
        return f"cannot reach the Hub ({reason(error)}); check the network"
    if status in (401, 403):
        return f"access refused ({reason(error)}); check your token and its rights"
    return f"{reason(error)}; try again later"


def _status(error: Any) -> int | None:
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return error.response.status_code
    found = _ANSWERED.search(str(error))
    return None if found is None else int(found[1])


def reason(error: Any) -> str:
    """The first line of a client's error, without its request ids and addresses."""
    from huggingface_hub import constants

    endpoint, status = _PASSWORD.sub("", constants.ENDPOINT), _status(error)
    if status is not None:
        return f"{endpoint} answered {status}"
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{endpoint}: {_PASSWORD.sub('', text)[:160]}"
