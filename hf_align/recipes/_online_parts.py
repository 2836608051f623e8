"""Stages that only online rounds have: prompts dealt to rounds, a project for people and its votes,
the mix with older pairs, and what old and new reward model make of a round's pairs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hf_align.configs._option import option
from hf_align.evaluation import pairwise_accuracy
from hf_align.hub import resolve_model
from hf_align.hub.tables import table_of
from hf_align.recipes._collect import STORE
from hf_align.recipes._evaluation import prompt_numbers
from hf_align.recipes._inputs import TESTBED, load_reward
from hf_align.recipes._online_mix import data_of, make_mix, write_table
from hf_align.recipes._online_prompts import Made, held_out, key_of, make_prompts
from hf_align.recipes._online_stages import VOTES, flags
from hf_align.recipes._parser import RecipeParser
from hf_align.recipes._run import Run, begin_run, check_output, recipe
from hf_align.testbed import build_testbed
from hf_align.types import InputError, RewardFn

ACCURACY = "accuracy.json"


@dataclass
class PartArguments:
    """Options of all parts; each reads its own."""

    part: Literal["prompts", "ask", "votes", "mix", "accuracy"] = option("prompts", "Which one.")
    output_dir: str = option("outputs/online-part", "Its folder.")
    overwrite: bool = option(False, "Replace what is in the folder.")
    seed: int = option(42, "Seed of the draws.")
    dataset_name: str | None = option(None, "Prompts.")
    dataset_config: str | None = option(None, "Configuration of the dataset.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a Hub dataset.")
    dataset_split: str = option("train", "Split that is read.")
    prompt_column: str | None = option(None, "Column to use as `prompt`.")
    num_comparisons: int = option(1000, "Comparisons per round.")
    test_share: float = option(0.1, "Share of the prompts that are for testing.")
    collect: dict[str, Any] | None = option(None, "Options of collect.")
    votes: str | None = option(None, "Folder of the project.")
    pairs: list[str] | None = option(None, "Folders of the rounds' pairs, the newest last.")
    prompts: str | None = option(None, "Folder of the prompts.")
    initial_pairs: str | None = option(None, "Pairs from before the first round.")
    old_share: float = option(1.0, "Share of the older pairs to train on.")
    old: str | None = option(None, "Reward model of the round before.")
    new: str | None = option(None, "Reward model of this round.")
    gold_reward: str | None = option(None, "What counts as the truth.")


def make_parser() -> RecipeParser:
    """The options."""
    return RecipeParser("_online_parts", __doc__, (PartArguments,))


@recipe
def main(args: list[str] | None = None) -> None:
    """Makes one part."""
    choices = make_parser().parse(args)
    options = choices.build(PartArguments)
    run = check_output(choices)
    make, lineage = {
        "prompts": make_prompts,
        "ask": _ask,
        "votes": _votes,
        "mix": make_mix,
        "accuracy": _accuracy,
    }[options.part](options)
    begin_run(run, choices, asdict(options), lineage)
    make(run)
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run.write_json("run.json", run.record | {"status": "finished", "finished": finished})


# ------------------------------------------------------------------------------- people's answers


def _ask(options: PartArguments) -> Made:
    """Prepares the project in a folder of its own; what is there already stays."""
    from hf_align.recipes import collect

    words = flags(options.collect or {})
    collect.main(["prepare", "--output_dir", str(options.votes), *words])
    (policy,) = (options.collect or {})["policies"]
    return _nothing, {"model": _model(policy), "data": []}


def _nothing(run: Run) -> None:
    """The project is elsewhere."""


def _votes(options: PartArguments) -> Made:
    from hf_align.feedback import ExportOptions, Store, export_rows

    store = Store(Path(str(options.votes)) / STORE)
    try:
        rows = list(export_rows(store, VOTES, "preference", ExportOptions()))
    finally:
        store.close()
    if not rows:
        raise InputError(f"{options.votes}: no pair has a winner; ask for more votes")
    asked = Path(str(options.votes)).parent / "ask" / "lineage.json"
    lineage = json.loads(asked.read_text(encoding="utf-8"))

    def write(run: Run) -> None:
        write_table(run.path / "data" / "train-00000-of-00001.parquet", table_of(rows, "votes"))

    return write, lineage


# ------------------------------------------------------------------- does the old proxy still hold


def _accuracy(options: PartArguments) -> Made:
    from pyarrow import parquet

    from hf_align.recipes._judges import best_device
    from hf_align.rewards import RewardModel

    folder = Path((options.pairs or [])[-1])
    rows = [
        row
        for file in sorted((folder / "data").glob("*.parquet"))
        for row in parquet.read_table(file).to_pylist()
    ]
    for_test = held_out(Path(str(options.prompts)))
    unseen = [row for row in rows if key_of(row["prompt"]) in for_test]
    gold = None
    if options.gold_reward is not None:
        gold = load_reward(options.gold_reward, "gold_reward")(best_device()).reward
    found: dict[str, Any] = {"pairs": len(rows), "unseen": len(unseen)}
    # The old reward model has seen none of this round's pairs, the new one all but the unseen.
    for name, model, some in (("old", options.old, rows), ("new", options.new, unseen)):
        if model is not None and len(some) > 1:
            reward = RewardModel(model, device=best_device(), batch_size=64)
            found[name] = agreement_with(reward.score, some, gold)

    def write(run: Run) -> None:
        run.write_json(ACCURACY, found)

    models = [_model(model) for model in (options.old, options.new) if model is not None]
    return write, {"reward_models": models, "data": [data_of(folder)]}


def agreement_with(
    score: Callable[..., Sequence[float]], rows: Sequence[dict[str, Any]], gold: RewardFn | None
) -> dict[str, Any]:
    """How often a score orders pairs as they were labelled, and as gold does.

    Args:
        score: Scores completions of prompts.
        rows: Pairs: `prompt`, `chosen`, `rejected`.
        gold: What counts as the truth, if anything does.

    Returns:
        `{"label": Estimate, "gold": Estimate}` as dictionaries, clustered by prompt.
    """
    prompts = [row["prompt"] for row in rows]
    sides = [[row[side] for row in rows] for side in ("chosen", "rejected")]
    margins = np.subtract(*(np.asarray(score(prompts, texts)) for texts in sides))
    clusters = prompt_numbers(prompts)
    found = {"label": pairwise_accuracy(margins, clusters).to_dict()}
    if gold is not None:
        truth = np.subtract(*(gold(prompts=prompts, completions=texts) for texts in sides))
        decided = truth != 0
        if decided.sum() > 1:
            ordered = (margins * np.sign(truth))[decided]
            found["gold"] = pairwise_accuracy(ordered, clusters[decided]).to_dict()
    return found


def _model(name: str) -> dict[str, Any]:
    """A model as a lineage names it."""
    path = str(build_testbed().policy_path) if name == TESTBED else name
    return resolve_model(path, weights=False) | {"name": name}


if __name__ == "__main__":
    main()
