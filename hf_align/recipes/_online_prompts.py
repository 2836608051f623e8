"""Deals prompts to online rounds, once: none is compared on twice, and some are for testing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_align.data import load_data
from hf_align.files import write_text
from hf_align.recipes._inputs import TESTBED
from hf_align.recipes._online_stages import RL_PROMPTS, ROUND_PROMPTS
from hf_align.recipes._run import Run
from hf_align.testbed import DEFAULT
from hf_align.testbed.build import train_and_test_sets
from hf_align.testbed.world import prompt_of
from hf_align.types import Text

if TYPE_CHECKING:
    from hf_align.recipes._online_parts import PartArguments

Made = tuple[Callable[[Run], None], dict[str, Any]]
"""What writes a part into its folder, and its lineage."""

SPARE = 1.25
"""Prompts per comparison: two completions that are alike are no pair, and more are the longer a
policy was optimised."""

COMPARED_ON = 0.5
"""Share of a dataset's prompts that is compared on; the policy is optimised on the others."""

HELD_OUT = 0.1
"""Share of a dataset's prompts that policies are measured on, if it has no test split."""

MOST_ROUNDS = 100
DEALT = "prompts.jsonl"
"""Every prompt that is compared on, with its round, and whether it is for training or testing."""


def key_of(prompt: Text) -> str:
    """What tells a prompt from others, however it was stored."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def make_prompts(options: PartArguments) -> Made:
    """The part `prompts`."""
    on_testbed = options.dataset_name == TESTBED
    if on_testbed:
        train, test = testbed_prompts(options.seed)
        sources: list[dict[str, Any]] = [{"name": "testbed-preferences"}]
        rl = None
    else:
        train, test, rl, sources = _dataset_prompts(options)
    dealt = deal(train, test, options.num_comparisons, options.test_share)

    def write(run: Run) -> None:
        for number, (first, held_out) in enumerate(dealt, start=1):
            _write_rows(run.path / ROUND_PROMPTS.format(number), [*first, *held_out])
        rows = [
            {"prompt": prompt, "round": number, "split": split}
            for number, parts in enumerate(dealt, start=1)
            for split, prompts in zip(("train", "test"), parts, strict=True)
            for prompt in prompts
        ]
        write_text(run.path / DEALT, as_lines(rows))
        for split, prompts in (rl or {}).items():
            _write_rows(run.path / RL_PROMPTS / f"{split}.jsonl", prompts)

    return write, {"data": sources}


def deal(
    train: Sequence[Text], test: Sequence[Text], num_comparisons: int, test_share: float
) -> list[tuple[list[Text], list[Text]]]:
    """`(to train on, to test on)` of each round that the prompts suffice for, no prompt twice."""
    wanted = math.ceil(SPARE * num_comparisons)
    held_out = max(2, round(test_share * wanted))
    first = wanted - held_out
    number = min(len(train) // first, len(test) // held_out, MOST_ROUNDS)
    return [
        (
            list(train[i * first : (i + 1) * first]),
            list(test[i * held_out : (i + 1) * held_out]),
        )
        for i in range(number)
    ]


def testbed_prompts(seed: int) -> tuple[list[Text], list[Text]]:
    """Every order of every set of topics that is for preferences; no set is on both sides."""
    rng = np.random.default_rng([seed, 9])
    sides: list[list[Text]] = []
    for sets in train_and_test_sets(DEFAULT, "preferences"):
        found = [prompt_of(order) for topics in sets for order in permutations(topics)]
        sides.append([found[i] for i in rng.permutation(len(found))])
    return sides[0], sides[1]


def _dataset_prompts(
    options: PartArguments,
) -> tuple[list[Text], list[Text], dict[str, list[Text]], list[dict[str, Any]]]:
    column = options.prompt_column
    data = load_data(
        options.dataset_name,
        "prompt",
        config=options.dataset_config,
        revision=options.dataset_revision,
        train_split=options.dataset_split,
        columns={"prompt": column} if column else None,
        test_split_size=HELD_OUT,
    )
    distinct = {
        split: list({key_of(prompt): prompt for prompt in rows["prompt"]}.values())
        for split, rows in data.splits.items()
    }
    prompts = distinct["train"]
    order = np.random.default_rng([options.seed, 9]).permutation(len(prompts))
    shuffled = [prompts[i] for i in order]
    compared = shuffled[: round(COMPARED_ON * len(shuffled))]
    for_test = round(options.test_share * len(compared))
    rl = {"train": shuffled[len(compared) :], "test": distinct["test"]}
    sources = [source.to_dict() for source in data.sources]
    return compared[for_test:], compared[:for_test], rl, sources


def _write_rows(file: Path, prompts: Sequence[Text]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, as_lines([{"prompt": prompt} for prompt in prompts]))


def as_lines(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def held_out(folder: Path) -> set[str]:
    """The keys of the prompts whose pairs are for testing."""
    with (folder / DEALT).open(encoding="utf-8") as stream:
        rows = map(json.loads, stream)
        return {key_of(row["prompt"]) for row in rows if row["split"] == "test"}
