"""The stages of the online rounds: prompts dealt once, then per round pairs, mix, reward, policy.

Stages are pure functions of the options, so the same command finds what is done. The number of
rounds is in none of them: more rounds later go on after the last one.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hf_align.configs import JudgeArguments, OnlineArguments
from hf_align.hub import resolve_model
from hf_align.recipes._inputs import TESTBED, load_reward
from hf_align.recipes._judges import find_judges
from hf_align.recipes._parser import Choices
from hf_align.recipes._policy_names import find_source
from hf_align.recipes._stages import Stage
from hf_align.testbed import build_testbed
from hf_align.types import InputError

PARTS = "_online_parts"
PROMPTS, ROUND_PROMPTS, RL_PROMPTS = "prompts", "round-{}.jsonl", "rl"
VOTES = "votes"
"""Folder of a round's project, where people annotate. No stage's own: nothing ever empties it."""

_LEAST_HELD_OUT = 4
_RECIPES = ("annotate", "collect", "reward", "ppo")
# What a round itself says to its stages.
_OURS = {
    *("config", "output_dir", "overwrite", "resume_from_checkpoint", "seed", "push_to_hub"),
    *("hub_model_id", "dataset_name", "dataset_config", "dataset_revision", "dataset_split"),
    *("datasets", "prompt_column", "model_name_or_path", "model_revision", "gold_reward"),
    *("reward_model", "reference_model", "max_pairs", "action", "project", "policies"),
    *("num_prompts", "subset_column", *(one.name for one in fields(JudgeArguments))),
}


def settled(choices: Choices) -> tuple[OnlineArguments, JudgeArguments]:
    """The options, checked as far as that needs no file.

    Raises:
        InputError: Names the option and what to do.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("online starts its stages itself; start it without accelerate launch")
    _settle_annotators(choices)
    options, judging = choices.build(OnlineArguments), choices.build(JudgeArguments)
    for name in ("dataset_name", "model_name_or_path"):
        if getattr(options, name) is None:
            raise InputError(
                f"{name} is missing; name it, or run without arguments for the testbed"
            )
    for name, least in (("rounds", 1), ("num_comparisons", 8), ("seed", 0)):
        if getattr(options, name) < least:
            raise InputError(f"{name} must be at least {least}; got {getattr(options, name)}")
    if not 0 < options.test_share <= 0.5:
        raise InputError(f"test_share must be above 0, at most 0.5; got {options.test_share}")
    held_out = round(options.test_share * options.num_comparisons)
    if held_out < _LEAST_HELD_OUT:
        raise InputError(
            f"test_share {options.test_share} of {options.num_comparisons} comparisons leaves "
            f"{held_out} to test a reward model on; raise one of them to have {_LEAST_HELD_OUT}"
        )
    if not 0 <= options.old_share <= 1:
        raise InputError(f"old_share must be at least 0, at most 1; got {options.old_share}")
    for name in ("target_gold_gain", "max_kl"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} must be above 0; got {value}")
    for name, value in (("start_from", "previous"), ("annotators", "people")):
        if options.model_revision and getattr(options, name) == value:
            raise InputError(
                f"model_revision has no place in {name} {value}; name a folder of that revision"
            )
    has_gold = options.gold_reward is not None or options.dataset_name == TESTBED
    if options.target_gold_gain is not None and not has_gold:
        raise InputError("target_gold_gain needs --gold_reward, which says what gold is")
    _check_stage_options(options, has_gold)
    return options, judging


def _settle_annotators(choices: Choices) -> None:
    """Another judge does not bring the testbed's annotators along, and people need none."""
    names = [one.name for one in fields(JudgeArguments)]
    flagged = {name for name in names if choices.origins.get(name) == "command line"}
    if choices.get("annotators") == "people":
        if flagged:
            raise InputError(
                f"{min(flagged)} has no meaning with --annotators people; leave it out"
            )
        dropped = set(names)
    else:
        noise = {"annotator_temperatures", "annotator_flip_rates"}
        dropped = noise - flagged if "judge" in flagged else set()
    for name in dropped & choices.values.keys():
        del choices.values[name]


