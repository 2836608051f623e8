"""Opens a reward model, or an ensemble of them, by folder or Hub id, and refuses what is none.

An ensemble is a folder with one `save_pretrained` subfolder per member and `ensemble.json`:

    {"schema": 1, "members": ["member-0", "member-1"], "combine": "mean",
     "coefficient": 0.5, "z": 1.0, "mean": 0.0, "sd": 1.0}

Torch is imported on use.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hf_align.files import write_text
from hf_align.records import one_line, read_record
from hf_align.rewards.ensemble import COMBINATIONS
from hf_align.types import InputError
from hf_align.weights import readable

ENSEMBLE_FILE = "ensemble.json"
SCHEMA = 1


@dataclass(frozen=True)
class Ensemble:
    """What `ensemble.json` says: who the members are and how their scores become one.

    Attributes:
        members: Names of the members' subfolders.
        combine: One of `COMBINATIONS`.
        coefficient: λ of "uncertainty_weighted".
        z: Of "lower_confidence_bound".
        mean: Mean of the combined score on the reference completions; subtracted.
        sd: Its standard deviation there; divides what is left.
    """

    members: tuple[str, ...]
    combine: str = "mean"
    coefficient: float = 0.5
    z: float = 1.0
    mean: float = 0.0
    sd: float = 1.0

    def __post_init__(self):
        if not self.members:
            raise InputError("an ensemble needs at least one member; members is empty")
        for member in self.members:
            if not isinstance(member, str) or Path(member).name != member or member == "..":
                raise InputError(f"members has {member!r}; give the name of a subfolder")
        if len(set(self.members)) != len(self.members):
            raise InputError(f"members names one twice: {', '.join(self.members)}")
        if self.combine not in COMBINATIONS:
            raise InputError(
                f"combine is {self.combine!r}; choose one of {', '.join(COMBINATIONS)}"
            )
        for name in ("coefficient", "z", "mean", "sd"):
            value = getattr(self, name)
            lowest = -math.inf if name == "mean" else 0
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < lowest:
                raise InputError(f"{name} is {value!r}; give a finite number, not negative")
        if self.sd == 0:
            raise InputError("sd is 0; an ensemble that scores everything alike is of no use")


def write_ensemble(folder: Path, ensemble: Ensemble) -> None:
    """Writes `ensemble.json` beside the members' subfolders, whole or not at all.

    Raises:
        InputError: A member's subfolder is missing.
        OSError: The file cannot be written.
    """
    for member in ensemble.members:
        _check_member(folder, member, f"ensemble {folder}")
    content = {"schema": SCHEMA, **asdict(ensemble)}
    write_text(folder / ENSEMBLE_FILE, json.dumps(content, indent=2) + "\n")


def read_ensemble(name: str, revision: str | None, label: str) -> Ensemble | None:
    """The `ensemble.json` of a folder or Hub repo; None where it holds a single model.

    Args:
        name: Folder or Hub id.
        revision: Branch, tag or commit of a Hub repo.
        label: How messages call it.

    Raises:
        InputError: The file is damaged or wrong, or a member it names is missing.
        OSError: The Hub cannot be reached, or refuses.
    """
    path = _file_of(name, ENSEMBLE_FILE, revision, label)
    if path is None:
        return None
    content = read_record(path, f"{label}: {ENSEMBLE_FILE}")
    try:
        schema = content.pop("schema", None)
        members = tuple(content.pop("members", ()))
    except TypeError as error:
        raise InputError(f"{label}: {ENSEMBLE_FILE} is damaged ({error})") from error
    if schema != SCHEMA:
        raise InputError(f"{label}: {ENSEMBLE_FILE} has schema {schema!r}, this reads {SCHEMA}")
    unknown = sorted(content.keys() - {field.name for field in fields(Ensemble)})
    if unknown:
        raise InputError(f"{label}: {ENSEMBLE_FILE} has the unknown key {unknown[0]!r}")
    try:
        ensemble = Ensemble(members, **content)
    except InputError as error:
        raise InputError(f"{label}: {ENSEMBLE_FILE}: {error}") from error
    for member in ensemble.members:
        if Path(name).is_dir():
            _check_member(Path(name), member, label)
        elif _file_of(name, f"{member}/config.json", revision, label) is None:
            raise InputError(f"{label}: member {member} is missing, which {ENSEMBLE_FILE} names")
    return ensemble


def load_member(
    name: str, revision: str | None, subfolder: str, dtype: str | None, label: str
) -> tuple[Any, Any]:
    """A sequence-classification model with one output, and its tokenizer.

    Args:
        name: Folder or Hub id.
        revision: Branch, tag or commit of a Hub repo.
        subfolder: Where in it the model is; "" for the top.
        dtype: Of the weights, for example "float32"; None keeps the saved one.
        label: How messages call it.

    Returns:
        `(model, tokenizer)`, the model in evaluation mode with the tokenizer's pad token.

    Raises:
        InputError: It is no reward model: no head, more than one output, weights that would be
            random, no usable pad token, or files that cannot be used.
        OSError: The Hub cannot be reached, or refuses.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    label = f"{label}/{subfolder}" if subfolder else label
    where = {"revision": revision, "subfolder": subfolder, "trust_remote_code": False}
    with readable(name, "cannot be loaded", label):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            **where,
            dtype=dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
    missing = sorted(info["missing_keys"])
    if missing:
        causal = " (a causal language model has no such head)" if "score.weight" in missing else ""
        raise InputError(
            f"{label} is not a trained reward model: {missing[0]} is not among its weights and "
            f"would be random{causal}; train one with the reward recipe, or name another"
        )
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
    if mismatched:
        raise InputError(
            f"{label}: its weights do not fit its config.json: {mismatched[0]} is of another shape "
            "and would be random"
        )
    check_member(model, tokenizer, label)
    return model.eval(), tokenizer


