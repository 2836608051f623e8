"""What the Hub needs to know and what it must never see: revisions, hashes, model cards.

Torch-free. A model is named by repo id or folder; `resolve_model` turns that into a commit or a
content hash, so that a run records exactly what went in. `model_card` is a pure function of the
run's own files.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from hf_align.types import InputError

_WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def resolve_model(name: str, revision: str | None = None) -> dict[str, str | None]:
    """What a model name stands for, before anything is downloaded.

    Args:
        name: A folder in `save_pretrained` form, or a Hub id `org/name`.
        revision: Branch, tag or commit of a Hub repo.

    Returns:
        `{"name", "revision", "sha256"}`: the commit for a Hub repo, the content hash for a folder.

    Raises:
        InputError: Neither a folder with a config.json nor a Hub id.
        OSError: The Hub cannot be reached, or the repo is absent, private or gated.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise InputError(
                f"model_name_or_path {name}: the folder has no config.json, so it holds no model"
            )
        return {"name": str(path), "revision": None, "sha256": content_hash(path)}
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(
            f"model_name_or_path {name}: no such folder, and not a Hub id of the form org/name"
        )
    return {"name": name, "revision": _commit_of(name, revision), "sha256": None}


def _commit_of(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    remedy = "or download it and pass the folder"
    try:
        return HfApi().model_info(name, revision=revision).sha
    except HFValidationError as error:
        raise InputError(f"model_name_or_path {name}: not a Hub id of the form org/name") from error
    except GatedRepoError as error:
        raise OSError(
            f"model {name} is gated: accept its terms on its page and run `hf auth login`, {remedy}"
        ) from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"model {name} is not on the Hub, or it is private and you are not signed in "
            f"(`hf auth login`): check the id, {remedy}"
        ) from error
    except RevisionNotFoundError as error:
        raise OSError(f"model {name} has no revision {revision!r}") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise OSError(
            f"model {name}: the Hub cannot be reached ({reason}); try again, {remedy}"
        ) from error


def content_hash(folder: Path) -> str:
    """SHA-256 over names and bytes of a model folder's weights, configuration and tokenizer."""
    digest = hashlib.sha256()
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    own = {"run.json", "lineage.json"}
    for file in (file for file in files if file.name not in own):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def shown_name(source: dict[str, Any]) -> str:
    """A source as a reader may see it: the Hub id with its commit, or a folder's last name and
    hash.

    Never a local path.
    """
    mark = source.get("revision") or source.get("sha256")
    name = str(source["name"])
    local = source.get("revision") is None
    shown = os.path.basename(name.rstrip("/")) if local else name
    return f"{shown}@{mark[:12]}" if mark else shown


def model_card(run: dict[str, Any], report: dict[str, Any], body: str) -> str:
    """The README of a run directory: metadata, verdict, table, figures, lineage and the command.

    Args:
        run: Content of `run.json`.
        report: Content of `report/report.json`.
        body: The report as Markdown.

    Returns:
        Markdown with a YAML header that `huggingface_hub` accepts.
    """
    from huggingface_hub import EvalResult, ModelCardData

    lineage = run["lineage"]
    base, data = lineage["model"], lineage["data"]
    algorithm = run["recipe"]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="hf_align",
            dataset_name=", ".join(shown_name(source) for source in data),
            metric_type=name.replace("/", "_"),
            metric_name=name,
            metric_value=round(estimate["value"], 4),
        )
        for name, estimate in report["metrics"].items()
    ]
    card = ModelCardData(
        library_name="peft" if run["config"].get("use_peft") else "transformers",
        pipeline_tag="text-generation",
        base_model=base["name"] if base.get("revision") else None,
        datasets=[source["name"] for source in data if source.get("revision")] or None,
        tags=["hf-align", "trl", algorithm],
        model_name=run["name"],
        eval_results=results or None,
    )
    sections = [
        f"---\n{card.to_yaml()}\n---\n",
        f"# {run['name']}\n",
        f"Trained with `hf_align.recipes.{algorithm}` from **{shown_name(base)}** on "
        f"{', '.join(shown_name(source) for source in data)}.\n",
        body.rstrip() + "\n",
        _lineage_section(run),
        "## Intended use and limits\n\nA research artefact. The numbers above hold for the "
        "prompts, samples and rewards they were measured with; a gold reward here is the one named in the "
        "report, not human judgement in general. Look at the samples before you rely on it.\n",
    ]
    return "\n".join(sections)


def _lineage_section(run: dict[str, Any]) -> str:
    rows = [f"| {role} | {shown_name(source)} |" for role, source in _sources(run["lineage"])]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return "\n".join(
        [
            "## Lineage\n",
            "| what went in | which |",
            "|---|---|",
            *rows,
            f"\nCommand: `{run['command']}` (seed {run['seed']}). Versions: {versions}.\n",
        ]
    )


def _sources(lineage: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    single = [(role, source) for role, source in lineage.items() if isinstance(source, dict)]
    return single + [("data", source) for source in lineage["data"]]
