"""Rewards by name: a function in a module or a file, or a sequence-classification model.

Every reward keeps TRL's signature, `(prompts, completions, **columns) -> list[float]`, and
`checked_scores` refuses what no reward may return.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from hf_align.types import InputError, RewardFn, Text


def checked_scores(scores: Sequence[float], num_completions: int, name: str) -> list[float]:
    """The scores as floats, one finite number per completion.

    Raises:
        InputError: No numbers, a wrong number of them, or one that is NaN or infinite; it names the
            reward.
    """
    try:
        values = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"reward {name} must return a list with one number per completion ({error})"
        ) from error
    if len(values) != num_completions:
        raise InputError(
            f"reward {name} returned {len(values)} scores for {num_completions} completions"
        )
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise InputError(
                f"reward {name} returned {value} for completion {index} of {num_completions}; a "
                "reward that cannot score must raise"
            )
    return values


def reward_function(name: str) -> RewardFn | None:
    """The reward function that `package.module:function` or `path/file.py:function` names.

    Returns:
        The function; None where the name has no colon, so that it must be a model.

    Raises:
        InputError: The module, file or function does not exist, or importing it fails.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon:
        return None
    try:
        module = (
            _module_from_file(place) if place.endswith(".py") else importlib.import_module(place)
        )
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise InputError(
            f"gold_reward {name}: cannot import {place} ({_where_it_failed(error)})"
        ) from error
    function = vars(module).get(attribute)
    if not callable(function):
        raise InputError(f"gold_reward {name}: {place} has no function {attribute!r}")
    return function


def named_reward(name: str, function: RewardFn) -> tuple[str, RewardFn]:
    """A reward function whose failures name it and the line, with the name that a report shows.

    Args:
        name: As the option named it; a file's folder is left out of the shown name.
        function: The function.

    Returns:
        `(shown name, function)`; the function raises InputError where the original raises.
    """
    place, _, attribute = name.rpartition(":")
    shown = f"{Path(place).name if place.endswith('.py') else place}:{attribute}"

    def score(prompts: list[Text], completions: list[Text], **columns: object) -> list[float]:
        try:
            return function(prompts=prompts, completions=completions, **columns)
        except Exception as error:  # the user's code may raise anything
            raise InputError(f"reward {shown} raised {_where_it_failed(error)}") from error

    return shown, score


def reward_source(name: str) -> dict[str, str | None]:
    """The lineage entry of a reward function: its name, and the content hash of its file."""
    place, _, attribute = name.rpartition(":")
    if not place.endswith(".py"):
        return {"name": name, "revision": None, "sha256": None}
    content = Path(place).read_bytes()
    shown = f"{Path(place).name}:{attribute}"
    return {"name": shown, "revision": None, "sha256": hashlib.sha256(content).hexdigest()}


def _where_it_failed(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    importing = last.filename.startswith("<frozen") or "importlib" in last.filename
    place = "" if importing else f" ({Path(last.filename).name} line {last.lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"


def _module_from_file(path: str):
    if not Path(path).is_file():
        raise FileNotFoundError("no such file")
    # A name of its own: a user's `statistics.py` must not replace the standard library's.
    name = f"hf_align_reward_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def classifier_reward(
    name: str, revision: str | None, device: str, batch_size: int = 16
) -> RewardFn:
    """The score of a sequence-classification model with one output, as a reward function.

    Args:
        name: Folder or Hub id.
        revision: Commit of a Hub repo.
        device: Where it runs.
        batch_size: Texts scored at a time, sorted by length.

    Raises:
        InputError: It is no reward model: more than one output, weights that would be random, no
            pad token, or files that cannot be used.
    """
    import torch

    model, tokenizer = _load_classifier(name, revision)
    if model.config.num_labels != 1:
        raise InputError(
            f"gold_reward {name}: a reward model has one output, this one has "
            f"{model.config.num_labels}"
        )
    if tokenizer.pad_token is None:
        raise InputError(f"gold_reward {name}: its tokenizer has no pad token")
    model.config.pad_token_id = tokenizer.pad_token_id
    model.to(device).eval()

    @torch.no_grad()
    def score(prompts: list[Text], completions: list[Text], **columns: object) -> list[float]:
        texts = [
            _render(tokenizer, prompt, completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        scores = [0.0] * len(texts)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = tokenizer(
                [texts[index] for index in chosen],
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(device)
            for index, value in zip(chosen, model(**batch).logits[:, 0].tolist(), strict=True):
                scores[index] = value
        return scores

    return score


def _load_classifier(name: str, revision: str | None):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, revision=revision, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:240]
        raise InputError(f"gold_reward {name}: cannot be loaded ({reason})") from error
    if info["missing_keys"]:
        raise InputError(
            f"gold_reward {name} is not a trained reward model: {min(info['missing_keys'])} is not "
            "among its weights and would be random"
        )
    return model, tokenizer


def _render(tokenizer, prompt: Text, completion: Text) -> str:
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion + (tokenizer.eos_token or "")
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(prompt + completion, tokenize=False)
