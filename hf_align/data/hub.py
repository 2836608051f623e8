"""Splits of a Hub dataset, pinned to the commit that was current when it was first asked for.

The commit is resolved with one request that the client does not retry, so a Hub that cannot be
reached is reported at once; everything after reads that commit.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from hf_align.data.sources import DataSource, RawData, RawSplit
from hf_align.revisions import REMEDY, repo_at, unreachable
from hf_align.types import InputError

if TYPE_CHECKING:
    import datasets

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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
    commit, _ = repo_at("dataset", name, revision)
    # Imported after the first answer: an absent Hub need not cost these seconds.
    import datasets
    import pyarrow
    from huggingface_hub import errors

    try:
        loaded = datasets.load_dataset(
            name, config, revision=commit, data_dir=data_dir, data_files=data_files
        )
    except datasets.exceptions.DatasetNotFoundError as error:
        raise OSError(f"Hub dataset '{name}': {_first_line(error)}; {REMEDY}") from error
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
        hint = "choose one with --dataset_config" if "onfig" in str(error) else REMEDY
        raise InputError(f"--dataset_name {name}: {_one_line(error)}; {hint}") from error
    except (errors.HTTPError, OSError) as error:
        raise OSError(f"Hub dataset '{name}': {unreachable(error)}, {REMEDY}") from error
    source = DataSource(name, "hub", revision=commit)
    return RawData(
        source,
        {split: partial(_rows, data, f"{name} {split}") for split, data in loaded.items()},
    )


def _rows(data: datasets.Dataset, label: str) -> RawSplit:
    return RawSplit(data.with_format(None).to_list(), [label], [0])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
