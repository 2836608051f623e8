"""What the on-policy recipes share: rewards by name, prompts that fit, the proxy of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_align.configs import EvaluationArguments, RewardSourceArguments
from hf_align.data import LoadedData, load_data
from hf_align.hub import resolve_model
from hf_align.recipes import _inputs as inputs
from hf_align.recipes._evaluation import Evaluator
from hf_align.recipes._inputs import TESTBED, Gold, load_inputs, load_reward
from hf_align.recipes._parser import Choices
from hf_align.recipes._preflight import refusals
from hf_align.recipes._run import Run, begin_run, is_main_process, save_model
from hf_align.recipes._training import Setup, num_tokens
from hf_align.rewards import RewardModel
from hf_align.testbed import Testbed, build_testbed, build_translation
from hf_align.types import InputError, Text

TRANSLATION = "testbed-translation"


@dataclass
class Task:
    """What an on-policy run reads.

    Attributes:
        testbed: The testbed, where the run is on it.
        data: The prompts.
        source: Where the policy starts.
        reference: Where the model is that the KL is measured from.
        rewards: Loads the rewards onto a device.
        gold: Loads the gold reward onto a device.
        ptx: Rows of the language-modelling loss, if any.
    """

    testbed: Testbed | None
    data: LoadedData
    source: dict[str, Any]
    reference: dict[str, Any]
    rewards: Callable[[str], list[Gold]]
    gold: Callable[[str], Gold | None]
    ptx: Any


@dataclass
class Job:
    """What an on-policy run does with it.

    Attributes:
        trainer_arguments: Of the trainer's constructor.
        evaluator: Holds policy and reference against each other.
        reference: The reference model that audits use; None within an adapter.
        lineage: The content of `lineage.json`.
    """

    trainer_arguments: dict[str, Any]
    evaluator: Evaluator
    reference: Any
    lineage: dict[str, Any]


def load_task(
    choices: Choices,
    locate: Callable[[Choices, Testbed | None], dict[str, Any]] = inputs.locate_model,
) -> Task:
    """Reads what the options name; nothing large is loaded yet.

    Args:
        choices: The options.
        locate: Finds the policy.

    Raises:
        InputError: Something that was named cannot be used.
        OSError: The Hub cannot be reached, or refuses.
    """
    named = translation_inputs(choices)
    gold = inputs.load_gold(choices)
    rewards = load_rewards(choices)
    testbed = inputs.load_testbed(choices)
    data = load_prompts(choices, testbed)
    source = locate(choices, testbed)
    if named is not None:
        data.sources[:] = [replace(entry, name=named) for entry in data.sources]
        source |= {"name": named}
    reference = locate_reference(choices, testbed) or source
    return Task(testbed, data, source, reference, rewards, gold, ptx_rows(choices, testbed))


def locate_reference(choices: Choices, testbed: Testbed | None) -> dict[str, Any] | None:
    """Where the reference is that was named; None where it is the policy that training starts from.

    Raises:
        InputError: No such model.
        OSError: The Hub cannot be reached, or refuses.
    """
    name = choices.get("reference_model")
    if name is None:
        return None
    path = name
    if name == TESTBED:
        path = str((testbed or build_testbed()).policy_path)
    source = resolve_model(path, option="reference_model")
    return source | {"name": name, "path": source["name"]}


def prepare(choices: Choices, run: Run, setup: Setup, task: Task) -> Job:
    """Loads models and rewards, and puts together what trainer and evaluation are made of.

    Raises:
        InputError: Prompts, rewards and models do not fit each other.
    """
    from trl import get_peft_config

    from hf_align.recipes._policies import load_policy_and_reference
    from hf_align.recipes._training import make_evaluator

    keep_fitting(run, setup, task.data, setup.args.max_completion_length)
    rewards = task.rewards(str(setup.args.device))
    say_parity(run, rewards, setup.tokenizer)
    proxy = proxy_of(rewards, setup.args.reward_weights)
    prompts = inputs.evaluation_prompts(choices, task.data, task.testbed)
    columns = columns_by_prompt(choices, task.data)
    evaluator = make_evaluator(choices, run, setup, prompts, task.gold, proxy, columns)
    every = choices.build(EvaluationArguments).audit_steps
    # The trainer's reference is in memory in any case, so audits cost no other.
    policy, reference = load_policy_and_reference(setup, task.source, every, task.reference)
    lineage = inputs.lineage(task.source, task.data, evaluator.gold)
    if task.reference is not task.source:
        lineage["reference"] = inputs.lineage(task.reference, task.data, None)["reference"]
        run.warn(
            "training starts from another policy than the reference, so the curve and the verdict "
            "begin with the former; the table compares with the latter"
        )
    lineage["reward_models"] = [reward.source or {"name": reward.name} for reward in rewards]
    arguments = {
        "model": policy,
        "reward_funcs": [reward.reward for reward in rewards],
        "args": setup.args,
        "train_dataset": task.data.splits["train"],
        "eval_dataset": task.data.splits["test"] if setup.args.eval_strategy != "no" else None,
        "processing_class": setup.tokenizer,
        "peft_config": get_peft_config(setup.model_args),
        "ref_model": reference,
        "ptx_dataset": task.ptx,
    }
    return Job(arguments, evaluator, reference, lineage)


def train_and_report(
    choices: Choices, run: Run, task: Task, trainer_class: type, own: tuple[type, ...]
) -> None:
    """Settles, trains, saves and evaluates one run of an on-policy trainer.

    Raises:
        InputError: Something does not fit, said before the run directory is touched; or a reward
            failed.
        OSError: The disk is full, or the Hub refuses.
    """
    from hf_align.recipes import _policies as policies
    from hf_align.recipes import _report as report
    from hf_align.recipes import _training as training

    setup = training.settle(
        choices, run, trainer_class.config_class, task.data, task.source, full_learning_rate=1e-6
    )
    job = prepare(choices, run, setup, task)
    config = training.resolved_config(choices, setup, own)
    with refusals(run.path):
        trainer = trainer_class(**job.trainer_arguments)
    begin_run(run, choices, config, job.lineage)
    training.run_trainer(run, choices, trainer, job.evaluator, job.reference)
    close(run, trainer)
    save_model(run, trainer, setup.tokenizer, choices.get("merge_adapter", False))
    if is_main_process():
        policies.let_go(trainer)
        report.policy_report(choices, run, setup, task.reference, job.evaluator)


def check_on_policy(choices: Choices) -> None:
    """Refuses what no on-policy run can do, before anything loads.

    Raises:
        InputError: Names the option and what to do.
    """
    options = choices.build(RewardSourceArguments)
    if not options.reward_model:
        raise InputError(
            "reward_model is missing; name a reward model (folder or Hub id) or a function "
            "'package.module:function'"
        )
    weights = choices.get("reward_weights")
    if weights is not None and len(weights) != len(options.reward_model):
        raise InputError(
            f"reward_weights has {len(weights)} numbers for {len(options.reward_model)} rewards"
        )
    if bool(choices.get("ptx_coefficient")) != bool(options.ptx_dataset):
        given, missing = ("ptx_dataset", "ptx_coefficient")
        if choices.get("ptx_coefficient"):
            given, missing = missing, given
        raise InputError(f"{given} needs {missing}; give both, or neither")
    if options.reference_model is not None and choices.get("use_peft"):
        raise InputError(
            "reference_model: the reference of an adapter is its base; leave it out, or use_peft"
        )
    for name in ("load_in_4bit", "load_in_8bit"):
        if choices.get(name) and choices.get("value_model") in ("policy", "reward"):
            raise InputError(f"{name} trains an adapter; use --value_model shared with it")


def translation_inputs(choices: Choices) -> str | None:
    """Puts the built-in translation task in place of its name; returns that name if it was used."""
    if choices.get("dataset_name") != TRANSLATION:
        return None
    task = build_translation()
    choices.values["dataset_name"] = str(task.rl_path)
    if choices.get("model_name_or_path") == TRANSLATION:
        choices.values["model_name_or_path"] = str(task.policy_path)
    return TRANSLATION


def load_rewards(choices: Choices) -> Callable[[str], list[Gold]]:
    """Checks every named reward now, and returns what loads them onto a device later.

    `testbed-reward` is a reward model of the testbed's pairs, trained once and kept.

    Raises:
        InputError: One names neither a function nor a model.
        OSError: The Hub cannot be reached, or refuses.
    """
    names = choices.build(RewardSourceArguments).reward_model
    loaders = []
    for name in names:
        if name == f"{TESTBED}-reward":
            from hf_align.recipes._testbed_reward import testbed_reward_model

            loaders.append(_renamed(load_reward(str(testbed_reward_model()), "reward_model"), name))
        else:
            loaders.append(load_reward(name, "reward_model"))
    return lambda device: [load(device) for load in loaders]


def _renamed(load: Callable[[str], Gold], name: str) -> Callable[[str], Gold]:
    def renamed(device: str) -> Gold:
        gold = load(device)
        return replace(gold, name=name, source=(gold.source or {}) | {"name": name})

    return renamed


def load_prompts(choices: Choices, testbed: Testbed | None) -> LoadedData:
    """The prompts to train on, with the columns that rewards read.

    Raises:
        InputError: The data cannot be used; names file, row, column.
        OSError: The Hub cannot be reached, or refuses.
    """
    wanted = list(choices.build(RewardSourceArguments).reward_columns or [])
    with_answers = choices.get("mle_coefficient") or (
        choices.get("score_transform") in ("centre", "par", "log_sigmoid")
        and choices.get("completion_column")
    )
    return load_inputs(
        choices, "sft" if with_answers else "prompt", testbed, keep_columns=tuple(wanted)
    )


def keep_fitting(run: Run, setup: Setup, data: LoadedData, longest: int) -> None:
    """Leaves out prompts without room for a completion of the longest length within the model's
    positions, and says so.

    Raises:
        InputError: None is left.
    """
    room = (setup.max_positions or 10**9) - longest
    for name, split in list(data.splits.items()):
        lengths = np.array([num_tokens(setup.tokenizer, prompt) for prompt in split["prompt"]])
        fits = np.flatnonzero((lengths <= room) & (lengths > 0))
        if not len(fits):
            raise InputError(
                f"no prompt of the {name} split leaves room for max_completion_length "
                f"{longest} in the model's {setup.max_positions} "
                f"positions (the shortest has {lengths.min()} tokens); lower "
                "--max_completion_length"
            )
        if len(fits) < len(lengths):
            data.splits[name] = split.select(fits)
            run.warn(
                f"{len(lengths) - len(fits)} of {len(lengths)} prompts of the {name} split are "
                f"left out: longer than {room} tokens, or empty"
            )


def proxy_of(rewards: Sequence[Gold], weights: Sequence[float] | None) -> Gold:
    """The weighted sum of the rewards, as one."""
    if len(rewards) == 1 and weights is None:
        return rewards[0]
    weights = list(weights or [1.0] * len(rewards))

    def total(prompts: list[Text], completions: list[Text], **columns: object) -> list[float]:
        scores = [
            weight * np.array(reward.reward(prompts=prompts, completions=completions, **columns))
            for weight, reward in zip(weights, rewards, strict=True)
        ]
        return np.sum(scores, axis=0).tolist()

    names = [f"{w:g}·{reward.name}" for w, reward in zip(weights, rewards, strict=True)]
    return Gold(" + ".join(names), total)


def columns_by_prompt(choices: Choices, data: LoadedData) -> dict[str, dict[str, Any]]:
    """`{column: {repr(prompt): value}}` of the held-out rows, for rewards that read columns."""
    wanted = choices.build(RewardSourceArguments).reward_columns or []
    rows = data.splits.get("test", [])
    return {name: {repr(row["prompt"]): row[name] for row in rows} for name in wanted}


def ptx_rows(choices: Choices, testbed: Testbed | None) -> Any:
    """The rows of the language-modelling loss; None without one.

    Raises:
        InputError: The data cannot be used.
        OSError: The Hub cannot be reached, or refuses.
    """
    name = choices.build(RewardSourceArguments).ptx_dataset
    if name is None:
        return None
    if name == TESTBED and testbed is not None:
        name = str(testbed.demonstrations_path)
    return load_data(name, "sft", test_split_size=0.0).splits["train"]


def say_parity(run: Run, rewards: Sequence[Gold], tokenizer: Any) -> None:
    """Warns of what differs between the policy's tokens and each reward model's."""
    for reward in rewards:
        if isinstance(reward.reward, RewardModel):
            for difference in reward.reward.parity(tokenizer):
                run.warn(difference)


def close(run: Run, trainer: Any) -> None:
    """Repeats in the report why a run ended early, and leaves the policy alone to be saved."""
    if trainer.stop_reason is not None:
        run.warnings.append(trainer.stop_reason)  # the trainer has shown it
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        trainer.forget_value_model()
