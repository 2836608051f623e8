"""Accuracy of reward models trained on fewer rows: what more data would buy."""

from __future__ import annotations

import copy
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_align.configs import RewardArguments
from hf_align.data.splits import prompt_key, sample_rows
from hf_align.diagnostics.markdown import Cell, Table
from hf_align.diagnostics.reward_plots import learning_curve_figure
from hf_align.evaluation import pairwise_accuracy
from hf_align.recipes._comparisons import PAIRWISE
from hf_align.recipes._held_out import HeldOut, Part
from hf_align.recipes._policies import let_go
from hf_align.recipes._rewarding import NO_AUDITS, reward_trainer
from hf_align.recipes._run import Run
from hf_align.recipes._training import Setup, run_trainer
from hf_align.rewards import RewardModel
from hf_align.statistics import clustered_share
from hf_align.types import Estimate

_NOTE = (
    "Each size is a model of its own, on rows drawn by prompt, smaller sets within larger ones. "
    "Steps fall with the square root of the rows, so smaller sets are passed through more often. "
    "One seed: differences between sizes carry the noise of training too."
)


def learning_curve_part(
    options: RewardArguments, setup: Setup, source: dict[str, Any], splits: Any, held: HeldOut
) -> Part:
    """Trains on each size of `learning_curve`; the run's own model, on all rows, comes last.

    An ensemble is left out: its members together are no larger single model.
    """
    if not options.learning_curve:
        return Part()
    train, found = splits["train"], {}
    for size in sorted(set(options.learning_curve)):
        steps = steps_for(num_steps(setup.args, len(train)), size, len(train))
        tqdm.write(f"learning curve: {size} rows, {steps} steps", file=sys.stderr)
        rows = train.select(drawn_rows(train, size, setup.args.seed))
        margins = _margins(options.loss, setup, source, rows, steps, held)
        found[size] = (steps, *_accuracies(held, margins))
    if options.num_members == 1:
        own = (num_steps(setup.args, len(train)), *_accuracies(held, held.margins))
        found[len(train)] = own
    what = "pairs" if options.loss == PAIRWISE else "rankings"
    rows: list[list[Cell]] = [[str(size), *found[size]] for size in sorted(found)]
    columns = [f"training {what}", "steps", "accuracy on labels", "accuracy by gold"]
    sizes = sorted(found)
    curves = {"accuracy on labels": [found[size][1] for size in sizes]}
    if found[sizes[0]][2] is None:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    else:
        curves["accuracy by gold"] = [found[size][2] for size in sizes]
    figure = learning_curve_figure(
        sizes,
        curves,
        ceiling=None if held.agreement is None else clustered_share(held.agreement, held.prompts),
        longest_wins=pairwise_accuracy(held.longer, held.prompts),
        title=f"Accuracy against the number of training {what}",
    )
    figure.axes[0].set_xlabel(f"Training {what}")
    return Part(
        tables=[Table("Learning curve", columns, rows, _NOTE)],
        figures={"learning_curve": figure},
    )


def drawn_rows(rows: Any, size: int, seed: int) -> list[int]:
    """Indices of `size` rows, prompt by prompt in an order that depends on the seed alone."""
    prompts = [{"prompt": prompt} for prompt in rows["prompt"]]
    return sample_rows(prompts, [prompt_key(prompt) for prompt in prompts], size, seed)


def num_steps(args: Any, num_rows: int) -> int:
    """Optimizer steps that a trainer takes on so many rows, in one process."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(num_rows / args.train_batch_size)
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


def steps_for(all_steps: int, size: int, num_rows: int) -> int:
    """Steps on a part of the rows: as many as on all, times the square root of its share."""
    return max(1, round(all_steps * math.sqrt(size / num_rows)))


def _accuracies(held: HeldOut, margins: Any) -> tuple[Estimate, Estimate | None]:
    return pairwise_accuracy(margins, held.prompts), held.gold_accuracy(margins)


def _margins(
    loss: str, setup: Setup, source: dict[str, Any], rows: Any, steps: int, held: HeldOut
) -> Any:
    """Held-out margins of a model trained on `rows` for so many steps, and not kept."""
    with tempfile.TemporaryDirectory() as folder:
        part = copy.copy(setup)
        part.args = brief_args(setup.args, folder, steps)
        run = Run("reward", Path(folder), None)
        trainer = reward_trainer(loss, run, part, source, rows, None)
        run_trainer(run, NO_AUDITS, trainer, None, None)
        model = trainer.accelerator.unwrap_model(trainer.model)
        if setup.model_args.use_peft:
            model = model.merge_and_unload()
        reward = RewardModel.from_members([(model, setup.tokenizer)])
        scores = reward.score(held.pairs.prompts, held.pairs.completions)
        del model, reward
        let_go(trainer)
    return held.between_pairs(scores)


def brief_args(args: Any, folder: str, steps: int) -> Any:
    """A copy of the trainer's arguments for a training of so many steps that leaves nothing."""
    own = copy.copy(args)
    own.output_dir, own.max_steps, own.resume_from_checkpoint = folder, steps, None
    own.save_strategy = type(args.save_strategy)("no")
    own.eval_strategy = type(args.eval_strategy)("no")
    own.load_best_model_at_end = False
    if own.warmup_steps >= 1:  # below 1 it is a share of the steps already
        own.warmup_steps = min(args.warmup_steps, math.ceil(steps / 10))
    return own
