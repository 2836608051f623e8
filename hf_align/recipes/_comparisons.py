"""What a reward model is trained and judged on: pairs or rankings, and the comparisons they make.

Loaded and checked before torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_align.configs import RewardArguments
from hf_align.data import LoadedData, completions_and_ranks, ordered_pairs
from hf_align.recipes._inputs import TESTBED, load_inputs
from hf_align.recipes._parser import Choices
from hf_align.testbed import Testbed
from hf_align.types import InputError, Text

PAIRWISE = "pairwise"
ANNOTATOR = "annotator"
"""The testbed's column with each row's annotator, whose noise is known."""


def check_reward(choices: Choices) -> None:
    """Refuses what a reward model or an ensemble cannot be trained with.

    Raises:
        InputError: Names the option and what to do.
    """
    members = choices.get("num_members", 1)
    if members < 1:
        raise InputError(f"num_members must be at least 1; got {members}")
    if choices.get("load_in_4bit") or choices.get("load_in_8bit"):
        raise InputError(
            "a reward model is saved merged, which quantised weights cannot be; leave out "
            "load_in_4bit and load_in_8bit"
        )
    for name, least in (("member_data", "all"), ("combine", "mean")):
        if members == 1 and choices.get(name, least) != least:
            raise InputError(f"{name} {choices.get(name)} is for ensembles; add --num_members 4")
    loss = choices.get("loss", PAIRWISE)
    if choices.get("margin_column") is not None and loss != PAIRWISE:
        raise InputError(
            f"margin_column {choices.get('margin_column')} has no effect on --loss {loss}; leave "
            "it out, or use --loss pairwise"
        )
    sizes = choices.get("learning_curve") or []
    if any(size < 1 for size in sizes):
        raise InputError(f"learning_curve has the size {min(sizes)}; give numbers of at least 1")
    for name in ("baselines", "learning_curve"):
        if choices.get(name) and os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError(f"{name} trains in one process; leave it out, or `accelerate launch`")


def load_comparisons(
    choices: Choices, options: RewardArguments, testbed: Testbed | None
) -> LoadedData:
    """The data as the loss needs them: rankings, or pairs, into which rankings are turned.

    Raises:
        InputError: The data cannot be used, names file, row, column; or nothing is held out.
        OSError: The Hub cannot be reached, or refuses.
    """
    task = "preference" if options.loss == PAIRWISE else "ranking"
    subset = options.subset_column
    on_testbed = choices.get("dataset_name") == TESTBED
    kept = dict.fromkeys([ANNOTATOR] if on_testbed else [])
    kept |= dict.fromkeys([subset] if subset else [])
    try:
        data = load_inputs(choices, task, testbed, options.margin_column, tuple(kept))
    except InputError as error:
        raise InputError(str(error).replace("keep_columns", "subset_column")) from error
    if "test" not in data.splits:
        raise InputError("there is no held-out split; raise --test_split_size above 0")
    if data.report.prompts["test"] < 2:
        raise InputError(
            "the held-out split has one prompt, and an interval needs two; raise "
            "--test_split_size, or name a larger --dataset_test_split"
        )
    largest = max(options.learning_curve or [0])
    if largest > len(data.splits["train"]):
        raise InputError(
            f"learning_curve asks for {largest} training rows, and there are "
            f"{len(data.splits['train'])}; give smaller sizes"
        )
    return data


@dataclass(frozen=True)
class Comparisons:
    """Completions, each once, and which of them was preferred to which.

    Attributes:
        prompts: (M,) the prompt of each completion.
        completions: (M,)
        better: (N,) the index of each pair's preferred completion.
        worse: (N,) the index of the other one.
        rows: (N,) the row that each pair comes from.
    """

    prompts: list[Text]
    completions: list[Text]
    better: np.ndarray
    worse: np.ndarray
    rows: np.ndarray


def comparisons(rows: Iterable[Mapping[str, Any]]) -> Comparisons:
    """All strictly ordered pairs of pairs or rankings; what is tied is compared with nothing."""
    prompts: list[Text] = []
    completions: list[Text] = []
    pairs: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        texts, ranks = completions_and_ranks(row)
        start = len(completions)
        pairs += [(start + i, start + j, number) for i, j in ordered_pairs(ranks)]
        prompts += [row["prompt"]] * len(texts)
        completions += texts
    better, worse, numbers = np.array(pairs).T
    return Comparisons(prompts, completions, better, worse, numbers)
