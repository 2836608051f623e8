"""Rewards by name: a function in a module or a file, or a sequence-classification model.

Every reward keeps TRL's signature, `(prompts, completions, **columns) -> list[float]`, and
`checked_scores` refuses what no reward may return.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_align.types import InputError, RewardFn, Text


def checked_scores(scores: Sequence[float], num_completions: int, name: str) -> list[float]:
    """The scores as floats, one finite number per completion.

    Raises:
        ValueError: A wrong number of scores, or one that is NaN or infinite.
    """
    values = [float(score) for score in scores]
    if len(values) != num_completions:
        raise ValueError(
            f"reward {name} returned {len(values)} scores for {num_completions} completions"
        )
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"reward {name} returned {value} for completion {index}")
    return values


def reward_function(name: str) -> RewardFn | None:
    """The reward function that `package.module:function` or `path/file.py:function` names.

    Returns:
        The function; None where the name has no colon, so that it must be a model.

    Raises:
        InputError: The module, file or function does not exist.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon:
        return None
    try:
        module = (
            _module_from_file(place) if place.endswith(".py") else importlib.import_module(place)
        )
    except (ImportError, FileNotFoundError, SyntaxError) as error:
        raise InputError(f"gold_reward {name}: cannot import {place} ({error})") from error
    if attribute not in vars(module):
        raise InputError(f"gold_reward {name}: {place} has no function {attribute!r}")
    return vars(module)[attribute]


def _module_from_file(path: str):
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(path).stem] = module
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
        InputError: The model has more than one output, or its tokenizer no pad token.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(name, revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
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


def _render(tokenizer, prompt: Text, completion: Text) -> str:
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion + (tokenizer.eos_token or "")
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(prompt + completion, tokenize=False)
