"""Trains one reward model or an ensemble, normalises the scores, and saves what was trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import RewardArguments
from hf_align.data import completions_and_ranks
from hf_align.recipes._comparisons import PAIRWISE, comparisons
from hf_align.recipes._models import load_classifier
from hf_align.recipes._parser import Choices
from hf_align.recipes._policies import let_go
from hf_align.recipes._preflight import refusals
from hf_align.recipes._resuming import SAVING, is_saved, newest_checkpoint
from hf_align.recipes._run import Run, checkpoints_stay, is_main_process, move_in, write_beside
from hf_align.recipes._training import Setup, run_trainer
from hf_align.rewards import Ensemble, RewardModel, normalise, write_ensemble
from hf_align.types import Text

# Scores of so many completions fix the mean and the scale.
_NUM_NORMALISING = 4000

NO_AUDITS = Choices("reward", {}, {})
"""Nothing is sampled while a reward model trains."""


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
    An ensemble that is resumed keeps the members that were saved, and goes on with the one that was
    interrupted from its own checkpoint.

    Returns:
        The saved reward model, loaded from disk as anyone would, and the factor that takes its
        scores back to those of Bradley–Terry, which alone can be calibrated (1 for an ensemble,
        whose members' scales differ). None in all processes but the main one.
    """
    folders = member_folders(run.path, options.num_members)
    begun, scale = run.resume == run.path, 1.0
    kept = {folder for folder in folders if begun and is_saved(folder)}
    if begun:
        begin()  # a folder made for a member's trainer would be left over if this refused
    for index, folder in enumerate(folders):
        if folder in kept:
            continue
        member_run = member_of(run, folder)
        seed = setup.args.seed + index
        member = replace(setup, args=replace_args(setup.args, member_run, seed))
        rows = member_rows(splits["train"], options.member_data, index, options.num_members, seed)
        trainer = reward_trainer(options.loss, member_run, member, source, rows, splits["test"])
        if not begun:
            begin()
            begun = True
        scale = train_one(member_run, trainer, member, splits["train"], options.normalise)
    if not is_main_process():
        return None
    if len(folders) > 1:
        scale = 1.0
        combine(run.path, folders, splits["train"], options)
    return RewardModel(run.path), scale


def member_folders(path: Path, num_members: int) -> list[Path]:
    """Where the members lie: the run directory itself, or a folder in it for each."""
    if num_members == 1:
        return [path]
    return [path / f"member-{index}" for index in range(num_members)]


def member_of(run: Run, folder: Path) -> Run:
    """A member's own run: of a resumed ensemble from the member's own checkpoint, if it has any."""
    if folder == run.path or run.resume is None:
        return replace(run, path=folder)
    return replace(run, path=folder, resume=newest_checkpoint(folder))


def replace_args(args: Any, run: Run, seed: int) -> Any:
    """A member's own copy of the trainer's arguments."""
    own = copy.copy(args)
    own.output_dir, own.seed = str(run.path), seed
    own.resume_from_checkpoint = str(run.resume) if run.resume else None
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


def reward_trainer(
    loss: str, run: Run, setup: Setup, source: dict[str, Any], rows: Any, held_out: Any
) -> Any:
    """The trainer of `loss` on the weights of `source` plus a new head."""
    from trl import get_peft_config

    setup.model_args.lora_task_type = "SEQ_CLS"  # an adapter must train the head too
    model = load_classifier(source, setup.args.seed, setup.model_args.dtype, **setup.model_kwargs)
    with refusals(run.path):
        return build_trainer(
            loss,
            model=model,
            args=setup.args,
            train_dataset=rows,
            eval_dataset=held_out if setup.args.eval_strategy != "no" else None,
            processing_class=setup.tokenizer,
            peft_config=get_peft_config(setup.model_args),
        )


def build_trainer(
    loss: str,
    *,
    model: Any,
    args: Any,
    train_dataset: Any,
    processing_class: Any,
    eval_dataset: Any = None,
    peft_config: Any = None,
) -> Any:
    """TRL's RewardTrainer on pairs, or ours on rankings, as the loss needs.

    Raises:
        ValueError: `max_length` leaves out every row.
    """
    from trl import RewardTrainer

    from hf_align.trainers.ranking import RankingTrainer

    options = {"args": args, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
    options |= {"processing_class": processing_class, "peft_config": peft_config}
    if loss == PAIRWISE:
        trainer = RewardTrainer(model=model, **options)
    else:
        trainer = RankingTrainer(model=model, **options, loss=loss)
    if not len(trainer.train_dataset):
        raise ValueError(
            f"in each of the {len(train_dataset)} training rows a completion is longer than "
            f"max_length {args.max_length}; raise --max_length"
        )
    return trainer


def train_one(run: Run, trainer: Any, setup: Setup, rows: Any, normalised: bool) -> float:
    """Trains one reward model, saves it (an adapter merged) normalised, and frees its memory.

    It is moved into its place when it is final, so a model there is one to keep.

    Returns:
        The deviation that the scores had before they were normalised; 1 where they stay.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    run_trainer(run, NO_AUDITS, trainer, None, None)
    partial = write_beside(run, trainer, setup.tokenizer, setup.model_args.use_peft)
    let_go(trainer)
    if not is_main_process():
        return 1.0
    with checkpoints_stay(run.path):
        scale = normalise_saved(partial, rows) if normalised else 1.0
        move_in(partial, run.path)
    return scale


def normalise_saved(folder: Path, rows: Any) -> float:
    """Makes the mean score of the training completions 0 and their standard deviation 1, on disk.

    Each member by itself, because the scale of Bradley–Terry scores is free. Returns the deviation
    that the scores had.
    """
    reward = RewardModel(folder)
    scores = reward.score(*reference_completions(rows))
    model, _ = reward.members[0]
    normalise(model, float(scores.mean()), float(scores.std()))
    model.save_pretrained(folder / SAVING)
    move_in(folder / SAVING, folder)
    return float(scores.std())


def combine(path: Path, folders: list[Path], rows: Any, options: RewardArguments) -> None:
    """Makes an ensemble of the members, its combined score normalised as theirs are."""
    names = tuple(folder.name for folder in folders)
    write_ensemble(path, Ensemble(names, options.combine))
    if options.normalise:
        scores = RewardModel(path).score(*reference_completions(rows))
        mean, sd = float(scores.mean()), float(scores.std())
        write_ensemble(path, Ensemble(names, options.combine, mean=mean, sd=sd))


def reference_completions(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Text], list[Text]]:
    """Prompts and completions of the first training rows: what fixes a score's mean and scale."""
    some, count = [], 0
    for row in rows:
        some.append(row)
        count += len(completions_and_ranks(row)[0])
        if count >= _NUM_NORMALISING:
            break
    found = comparisons(some)
    return found.prompts, found.completions
