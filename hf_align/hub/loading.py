"""What a name stands for, before its weights load: a folder or one commit of a repo, looked at
first.

A repo is resolved to a commit once, and whatever is read then is read at that commit. Only names,
sizes and small JSON files are looked at: pickles, code of the repo's own, paths that lead out of it
and records too large to be any are refused here. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_align.hub.models import check_files, check_weights, content_hash
from hf_align.records import MOST_BYTES, check_paths, check_size, is_plain_path, one_line
from hf_align.revisions import sizes_at, unreachable
from hf_align.types import InputError

Kind = Literal["model", "dataset"]

ADAPTER = "adapter_config.json"
ADAPTER_FILES = (ADAPTER, "adapter_model.safetensors")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Home:
    """Where something lies: a folder, or a repo at one commit.

    Attributes:
        name: Folder or Hub id.
        label: How messages call it.
        revision: The commit; None for a folder.
        sizes: Bytes of each file; None where they are not known, empty where nothing is (offline).
        kind: What kind of repo it is.
    """

    name: str
    label: str
    revision: str | None = None
    sizes: Mapping[str, int | None] = field(default_factory=dict)
    kind: Kind = "model"

    @property
    def is_listed(self) -> bool:
        """Whether its files are known."""
        return self.revision is None or bool(self.sizes)

    def source(self) -> dict[str, str | None]:
        """Its entry in a lineage."""
        sha256 = None if self.revision else content_hash(Path(self.name))
        return {"name": self.name, "revision": self.revision, "sha256": sha256}

    def file(self, path: str, most_bytes: int | None = MOST_BYTES) -> Path | None:
        """One of its files on this disk, downloaded if need be; None where it has none.

        Args:
            path: Its path there.
            most_bytes: Larger files are refused before they are downloaded; None for any size.

        Raises:
            InputError: It is too large.
            OSError: The Hub cannot be reached, or refuses.
        """
        if self.is_listed and path not in self.sizes:
            return None
        if most_bytes is not None:
            check_size(f"{self.label}: {path}", self.sizes.get(path), most_bytes)
        if self.revision is None:
            return Path(self.name) / path
        return self._download(path)

    def _download(self, path: str) -> Path | None:
        from huggingface_hub import HfApi, errors

        try:
            return Path(
                HfApi().hf_hub_download(
                    self.name, path, revision=self.revision, repo_type=self.kind
                )
            )
        except errors.EntryNotFoundError:
            return None  # offline, and not in the cache
        except (errors.HTTPError, OSError) as error:
            raise OSError(f"{self.label}: {path}: {unreachable(error)}") from error


def find_home(
    name: str | Path, revision: str | None = None, option: str = "model", kind: Kind = "model"
) -> Home:
    """A folder as it is, or a repo at the commit that a branch or tag names now.

    Args:
        name: Folder or Hub id `org/name`.
        revision: Branch, tag or commit of a Hub repo.
        option: How messages call what was named.
        kind: What kind of repo it is.

    Raises:
        InputError: Neither a folder nor a Hub id, or a repo with a file that would lie outside it.
        OSError: The Hub cannot be reached, or the repo is absent, private or gated.
    """
    path, name = Path(name).expanduser(), str(name)
    label = f"{option} {name}"
    if path.is_dir():
        if revision not in (None, "main"):
            raise InputError(
                f"model_revision {revision}: {name} is a folder; Hub ids alone have revisions"
            )
        sizes = {
            file.relative_to(path).as_posix(): file.stat().st_size
            for file in path.rglob("*")
            if file.is_file()
        }
        return Home(str(path), label, None, sizes)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"{label}: no such folder, and not a Hub id of the form org/name")
    commit, sizes = sizes_at(kind, name, revision)
    return Home(name, label, commit, sizes, kind)


def resolve_model(
    name: str,
    revision: str | None = None,
    option: str = "model_name_or_path",
    weights: bool = True,
) -> dict[str, str | None]:
    """What the name of a whole model stands for, before anything is downloaded.

    Args:
        name: A folder in `save_pretrained` form, or a Hub id `org/name`.
        revision: Branch, tag or commit of a Hub repo.
        option: The option that named it, for messages.
        weights: Whether it must hold weights; False where its tokenizer is all that is wanted.

    Returns:
        `{"name", "revision", "sha256"}`: the commit for a Hub repo, the content hash for a folder.

    Raises:
        InputError: Neither a folder nor a Hub id, or one that holds no whole model in safetensors.
        OSError: The Hub cannot be reached, or the repo is absent, private or gated.
    """
    home = find_home(name, revision, option)
    if weights and home.is_listed:
        check_files({path for path in home.sizes if "/" not in path}, home.label)
    if weights and home.revision is None:
        check_weights(Path(home.name), home.label)
    return home.source()


@dataclass(frozen=True)
class ModelHome:
    """A model that may be loaded.

    Attributes:
        home: Where it lies; of an adapter, the adapter.
        base: Where an adapter's base model lies; None for a whole model.
    """

    home: Home
    base: Home | None = None


def find_model(
    name: str | Path,
    revision: str | None = None,
    option: str = "model",
    trust_remote_code: bool = False,
) -> ModelHome:
    """A language model or an adapter and its base, looked at before anything of it is loaded.

    Args:
        name: Folder or Hub id, of a model or of an adapter.
        revision: Branch, tag or commit of a Hub repo.
        option: How messages call what was named.
        trust_remote_code: Whether the repo's own code may run.

    Raises:
        InputError: No whole model in safetensors, code of its own, an adapter whose base nobody
            has, or a file that lies elsewhere.
        OSError: The Hub cannot be reached, or a repo is absent, private or gated.
    """
    home = find_home(name, revision, option)
    if _has(home, ADAPTER):
        base = _base_of(home)
        check_model(base, trust_remote_code)
        return ModelHome(home, base)
    check_model(home, trust_remote_code)
    return ModelHome(home)


def is_adapter(home: Home) -> bool:
    """Whether what lies there is an adapter of another model."""
    return _has(home, ADAPTER)


def check_model(home: Home, trust_remote_code: bool = False, folder: str = "") -> None:
    """Refuses what is no whole model in safetensors, or would run code, from its small files.

    Args:
        home: Where it lies.
        trust_remote_code: Whether its own code may run.
        folder: Where in it the model is.

    Raises:
        InputError: Names the file and the reason.
        OSError: The Hub cannot be reached, or refuses.
    """
    prefix = f"{folder}/" if folder else ""
    inside = {path[len(prefix) :] for path in home.sizes if path.startswith(prefix)}
    if home.is_listed:
        check_files({path for path in inside if "/" not in path}, home.label)
    if _has(home, prefix + _INDEX) and (index := home.file(prefix + _INDEX)) is not None:
        _check_index(_read(index, home, _INDEX), inside if home.is_listed else None, home.label)
    if home.revision is None:
        check_weights(Path(home.name) / folder, home.label)
    if not trust_remote_code:
        _check_code(home, prefix)


def _check_index(index: dict[str, Any], inside: Iterable[str] | None, label: str) -> None:
    """Refuses shards that lie elsewhere, or nowhere."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        raise InputError(f"{label}: {_INDEX} is damaged; copy it again")
    check_paths(shards.values(), f"{label}: {_INDEX}")
    missing = sorted(set(shards.values()) - set(inside)) if inside is not None else []
    if missing:
        raise InputError(f"{label}: {missing[0]} is missing, which {_INDEX} names; copy it too")


