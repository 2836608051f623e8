"""Trains one reward model or an ensemble, normalises the scores, and saves what was trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import RewardArguments
from hf_align.recipes._models import load_classifier
from hf_align.recipes._policies import let_go
from hf_align.recipes._preflight import refusals
from hf_align.recipes._run import Run, is_main_process, move_in, save_model
from hf_align.recipes._training import Setup, run_trainer
from hf_align.rewards import Ensemble, RewardModel, normalise, write_ensemble

# Scores of so many rows' completions fix the mean and the scale.
_NUM_NORMALISING = 2000


def train_members(
    options: RewardArguments,
    run: Run,
    setup: Setup,
    source: dict[str, Any],
    splits: Any,
    begin: Callable[[], None],
) -> tuple[RewardModel, float] | None:
    """Trains the members one after the other and saves them in the run directory.

    A single model lies at the top, an ensemble in `member-0`, `member-1`, …, each from its own seed
    (of head and batches) and its own share of the data. `begin` starts the run directory: it is
    called once the first trainer has been built, so that what TRL refuses leaves an old run alone.

    Returns:
        The saved reward model, loaded from disk as anyone would, and the factor that takes its
        scores back to those of Bradley–Terry, which alone can be calibrated (1 for an ensemble,
        whose members' scales differ). None in all processes but the main one.
    """
    folders = member_folders(run.path, options.num_members)
    for index, folder in enumerate(folders):
        seed = setup.args.seed + index
        args = replace_args(setup.args, folder, seed)
        rows = member_rows(splits["train"], options.member_data, index, options.num_members, seed)
        member = replace(setup, args=args)
        trainer = reward_trainer(replace(run, path=folder), member, source, rows, splits["test"])
        if index == 0:
            begin()
        train_one(replace(run, path=folder), trainer, member)
    if not is_main_process():
        return None
    if options.num_members > 1:
        names = tuple(folder.name for folder in folders)
        write_ensemble(run.path, Ensemble(names, options.combine))
    scale = 1.0
    if options.normalise:
        scale = normalise_saved(run.path, folders, splits["train"], options)
    return RewardModel(run.path), scale


def member_folders(path: Path, num_members: int) -> list[Path]:
    """Where the members lie: the run directory itself, or a folder in it for each."""
    if num_members == 1:
        return [path]
    return [path / f"member-{index}" for index in range(num_members)]


def replace_args(args: Any, folder: Path, seed: int) -> Any:
    """A member's own copy of the trainer's arguments."""
    own = copy.copy(args)
    own.output_dir, own.seed = str(folder), seed
    return own


def member_rows(dataset: Any, how: str, index: int, num_members: int, seed: int) -> Any:
    """A member's share of the training rows: all, a bootstrap of prompts, or a part of them."""
    if num_members == 1 or how == "all":
        return dataset
    prompts = [repr(prompt) for prompt in dataset["prompt"]]
    distinct = sorted(set(prompts))
    rng = np.random.default_rng([seed, index])
    if how == "bootstrap":
        drawn = rng.integers(len(distinct), size=len(distinct))
        times = dict(zip(distinct, np.bincount(drawn, minlength=len(distinct)), strict=True))
        return dataset.select([i for i, p in enumerate(prompts) for _ in range(times[p])])
    part = {prompt: number % num_members for number, prompt in enumerate(distinct)}
    return dataset.select([i for i, p in enumerate(prompts) if part[p] == index])


def reward_trainer(run: Run, setup: Setup, source: dict[str, Any], rows: Any, held_out: Any) -> Any:
    """TRL's RewardTrainer on the weights of `source` plus a new head."""
    from trl import RewardTrainer, get_peft_config

    setup.model_args.lora_task_type = "SEQ_CLS"  # an adapter must train the head too
    model = load_classifier(source, setup.args.seed, setup.model_args.dtype, **setup.model_kwargs)
    with refusals(run.path):
        return RewardTrainer(
            model=model,
            args=setup.args,
            train_dataset=rows,
            eval_dataset=held_out if setup.args.eval_strategy != "no" else None,
            processing_class=setup.tokenizer,
            peft_config=get_peft_config(setup.model_args),
        )


def train_one(run: Run, trainer: Any, setup: Setup) -> None:
    """Trains one reward model, saves it (an adapter merged), and frees its memory."""
    run.path.mkdir(parents=True, exist_ok=True)
    run_trainer(run, trainer, None, None, 0)
    save_model(run, trainer, setup.tokenizer, merge_adapter=setup.model_args.use_peft)
    let_go(trainer)


def normalise_saved(path: Path, folders: list[Path], rows: Any, options: RewardArguments) -> float:
    """Makes the mean score of the training completions 0 and their standard deviation 1, on disk.

    First each member by itself, because the scale of Bradley–Terry scores is free; then, for an
    ensemble, the combined score. Returns the deviation that a single model's scores had.
    """
    rows = rows.select(range(min(len(rows), _NUM_NORMALISING)))
    prompts = [*rows["prompt"], *rows["prompt"]]
    completions = [*rows["chosen"], *rows["rejected"]]
    for folder in folders:
        reward = RewardModel(folder)
        scores = reward.score(prompts, completions)
        model, _ = reward.members[0]
        normalise(model, float(scores.mean()), float(scores.std()))
        model.save_pretrained(folder / ".saving")
        move_in(folder / ".saving", folder)
    if len(folders) == 1:
        return float(scores.std())
    scores = RewardModel(path).score(prompts, completions)
    names = tuple(folder.name for folder in folders)
    mean, sd = float(scores.mean()), float(scores.std())
    write_ensemble(path, Ensemble(names, options.combine, mean=mean, sd=sd))
    return 1.0
