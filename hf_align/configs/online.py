"""Options of the online recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hf_align.configs._option import option


@dataclass
class OnlineArguments:
    """What a round consists of, what older rounds count for, and when the rounds end."""

    model_name_or_path: str | None = option(
        None, "The first policy, which is the reference of every KL: folder, Hub id, or 'testbed'."
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a Hub model.")
    reward_base: str | None = option(
        None, "Model that every reward model is trained from; the first policy without it."
    )
    dataset_name: str | None = option(
        None,
        "Prompts: Hub id, local file, folder, or 'testbed'. Half of them are compared on, other "
        "ones in every round; the policy is optimised on the rest.",
    )
    dataset_config: str | None = option(None, "Configuration of the dataset.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a Hub dataset.")
    dataset_split: str = option("train", "Split that is read.")
    prompt_column: str | None = option(None, "Column to use as `prompt`.")

    rounds: int = option(3, "Rounds at most; more of them later go on after the last one.")
    num_comparisons: int = option(
        1000,
        "Pairs of the current policy's completions compared in a round, those to test on included.",
    )
    test_share: float = option(
        0.1, "Share of the prompts whose pairs no reward model is trained on."
    )
    annotators: Literal["simulated", "people"] = option(
        "simulated",
        "Who compares: the judge that is named, with an annotator's noise if wanted; or people, "
        "for whom a project is prepared: the recipe stops, and the same command goes on once every "
        "pair has its votes.",
    )
    initial_pairs: str | None = option(
        None,
        "Preferences from before the first round: Hub id, local file, folder, or 'testbed' for "
        "those of its SFT policy.",
    )
    old_share: float = option(
        1.0, "Share of the older pairs that a round's reward model is trained on; 0 for none."
    )
    start_from: Literal["reference", "previous"] = option(
        "reference",
        "Each round trains the first policy anew (Bai et al. 2022), or the one that the round "
        "before left; the KL is measured from the first one either way.",
    )
    gold_reward: str | None = option(
        None,
        "What counts as the truth, or a judge that no training sees, as in the ppo recipe; the "
        "testbed's exact reward there.",
    )

    stop_when_gold_stalls: bool = option(
        True, "End where a round's gold is not above the round before, by its 95 % interval."
    )
    target_gold_gain: float | None = option(
        None, "End where the whole interval of the gold gain is above this."
    )
    max_kl: float | None = option(
        None, "End where a round's policy is farther than this from the reference, in nats."
    )

    reward_config: str | None = option(None, "YAML of the reward recipe for every round.")
    ppo_config: str | None = option(None, "YAML of the ppo recipe for every round.")
    annotate_options: dict[str, Any] | None = option(
        None, "Options of the annotate recipe, such as {temperature: 0.8}; JSON on this line."
    )
    collect_options: dict[str, Any] | None = option(
        None, "Options of the collect recipe, where people annotate, such as {overlap: 3}."
    )
    reward_options: dict[str, Any] | None = option(
        None, "Options of the reward recipe, such as {num_members: 4}; they beat its YAML."
    )
    ppo_options: dict[str, Any] | None = option(
        None, "Options of the ppo recipe, such as {kl_budget: 8}; they beat its YAML."
    )

    hub_dataset_id: str | None = option(
        None,
        "Dataset repo that gets a revision round-N after every round; <name>-preferences without "
        "it, where --push_to_hub is given.",
    )
    output_dir: str = option("outputs/online", "Folder for the rounds, the policy and the report.")
    seed: int = option(42, "Of prompts, draws, annotators and training; every round has its own.")
