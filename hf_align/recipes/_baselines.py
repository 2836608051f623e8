"""Preference modelling beside imitation: simpler rankings of the same held-out pairs, each from the
same model, on the same rows, for as many steps.

Imitation tunes the model on the preferred completions and ranks by their likelihood; the generative
classifier tunes it to answer which of two completions is better. Askell et al. 2021, "A General
Language Assistant as a Laboratory for Alignment", https://arxiv.org/abs/2112.00861
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_align.configs import RewardArguments
from hf_align.data import completions_and_ranks
from hf_align.diagnostics.logps import answer_logps, pair_logps
from hf_align.recipes._comparisons import comparisons
from hf_align.recipes._evaluation import load_policy
from hf_align.recipes._held_out import HeldOut, Part
from hf_align.recipes._learning_curve import num_steps
from hf_align.recipes._models import is_language_model
from hf_align.recipes._pair_questions import Questions, make_questions
from hf_align.recipes._policies import let_go
from hf_align.recipes._reward_accuracy import Ranking
from hf_align.recipes._rewarding import NO_AUDITS
from hf_align.recipes._run import Run
from hf_align.recipes._training import Setup, run_trainer
from hf_align.types import InputError, Text

LOG_LIKELIHOOD, GENERATIVE_CLASSIFIER = "log_likelihood", "generative_classifier"

# What the reward model is trained with too; TRL's defaults of two trainers differ.
_SHARED = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "seed", "data_seed"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"),
    *("bf16", "fp16", "use_cpu", "dataloader_pin_memory", "logging_steps", "disable_tqdm"),
)


def check_start(options: RewardArguments, setup: Setup, source: dict[str, Any]) -> None:
    """Refuses baselines of what is no language model, before anything is trained.

    Raises:
        InputError: Training starts from weights without a language model's head.
    """
    if options.baselines and not is_language_model(source, setup.args.trust_remote_code):
        raise InputError(
            f"baselines: model {source['name']} is no causal language model, so it can neither "
            "imitate nor answer; leave them out, or start from a language model"
        )


def baseline_rankings(
    options: RewardArguments, setup: Setup, source: dict[str, Any], splits: Any, held: HeldOut
) -> tuple[list[Ranking], Part]:
    """Trains the baselines that were asked for, and orders the held-out pairs by each."""
    rankings: list[Ranking] = []
    part = Part()
    for name in dict.fromkeys(options.baselines or ()):
        tqdm.write(f"baseline: {name}", file=sys.stderr)
        baseline = {LOG_LIKELIHOOD: imitation, GENERATIVE_CLASSIFIER: generative_classifier}[name]
        found, settings = baseline(setup, source, splits["train"], held)
        rankings += found
        part.settings |= settings
    return rankings, part


def imitation(
    setup: Setup, source: dict[str, Any], rows: Any, held: HeldOut
) -> tuple[list[Ranking], dict[str, Any]]:
    """log π of completions, summed and per token, π tuned on the preferred ones by TRL's SFT.

    A sum favours short completions, a mean per token rather long ones.
    """
    from datasets import Dataset

    def dataset(tokenizer: Any, count: int) -> Dataset:
        return Dataset.from_list([best_completion(row) for row in rows])

    steps = num_steps(setup.args, len(rows))
    with tuned(setup, source, dataset, steps, setup.args.max_length) as (model, tokenizer):
        logps, lengths = pair_logps(
            model,
            tokenizer,
            held.pairs.prompts,
            held.pairs.completions,
            batch_size=setup.args.per_device_eval_batch_size,
            max_length=setup.max_positions,
        )
    per_token = logps / np.maximum(lengths, 1)
    rankings = [
        Ranking(
            "imitation: log-likelihood, summed",
            held.between_pairs(logps),
            "accuracy/log_likelihood",
        ),
        Ranking(
            "imitation: log-likelihood per token",
            held.between_pairs(per_token),
            "accuracy/log_likelihood_per_token",
        ),
    ]
    return rankings, {"imitation": f"SFT on the preferred completions, {steps} steps"}


def best_completion(row: dict[str, Any]) -> dict[str, Text]:
    """A row's prompt with its preferred completion; of a ranking one of the best."""
    texts, ranks = completions_and_ranks(row)
    return {"prompt": row["prompt"], "completion": texts[int(np.argmin(ranks))]}


