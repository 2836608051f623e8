"""What `compare` compares: policies by name, prompts and rewards, checked beforehand."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import CompareArguments, JudgeArguments
from hf_align.data import load_data
from hf_align.files import check_writable, write_text
from hf_align.recipes._compare_answers import (
    NAME,
    check_texts,
    load_rewards,
    locate,
)
from hf_align.recipes._inputs import TESTBED
from hf_align.recipes._policy_names import check_name, default_context, mark
from hf_align.recipes._run import was_written_by
from hf_align.recipes._stages import Stage, run_stages, state_of
from hf_align.sampling.policies import parse_policy
from hf_align.testbed import MAX_NEW_TOKENS, build_testbed
from hf_align.types import InputError, Text

ANSWERS, PROMPTS = "answers", "prompts.jsonl"
_LONGEST = 256
_AT_LEAST = {"num_prompts": 2, "num_samples": 1, "batch_size": 1, "num_temperature_prompts": 2}
_OURS = {"run.json", "lineage.json", "README.md", "report", ANSWERS, PROMPTS, "runs", ".draft"}


@dataclass(frozen=True)
class Entry:
    """One policy to sample: one seed of a method.

    Attributes:
        method: How the table calls it.
        policy: Its name, as `parse_policy` reads it.
        reward_model: The proxy, which chooses for best-of-n.
        selector: What chooses instead of it.
        seed: Which seed of the method, numbered from 0.
        needs: Stages that it needs.
    """

    method: str
    policy: str
    reward_model: tuple[str, ...] = ()
    seed: int = 0
    selector: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def check_options(options: CompareArguments, judge: JudgeArguments) -> CompareArguments:
    """The options, checked as far as that needs no model; the testbed's filled in.

    Raises:
        InputError: Names the option and what to do.
    """
    for name, least in _AT_LEAST.items():
        if getattr(options, name) < least:
            raise InputError(f"{name} must be at least {least}; got {getattr(options, name)}")
    for name, values in (
        ("temperature", [options.temperature]),
        ("temperatures", options.temperatures or []),
    ):
        for value in values:
            if not (value >= 0 and math.isfinite(value)):
                raise InputError(f"{name} must be 0 (greedy) or above; got {value}")
    if not options.policies:
        options = replace(options, dataset_name=options.dataset_name or TESTBED)
    if options.dataset_name is None:
        raise InputError("dataset_name is missing; name a file or a Hub id with prompts")
    on_testbed = options.dataset_name == TESTBED
    if on_testbed and options.gold_reward is None:
        options = replace(options, gold_reward=TESTBED)
    if options.second_reward is not None and options.gold_reward is None:
        raise InputError("second_reward is one axis of a plane; give --gold_reward, the other")
    if not judge.judge and options.gold_reward is None and not options.reward_model:
        raise InputError("nothing judges; give --gold_reward, --reward_model or --judge")
    for entry in read_policies(options):
        chooses = bool(options.reward_model)
        check_name(entry.policy, "policies", chooses, options.urial_prompt, on_testbed)
    if options.reference is not None:
        spec = parse_policy(options.reference, "reference")
        if spec.best_of or spec.in_context:
            raise InputError(
                f"reference {spec.text} must be a model; its log-probabilities are what KL is "
                f"from, so name {spec.model}"
            )
    return options


def read_policies(options: CompareArguments) -> list[Entry]:
    """The entries that the options name; policies of one name are seeds of one method.

    Raises:
        InputError: Two policies have the same name without having been given it.
    """
    counts: dict[str, int] = {}
    entries, given = [], set()
    for text in options.policies or []:
        name, separator, policy = text.partition("=")
        if not separator:
            name, policy = _short_name(text), text
        elif not name.strip():
            raise InputError(f"policies {text!r} has an empty name; write NAME=POLICY")
        if name in counts and not (separator and name in given):
            raise InputError(f"policies: two are called {name}; tell them apart with NAME=POLICY")
        given |= {name} if separator else set()
        counts[name] = counts.get(name, -1) + 1
        entries.append(Entry(name, policy, tuple(options.reward_model or ()), counts[name]))
        parse_policy(policy)
    return entries


def _short_name(policy: str) -> str:
    spec = parse_policy(policy)
    name = Path(spec.model).name or spec.model
    name = f"{name} in context" if spec.in_context else name
    return f"best of {spec.draws_per_answer} of {name}" if spec.best_of else name


def check_output(options: CompareArguments) -> Path:
    """The output folder, if the report may be written there.

    Raises:
        InputError: It is a file, or holds something else, or a report without --overwrite.
        OSError: It cannot be written.
    """
    path = Path(options.output_dir)
    if path.exists() and not path.is_dir():
        raise InputError(f"output_dir {path} is a file; name a folder")
    held = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    strange = sorted(held - _OURS)
    if strange:
        raise InputError(
            f"output_dir {path} holds {strange[0]}, which no comparison has; name another"
        )
    if "run.json" in held and not was_written_by(path, "compare"):
        raise InputError(f"output_dir {path} holds another run; name another folder")
    if "report" in held and options.policies and not options.overwrite:
        raise InputError(f"output_dir {path} is not empty; name another, or pass --overwrite")
    check_writable("output_dir", path)
    return path


def read_prompts(options: CompareArguments) -> tuple[list[Text], dict[str, list[Any]]]:
    """The prompts that every policy answers, distinct, drawn by the seed; and the columns that the
    rewards read beside, of each prompt's first row.

    Raises:
        InputError: The data cannot be used, lack a column, or hold fewer than two prompts.
        OSError: The Hub cannot be reached, or refuses.
    """
    if options.dataset_name == TESTBED:
        prompts: list[Text] = list(build_testbed().prompts("report"))
        if options.reward_columns:
            raise InputError("reward_columns: the testbed's prompts have no further columns")
        return prompts[: options.num_prompts], {}
    columns = {"prompt": options.prompt_column, "messages": options.messages_column}
    data = load_data(
        options.dataset_name,
        "prompt",
        config=options.dataset_config,
        revision=options.dataset_revision,
        train_split=options.dataset_split,
        columns={ours: theirs for ours, theirs in columns.items() if theirs is not None},
        test_split_size=0.0,
        keep_columns=tuple(options.reward_columns or ()),
    )
    first: dict[str, Any] = {}
    for row in data.splits["train"]:
        first.setdefault(repr(row["prompt"]), row)
    rows = list(first.values())
    prompts = [row["prompt"] for row in rows]
    check_texts(prompts)
    if len(prompts) < 2:
        raise InputError(f"{options.dataset_name} has {len(prompts)} distinct prompts; give two")
    chosen = np.random.default_rng(options.seed).permutation(len(prompts))[: options.num_prompts]
    kept = sorted(chosen)
    further = {name: [rows[i][name] for i in kept] for name in options.reward_columns or ()}
    return [prompts[i] for i in kept], further


def write_prompts(
    path: Path, prompts: Sequence[Text], columns: Mapping[str, Sequence[Any]]
) -> Path:
    """Writes the prompts where the stages read them; unchanged ones keep their file."""
    rows: list[Any] = list(prompts)
    if columns:
        rows = [
            {"prompt": prompt} | {name: values[i] for name, values in columns.items()}
            for i, prompt in enumerate(prompts)
        ]
    file, text = path / PROMPTS, "".join(json.dumps(row) + "\n" for row in rows)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        write_text(file, text)
    return file


def answer_stages(
    entries: Sequence[Entry],
    options: CompareArguments,
    reference: str,
    prompts: Path,
    temperature: float | None = None,
    hashed: bool = True,
) -> list[Stage]:
    """A stage for every entry, that samples and measures it.

    Args:
        entries: The policies.
        options: The user's options.
        reference: What the KL is measured from.
        prompts: The file of prompts.
        temperature: For the figure of temperatures; None for the table.
        hashed: Whether the policies are there already, so that a change of theirs is noticed.
    """
    table = temperature is None
    longest = options.max_new_tokens or (
        MAX_NEW_TOKENS if options.dataset_name == TESTBED else _LONGEST
    )
    stages = []
    for entry in entries:
        spec = parse_policy(entry.policy)
        values = {
            "policy": entry.policy,
            "prompts": prompts,
            "gold_reward": options.gold_reward,
            "second_reward": options.second_reward,
            "reference": reference,
            "checkpoint": options.checkpoint,
            "num_prompts": options.num_prompts if table else options.num_temperature_prompts,
            "num_samples": options.num_samples,
            "max_new_tokens": longest,
            "temperature": options.temperature if table else temperature,
            "batch_size": options.batch_size,
            "dtype": options.dtype,
            "seed": 1000 * options.seed + entry.seed,
        }
        if entry.reward_model and (table or spec.best_of):
            values["reward_model"] = entry.reward_model
        if entry.selector:
            values["selector"] = entry.selector
        if spec.best_of and not table:
            values["num_samples"] = 1  # a win rate needs no more, and each is n completions
        if spec.in_context:
            on_testbed = options.dataset_name == TESTBED
            values["urial_prompt"] = options.urial_prompt or default_context(on_testbed)
        if hashed:
            values["content"] = _content(entry, options, reference, prompts)
        words: list[str] = []
        for name, value in values.items():
            if value is not None:
                several = value if isinstance(value, tuple) else (value,)
                words += [f"--{name}", *map(str, several)]
        folder = "table" if table else f"temperature-{temperature:g}"
        name = f"{ANSWERS}/{folder}/{slug(entry.method)}-{entry.seed}"
        stages.append(Stage(name, NAME, tuple(words), entry.needs if not hashed else ()))
    return stages


def slug(name: str) -> str:
    """A folder's name: letters, digits and dashes, and a mark that tells names apart."""
    shown = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{'-'.join(filter(None, shown.split('-')))[:40]}-{mark}"


