"""Rankings of the testbed policy's completions by its annotators, for K-wise reward models.

    rankings-<num>-<num test>-<K>-<seed>-<hash>/
      {train,test}.parquet      prompt, completions, ranks, annotator, gold
      manifest.json

Built on demand beside the testbed, in seconds, and kept there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_align.testbed import models, world
from hf_align.testbed.build import (
    SAMPLE_BATCH,
    Columns,
    build_testbed,
    fingerprint,
    progress_bar,
    train_and_test_sets,
    write_table,
)
from hf_align.testbed.cache import cache_root, open_or_build
from hf_align.testbed.world import ANNOTATORS, DEFAULT, Annotator, WorldSpec
from hf_align.types import InputError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

NUM_COMPLETIONS = 6

_SPARE = 2
"""Completions sampled beyond those needed, since equal and empty ones are left out."""


def rank_completions(gold: np.ndarray, annotator: Annotator, rng: np.random.Generator) -> list[int]:
    """An annotator's ranks of one prompt's completions, 1 = best, without ties.

    Sorted by gold + τ · Gumbel noise, which is the Plackett–Luce model: any two completions come in
    order a, b with probability σ((gold_a − gold_b) / τ). With the annotator's flip rate the whole
    ranking is recorded the wrong way round. So each pair of a ranking is ordered with
    `Annotator.preference_probability`, as the pairs of `Testbed.preferences_path` are. Yellott
    1977, https://doi.org/10.1016/0022-2496(77)90026-8

    Args:
        gold: (K,) gold rewards.
    """
    utility = np.asarray(gold) + annotator.temperature * rng.gumbel(size=len(gold))
    best_first = np.argsort(-utility)
    if rng.random() < annotator.flip_rate:
        best_first = best_first[::-1]
    ranks = np.empty(len(gold), dtype=int)
    ranks[best_first] = np.arange(1, len(gold) + 1)
    return ranks.tolist()


def build_rankings(
    num_rankings: int = 1024,
    num_test_rankings: int = 256,
    num_completions: int = NUM_COMPLETIONS,
    seed: int = 1,
    spec: WorldSpec = DEFAULT,
    progress: bool = True,
) -> Path:
    """A folder with `train.parquet` and `test.parquet` of rankings, one annotator each.

    Rows are `prompt`, `completions`, `ranks`, `annotator` and `gold` (a list). The prompts are
    those of the preference pairs: training and test prompts name different sets of topics.

    Args:
        num_rankings: Rows of `train.parquet`.
        num_test_rankings: Rows of `test.parquet`.
        num_completions: K, distinct completions of the testbed's policy per prompt.
        seed: Seeds prompts, completions and annotators.
        progress: Show a progress bar while building.

    Raises:
        InputError: A number is too small, or `seed` is negative.
        OSError: HF_HOME cannot be written.
    """
    sizes = {"num_rankings": num_rankings, "num_test_rankings": num_test_rankings}
    for name, value, least in (
        *((name, size, 1) for name, size in sizes.items()),
        ("num_completions", num_completions, 2),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    testbed = build_testbed(spec, progress)
    numbers = f"{num_rankings}-{num_test_rankings}-{num_completions}-{seed}"
    folder = cache_root() / f"rankings-{numbers}-{fingerprint(spec)}"

    def fill(draft: Path) -> None:
        policy, tokenizer = models.load_policy(testbed.policy_path)
        sampled = sum(sizes.values()) * (num_completions + _SPARE)
        with models.one_thread(), progress_bar(-(-sampled // SAMPLE_BATCH), progress) as bar:
            bar.set_description("testbed: sampling and ranking completions")
            parts = train_and_test_sets(spec, "preferences")
            for stream, (split, sets) in enumerate(zip(("train", "test"), parts, strict=True)):
                rng = np.random.default_rng([spec.seed, 200 + stream, seed])
                size = list(sizes.values())[stream]
                write_table(
                    draft / f"{split}.parquet",
                    _rankings(policy, tokenizer, sets, size, num_completions, rng, bar.update),
                )

    about = sizes | {"num_completions": num_completions, "seed": seed, "spec": asdict(spec)}
    return open_or_build(folder, fill, about)


def _rankings(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sets: Sequence[tuple[str, ...]],
    num_rankings: int,
    num_completions: int,
    rng: np.random.Generator,
    advance: Callable[[], object],
) -> Columns:
    """K distinct completions with words per prompt, ranked; prompts with fewer are replaced."""
    rows: Columns = {name: [] for name in ("prompt", "completions", "ranks", "annotator", "gold")}
    drawn_each = num_completions + _SPARE
    while missing := num_rankings - len(rows["prompt"]):
        prompts = world.sample_prompts(sets, missing, rng)
        sampled = models.sample_completions(
            policy,
            tokenizer,
            [prompt for prompt in prompts for _ in range(drawn_each)],
            int(rng.integers(2**31)),
            SAMPLE_BATCH,
            advance,
        )
        for index, prompt in enumerate(prompts):
            drawn = sampled[drawn_each * index : drawn_each * (index + 1)]
            distinct = [text for text in dict.fromkeys(drawn) if text][:num_completions]
            if len(distinct) < num_completions:
                continue
            gold = world.gold_reward([prompt] * num_completions, distinct)
            annotator = ANNOTATORS[rng.integers(len(ANNOTATORS))]
            ranks = rank_completions(np.array(gold), annotator, rng)
            row = (prompt, distinct, ranks, annotator.name, gold)
            for column, value in zip(rows.values(), row, strict=True):
                column.append(value)
    return rows