def _check_stage_options(options: OnlineArguments, has_gold: bool) -> None:
    """Parses what every stage will be told, so that a misspelt option is refused now."""
    told = {recipe: getattr(options, f"{recipe}_options") or {} for recipe in _RECIPES}
    parsed = {}
    for recipe, mapping in told.items():
        for name in mapping:
            if name in _OURS:
                raise InputError(f"{recipe}_options: {name} is set by the rounds; leave it out")
        config = getattr(options, f"{recipe}_config", None)
        words = [*(("--config", config) if config else ()), *flags(mapping)]
        parser = importlib.import_module(f"hf_align.recipes.{recipe}").make_parser()
        try:
            parsed[recipe] = parser.parse(words)
        except InputError as error:
            raise InputError(f"{recipe}_options: {error}") from error
    for recipe, choices in parsed.items():
        if choices.get("push_to_hub"):
            raise InputError(f"{recipe}_config: push_to_hub is for all rounds; give it to online")
    ppo = parsed["ppo"]
    if has_gold and not ppo.get("audit_steps"):
        raise InputError(
            "ppo_options: without audit_steps a round's gold is not known per prompt, and rounds "
            "cannot be compared; add audit_steps"
        )
    if options.start_from == "previous" and ppo.get("use_peft"):
        raise InputError(
            "start_from previous with use_peft would measure the KL from the round before; train "
            "all weights, or use --start_from reference"
        )


def check_sources(options: OnlineArguments, judging: JudgeArguments) -> None:
    """Makes sure that models, judges and rewards that are named exist, before anything runs.

    Raises:
        InputError: One does not.
        OSError: The Hub cannot be reached, or refuses.
    """
    name = str(options.model_name_or_path)
    if name != TESTBED:
        find_source(name, options.model_revision, "model_name_or_path")
    if options.reward_base not in (None, TESTBED):
        resolve_model(options.reward_base, option="reward_base")
    if options.gold_reward is not None:
        load_reward(options.gold_reward, "gold_reward")
    if options.annotators == "simulated":
        find_judges(judging)
    if TESTBED in (name, options.dataset_name, options.initial_pairs):
        build_testbed()


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(_word, value)]
        else:
            words += [f"--{name}", _word(value)]
    return words


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return "none" if value is None else str(value)


def place(number: int, name: str) -> str:
    """The name of a round's stage: its folder within the recipe's."""
    return f"rounds/{number}/{name}"