def _check_code(home: Home, prefix: str) -> None:
    """Refuses configurations that cannot be used without running code that a repo names."""
    for name in ("config.json", "tokenizer_config.json"):
        path = home.file(prefix + name) if _has(home, prefix + name) else None
        config = {} if path is None else _read(path, home, name)
        kernels = [
            value
            for key, value in config.items()
            if "attn_implementation" in key and isinstance(value, str) and "/" in value
        ]
        if kernels:
            raise InputError(
                f"{home.label} is refused: {name} wants the attention kernel "
                f"{one_line(kernels[0], 80)!r}, code of another repo; read it, and pass "
                "trust_remote_code=True if you trust it"
            )
        if isinstance(config.get("auto_map"), dict) and not _is_known(config, name):
            code = one_line(next(iter(config["auto_map"].values()), ""), 80)
            raise InputError(
                f"{home.label} is refused: {name} asks to run the repo's own code ({code}); read "
                "it, and pass trust_remote_code=True if you trust it"
            )


def _is_known(config: Mapping[str, Any], name: str) -> bool:
    """Whether transformers has its own class for what a repo brings code for."""
    if name == "config.json":
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        return config.get("model_type") in CONFIG_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    known = config.get("tokenizer_class")
    return isinstance(known, str) and tokenizer_class_from_name(known) is not None