def generative_classifier(
    setup: Setup, source: dict[str, Any], rows: Any, held: HeldOut
) -> tuple[list[Ranking], dict[str, Any]]:
    """log-odds of the answer that names the preferred one, averaged over both orders of a pair."""
    from datasets import Dataset

    conversational = not isinstance(held.pairs.prompts[0], str)
    longest = min(setup.max_positions or 10**9, 2 * (setup.args.max_length or 1024))
    made: list[Questions] = []

    def dataset(tokenizer: Any, count: int) -> Dataset:
        made.append(make_questions(tokenizer, conversational, longest))
        return Dataset.from_list(training_questions(made[0], rows, count, setup.args.seed))

    steps = num_steps(setup.args, len(rows))
    with tuned(setup, source, dataset, steps, longest) as (model, _):
        [questions] = made
        asked, num_cut = _both_orders(questions, held)
        logps = answer_logps(
            model,
            asked,
            list(questions.answers),
            batch_size=setup.args.per_device_eval_batch_size,
        )
    first_better = logps[:, 0] - logps[:, 1]
    # In the second half the preferred completion is shown second.
    ahead, behind = np.split(first_better, 2)
    ranking = Ranking(
        "asked which is better",
        (ahead - behind) / 2,
        "accuracy/generative_classifier",
    )
    named_first = float((first_better > 0).mean())
    return [ranking], {
        "generative classifier": (
            f"asked in both orders, {steps} steps; it names the first in {100 * named_first:.0f} % "
            f"of the questions; {num_cut} of {len(asked)} were cut to {longest} tokens"
        )
    }


def training_questions(
    questions: Questions, rows: Any, count: int, seed: int
) -> list[dict[str, list[int]]]:
    """At most `count` questions with their answers, drawn from both orders of every pair."""
    pairs = comparisons(rows)
    num_pairs = len(pairs.better)
    order = np.random.default_rng(seed).permutation(2 * num_pairs)[:count]
    examples = []
    for place in order:
        swapped, pair = divmod(int(place), num_pairs)
        shown = [pairs.better[pair], pairs.worse[pair]]
        first, second = reversed(shown) if swapped else shown
        ids, _ = questions.ask(
            pairs.prompts[first], pairs.completions[first], pairs.completions[second]
        )
        answer = questions.answers[swapped]
        # The loss is on the answer alone.
        examples.append({"input_ids": [*ids, answer], "labels": [-100] * len(ids) + [answer]})
    return examples


def _both_orders(questions: Questions, held: HeldOut) -> tuple[list[list[int]], int]:
    """Every held-out pair with the preferred completion first, then every pair with it second."""
    pairs = held.pairs
    asked = [
        questions.ask(pairs.prompts[first], pairs.completions[first], pairs.completions[second])
        for before, after in ((pairs.better, pairs.worse), (pairs.worse, pairs.better))
        for first, second in zip(before, after, strict=True)
    ]
    return [ids for ids, _ in asked], sum(cut for _, cut in asked)


@contextmanager
def tuned(
    setup: Setup,
    source: dict[str, Any],
    dataset: Callable[[Any, int], Any],
    steps: int,
    max_length: int | None,
) -> Iterator[tuple[Any, Any]]:
    """The starting model tuned by TRL's SFTTrainer for so many steps, and its tokenizer.

    `dataset(tokenizer, count)` makes what it is tuned on, with at most `count` rows of use; it may
    add tokens. Nothing is kept once the block is left.
    """
    from trl import SFTConfig, SFTTrainer, get_peft_config

    tokenizer = copy.deepcopy(setup.tokenizer)
    shared = {name: getattr(setup.args, name) for name in _SHARED}
    count = steps * setup.args.train_batch_size * setup.args.gradient_accumulation_steps
    rows = dataset(tokenizer, count)
    model = load_policy(
        source["path"],
        source["revision"],
        setup.model_args.dtype,
        place=False,
        **setup.model_kwargs,
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapter = copy.copy(setup.model_args)
    adapter.lora_task_type = "CAUSAL_LM"
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                folder,
                max_steps=steps,
                max_length=max_length,
                save_strategy="no",
                report_to="none",
                **shared,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=get_peft_config(adapter),
        )
        run_trainer(Run("reward", Path(folder), None), NO_AUDITS, trainer, None, None)
        yield trainer.accelerator.unwrap_model(trainer.model), tokenizer
        del model
        let_go(trainer)