@dataclass(frozen=True)
class Plan:
    """The stages of all rounds.

    Attributes:
        options: From `settled`.
        judging: The same.
        folder: Of the recipe.
    """

    options: OnlineArguments
    judging: JudgeArguments
    folder: Path

    def prompts(self) -> Stage:
        """Deals the prompts to rounds and to the policy's training."""
        names = ("dataset_name", "dataset_config", "dataset_revision", "dataset_split")
        names += ("prompt_column", "num_comparisons", "test_share")
        told = {name: getattr(self.options, name) for name in names}
        given = {name: value for name, value in told.items() if value is not None}
        return self._part(PROMPTS, "prompts", given)

    def check_prompts(self) -> None:
        """Refuses more rounds than there are prompts for.

        Raises:
            InputError: Says how many rounds there may be.
        """
        there = len(list((self.folder / PROMPTS).glob(ROUND_PROMPTS.format("*"))))
        if self.options.rounds > there:
            raise InputError(
                f"rounds {self.options.rounds}: the prompts that are compared on suffice for "
                f"{there} of {self.options.num_comparisons} comparisons; lower one of them, or "
                "name more prompts"
            )

    def until(self, number: int, last: str | None = None) -> list[Stage]:
        """The stages up to and with a round, or up to and with one of its stages."""
        stages = [self.prompts()]
        for one in range(1, number + 1):
            stages += self._round(one)
        names = [stage.name for stage in stages]
        return stages if last is None else stages[: names.index(place(number, last)) + 1]

    def _round(self, number: int) -> list[Stage]:
        stages = [self._ask(number)] if self.options.annotators == "people" else []
        stages += [self._pairs(number), self._mix(number), self._reward(number)]
        return [*stages, self._ppo(number), self._accuracy(number)]

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _policy(self, number: int) -> dict[str, Any]:
        """The policy that a round draws from: what the round before left."""
        if number > 1:
            return {"model_name_or_path": self._path(place(number - 1, "ppo"))}
        model = {"model_name_or_path": self.options.model_name_or_path}
        revision = self.options.model_revision
        return model | ({"model_revision": revision} if revision else {})

    def _needs(self, number: int, *names: str) -> tuple[str, ...]:
        """Stages of this round and the policy that it draws from."""
        before = [place(number - 1, "ppo")] if number > 1 else []
        return (PROMPTS, *before, *(place(number, name) for name in names))

    def _seed(self, number: int) -> dict[str, int]:
        return {"seed": 100 * self.options.seed + number}

    def _part(self, name: str, part: str, told: Mapping[str, Any], needs=()) -> Stage:
        words = flags({"part": part, **told, "seed": self.options.seed})
        return Stage(name, PARTS, tuple(words), tuple(needs))

    def _dealt(self, number: int) -> str:
        return self._path(f"{PROMPTS}/{ROUND_PROMPTS.format(number)}")

    def _ask(self, number: int) -> Stage:
        policies = [self._policy(number)["model_name_or_path"]]
        asked = {"dataset_name": self._dealt(number), "policies": policies}
        asked |= {"num_prompts": self.options.num_comparisons, "project": VOTES}
        asked |= (self.options.collect_options or {}) | self._seed(number)
        told = {"collect": asked, "votes": self._path(place(number, VOTES))}
        return self._part(place(number, "ask"), "ask", told, self._needs(number))

    def _pairs(self, number: int) -> Stage:
        name = place(number, "pairs")
        if self.options.annotators == "people":
            told = {"votes": self._path(place(number, VOTES))}
            return self._part(name, "votes", told, self._needs(number, "ask"))
        judged = {
            one.name: getattr(self.judging, one.name)
            for one in fields(JudgeArguments)
            if getattr(self.judging, one.name) != one.default
        }
        told = {"dataset_name": self._dealt(number), **self._policy(number), **judged}
        told |= {"max_pairs": self.options.num_comparisons}
        told |= (self.options.annotate_options or {}) | self._seed(number)
        return Stage(name, "annotate", tuple(flags(told)), self._needs(number))

    def _mix(self, number: int) -> Stage:
        pairs = [place(one, "pairs") for one in range(1, number + 1)]
        told: dict[str, Any] = {"pairs": [self._path(name) for name in pairs]}
        told |= {"prompts": self._path(PROMPTS), "old_share": self.options.old_share}
        if self.options.initial_pairs is not None:
            told |= {"initial_pairs": self.options.initial_pairs}
        told |= {"test_share": self.options.test_share}
        return self._part(place(number, "mix"), "mix", told, (PROMPTS, *pairs))

    def _reward(self, number: int) -> Stage:
        options = self.options
        told: dict[str, Any] = {"config": options.reward_config} if options.reward_config else {}
        told |= {"model_name_or_path": options.reward_base or options.model_name_or_path}
        if options.reward_base is None and options.model_revision:
            told |= {"model_revision": options.model_revision}
        told |= {"dataset_name": self._path(f"{place(number, 'mix')}/data")}
        told |= self._gold() | (options.reward_options or {}) | self._seed(number)
        needs = (place(number, "mix"),)
        return Stage(place(number, "reward"), "reward", tuple(flags(told)), needs)

    def _ppo(self, number: int) -> Stage:
        options, on_testbed = self.options, self.options.dataset_name == TESTBED
        told: dict[str, Any] = {"config": options.ppo_config} if options.ppo_config else {}
        told |= self._policy(1)
        if options.start_from == "previous" and number > 1:
            told = {**told, **self._policy(number), "reference_model": options.model_name_or_path}
        prompts = TESTBED if on_testbed else self._path(f"{PROMPTS}/{RL_PROMPTS}")
        told |= {"dataset_name": prompts, "reward_model": self._path(place(number, "reward"))}
        told |= self._gold() | (options.ppo_options or {}) | self._seed(number)
        needs = self._needs(number, "reward")
        return Stage(place(number, "ppo"), "ppo", tuple(flags(told)), needs)

    def _gold(self) -> dict[str, str]:
        gold = self.options.gold_reward
        if gold is None and self.options.dataset_name == TESTBED:
            gold = TESTBED
        return {} if gold is None else {"gold_reward": gold}

    def _accuracy(self, number: int) -> Stage:
        told: dict[str, Any] = {"pairs": [self._path(place(number, "pairs"))]}
        told |= {"prompts": self._path(PROMPTS), "new": self._path(place(number, "reward"))}
        needs = [PROMPTS, place(number, "pairs"), place(number, "reward")]
        if number > 1:
            told |= {"old": self._path(place(number - 1, "reward"))}
            needs.append(place(number - 1, "reward"))
        return self._part(place(number, "accuracy"), "accuracy", told | self._gold(), needs)
