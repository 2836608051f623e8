"""Splits of a Hub dataset, pinned to the commit that was current when it was first asked for.

The commit is resolved with one request that the client does not retry, so a Hub that cannot be
reached is reported at once; everything after reads that commit.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from hf_align.data.sources import DataSource, RawData, RawSplit
from hf_align.types import InputError

if TYPE_CHECKING:
    import datasets

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 20.0
"""Seconds to wait for the Hub's first answer."""

LOCAL_REMEDY = "or download it and pass the folder or file instead"


def open_hub(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    data_files: object = None,
) -> RawData:
    """The splits of `org/name` at one commit.

    Raises:
        InputError: The id is malformed, the configuration is missing or unknown, or the repository
            needs code to be read.
        OSError: The Hub cannot be reached, or the repository is absent, private or gated.
    """
    commit = resolve_revision(name, revision)
    # Imported after the first answer: an absent Hub need not cost these seconds.
    import datasets
    import pyarrow
    from huggingface_hub import errors

    try:
        loaded = datasets.load_dataset(
            name, config, revision=commit, data_dir=data_dir, data_files=data_files
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise OSError(f"Hub dataset '{name}': {_first_line(error)}; {LOCAL_REMEDY}") from error
    except (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowException) as error:
        cause = _first_line(error.__cause__ or error)
        raise OSError(
            f"Hub dataset '{name}' could not be read as one table ({cause}); "
            "download it and pass the folder or file instead"
        ) from error
    except (datasets.exceptions.DataFilesNotFoundError, errors.EntryNotFoundError) as error:
        raise OSError(f"Hub dataset '{name}': no data files ({_first_line(error)})") from error
    except RuntimeError as error:
        raise InputError(
            f"--dataset_name {name}: cannot be read without running its code "
            f"({_first_line(error)}); convert it to Parquet or JSON lines and pass the folder"
        ) from error
    except ValueError as error:
        hint = "choose one with --dataset_config" if "onfig" in str(error) else LOCAL_REMEDY
        raise InputError(f"--dataset_name {name}: {_one_line(error)}; {hint}") from error
    except (errors.HTTPError, OSError) as error:
        raise _unreachable(name, error) from error
    source = DataSource(name, "hub", revision=commit)
    return RawData(
        source,
        {split: partial(_rows, data, f"{name} {split}") for split, data in loaded.items()},
    )


def resolve_revision(name: str, revision: str | None) -> str:
    """The commit hash that a branch or tag (default: the main branch) points at now.

    Raises:
        OSError: One line that tells an unreachable Hub, an absent or private repository, a gated
            one and an unknown revision apart, and says how to go on with a local copy.
        InputError: The id is not a valid one.
    """
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT)
    except errors.HFValidationError as error:
        raise InputError(f"--dataset_name {name}: not a valid Hub id ({error})") from error
    except errors.GatedRepoError as error:
        raise OSError(
            f"Hub dataset '{name}' is gated: accept its terms on its page and set HF_TOKEN, "
            f"{LOCAL_REMEDY}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise OSError(
            f"Hub dataset '{name}' has no revision '{revision}': check --dataset_revision, "
            f"{LOCAL_REMEDY}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise OSError(
            f"Hub dataset '{name}' does not exist, or is private: check the id, set HF_TOKEN, "
            f"{LOCAL_REMEDY}"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        if revision and _COMMIT.fullmatch(revision):
            return revision  # a commit already in the cache needs no network
        raise OSError(
            f"Hub dataset '{name}': HF_HUB_OFFLINE is set: unset it, give a cached commit with "
            f"--dataset_revision, {LOCAL_REMEDY}"
        ) from error
    except (errors.HfHubHTTPError, errors.HTTPError, OSError) as error:
        raise _unreachable(name, error) from error
    return info.sha


def _unreachable(name: str, error: Exception) -> OSError:
    from huggingface_hub import constants, errors

    status = None
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
    if status in (401, 403):
        return OSError(
            f"Hub dataset '{name}': access refused ({status}): check HF_TOKEN and its rights, "
            f"{LOCAL_REMEDY}"
        )
    if status is not None:
        return OSError(
            f"Hub dataset '{name}': {constants.ENDPOINT} answered {status}: try again later, "
            f"{LOCAL_REMEDY}"
        )
    return OSError(
        f"Hub dataset '{name}': cannot reach {constants.ENDPOINT} ({_first_line(error)}): check "
        f"the network, {LOCAL_REMEDY}"
    )


def _rows(data: datasets.Dataset, label: str) -> RawSplit:
    return RawSplit(data.with_format(None).to_list(), [label], [0])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