def load_adapted(
    base: tuple[str, str | None], folder: Path, dtype: str | None, label: str
) -> tuple[Any, Any]:
    """A reward model that is an adapter of another model, merged, and its tokenizer.

    The base may be a reward model, or a language model whose head the adapter brings along
    (`modules_to_save`), as TRL's RewardTrainer saves it.

    Args:
        base: Folder or Hub id of the base, and its revision.
        folder: Of the adapter: `adapter_config.json`, `adapter_model.safetensors`, and a tokenizer
            where it has its own.
        dtype: Of the weights, for example "float32"; None keeps the saved one.
        label: How messages call it.

    Raises:
        InputError: Neither has a head of one output, or their files cannot be used.
        OSError: The Hub cannot be reached, or refuses.
    """
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    name, revision = base
    at_base = {"revision": revision, "trust_remote_code": False}
    words = (str(folder), {}) if (folder / "tokenizer_config.json").is_file() else (name, at_base)
    with readable(name, "cannot be loaded", label):
        tokenizer = AutoTokenizer.from_pretrained(words[0], **words[1])
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            **at_base,
            num_labels=1,
            dtype=dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        with safe_open(folder / "adapter_model.safetensors", framework="np") as adapter:
            brought = {key.removeprefix("base_model.model.") for key in adapter.keys()}  # noqa: SIM118
    random = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])} - brought)
    if random:
        raise InputError(
            f"{label} is no trained reward model: {random[0]} is neither in the adapter nor in its "
            f"base {name} and would be random; save the head with the adapter (modules_to_save)"
        )
    with readable(name, "its adapter cannot be loaded", label):
        model = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
        model = model.merge_and_unload()
    check_member(model, tokenizer, label)
    return model.eval(), tokenizer


def check_member(model: Any, tokenizer: Any, label: str) -> None:
    """Refuses a model that does not give one score per sequence; sets its pad token.

    Raises:
        InputError: More or fewer outputs than one, no pad token, or one without an embedding.
    """
    if model.config.num_labels != 1:
        raise InputError(
            f"{label}: a reward model has one output, this one has {model.config.num_labels}; it "
            "is a classifier of classes"
        )
    if tokenizer.pad_token is None:
        raise InputError(
            f"{label}: its tokenizer has no pad token, so the last token of a padded sequence "
            "cannot be found; set tokenizer.pad_token and save the tokenizer again"
        )
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id >= rows:
        raise InputError(
            f"{label}: its pad token has id {tokenizer.pad_token_id}, but the model has {rows} "
            "embeddings: the token was added to the tokenizer alone; call "
            "model.resize_token_embeddings and train again"
        )
    # The head reads the last token that is not padding, and asks the configuration which that is.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _check_member(folder: Path, member: str, label: str) -> None:
    if not (folder / member / "config.json").is_file():
        raise InputError(
            f"{label}: member {member} is missing, which {ENSEMBLE_FILE} names; copy it too, or "
            "take it off the list"
        )


def _file_of(name: str, file: str, revision: str | None, label: str) -> Path | None:
    """A file of a folder or Hub repo; None where it has none."""
    from huggingface_hub import errors, hf_hub_download

    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"{label}: no such folder, and not a Hub id of the form org/name")
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.EntryNotFoundError:
        # Also where the Hub cannot be asked and nothing is cached; loading the model tells then.
        return None
    except errors.HFValidationError as error:
        raise InputError(f"{label}: not a Hub id of the form org/name") from error
    except (errors.HTTPError, OSError) as error:
        raise OSError(f"{label}: {one_line(error)}") from error
