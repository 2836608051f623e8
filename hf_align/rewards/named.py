"""Reward functions by name: one in a module or in a file, and what a reward may return.

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


def reward_function(name: str, option: str = "gold_reward") -> RewardFn | None:
    """The reward function that `package.module:function` or `path/file.py:function` names.

    Args:
        name: Where the function is.
        option: How messages call what was named.

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
            f"{option} {name}: cannot import {place} ({_where_it_failed(error)})"
        ) from error
    function = vars(module).get(attribute)
    if not callable(function):
        raise InputError(f"{option} {name}: {place} has no function {attribute!r}")
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