def _base_of(home: Home) -> Home:
    """The base of an adapter, at the commit that the adapter names."""
    for name in ADAPTER_FILES:
        if home.is_listed and name not in home.sizes:
            raise InputError(f"{home.label} has an {ADAPTER} but no {name}; pickles are not loaded")
    path = home.file(ADAPTER)
    config = {} if path is None else _read(path, home, ADAPTER)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    revision = revision or _recorded_revision(home, base)
    if not isinstance(base, str) or not base:
        raise InputError(f"{home.label} is an adapter that names no base model")
    is_repo = is_plain_path(base) and base.count("/") == 1
    if not is_repo and home.revision is not None:
        raise InputError(
            f"{home.label} is an adapter of {one_line(base, 80)!r}, which is no Hub id, so nobody "
            "else has it; ask its author for the merged model"
        )
    if Path(base).is_dir() and home.revision is not None:
        raise InputError(
            f"{home.label} is an adapter of {base}, and a folder of that name lies here; go to "
            "another folder, so that the Hub's is meant"
        )
    try:
        return find_home(base, revision if isinstance(revision, str) else None, "its base")
    except (InputError, OSError) as error:
        raise type(error)(f"{home.label} is an adapter, and its base cannot be had: {error}") from (
            error
        )


def _recorded_revision(home: Home, base: object) -> str | None:
    """The commit of an adapter's base that its run recorded."""
    path = home.file("lineage.json") if _has(home, "lineage.json") else None
    model = None if path is None else _read(path, home, "lineage.json").get("model")
    if not isinstance(model, dict) or model.get("name") != base:
        return None
    return model.get("revision")


def download(home: Home, paths: Iterable[str]) -> Path:
    """Brings files of a home onto this disk; records among them are size-checked first.

    Raises:
        InputError: There are none, or a record is too large.
        OSError: The Hub cannot be reached, or refuses.
    """
    paths = list(paths)
    for path in paths:
        if path.endswith((".json", ".jsonl")) and not path.startswith(("tokenizer", "vocab")):
            check_size(f"{home.label}: {path}", home.sizes.get(path))
    found = [home.file(path, None) for path in paths]
    if home.revision is None:
        return Path(home.name)
    here = next((file for file in found if file is not None), None)
    if here is None:
        raise InputError(f"{home.label} has none of the files that a run has; name another")
    return here.parents[paths[found.index(here)].count("/")]


def _has(home: Home, path: str) -> bool:
    """Whether it has a file; offline, whether the cache has."""
    if home.is_listed:
        return path in home.sizes
    return home.file(path, None) is not None


def _read(path: Path, home: Home, name: str) -> dict[str, Any]:
    """A configuration as transformers would read it."""
    check_size(f"{home.label}: {name}", path.stat().st_size)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{home.label}: {name} is damaged ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{home.label}: {name} is damaged (no object)")
    return content