def _content(entry: Entry, options: CompareArguments, reference: str, prompts: Path) -> str:
    """Hash of the weights and the prompts that the names stand for."""
    found = [locate(name, options.checkpoint).model for name in (entry.policy, reference)]
    marks = [mark(model) for model in found]
    return hashlib.sha256("".join([*marks, prompts.read_text("utf-8")]).encode()).hexdigest()[:16]


def run_here(stages: Sequence[Stage], folder: Path) -> None:
    """Runs what is missing in this process, one after another."""
    main = importlib.import_module(f"hf_align.recipes.{NAME}").main
    for stage in stages:
        if state_of(stage, folder) == "finished":
            continue
        main(["--output_dir", str(folder / stage.name), *stage.options])


def run_all(stages: Sequence[Stage], folder: Path, options: CompareArguments) -> None:
    """Runs what is missing, in worker processes where that was asked for or is the testbed's table.

    Raises:
        InputError: A stage was given something it cannot use.
        OSError: A stage failed.
    """
    in_workers = not options.policies or (options.num_workers or 1) > 1
    if in_workers:
        run_stages(stages, folder, options.num_workers or os.cpu_count())
    else:
        run_here(stages, folder)


def check_rewards(
    options: CompareArguments, prompts: Sequence[Text], columns: Mapping[str, Sequence[Any]]
) -> None:
    """Makes sure that every named reward can be loaded and scores two prompts.

    Raises:
        InputError: One cannot.
    """
    from hf_align.configs import AnswerArguments
    from hf_align.recipes._inputs import try_gold

    some = {
        name: {repr(p): value for p, value in zip(prompts[:2], values, strict=False)}
        for name, values in columns.items()
    }
    names = {"gold_reward": options.gold_reward, "second_reward": options.second_reward}
    for reward in load_rewards(
        AnswerArguments(reward_model=options.reward_model, **names)
    ).values():
        try_gold(reward, list(prompts), some)
