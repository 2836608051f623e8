"""The reference, the best audited checkpoint and the shipped policy, side by side.

The audits picked the best checkpoint by their own gold, so it is measured again here, on prompts
that no audit used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.diagnostics.logps import score_samples
from hf_align.diagnostics.markdown import Cell, Table
from hf_align.evaluation import win_rate
from hf_align.recipes._evaluation import POLICY_STREAM, Answers, Evaluator
from hf_align.statistics import clustered_mean
from hf_align.trainers.best import BEST
from hf_align.types import Estimate

_COLUMNS = ("checkpoint", "step", "gold", "proxy", "KL, nats", "length, tokens", "gold win rate")


@dataclass(frozen=True)
class Shipped:
    """What the report knows of the shipped policy and its reference.

    Attributes:
        policy: The shipped policy.
        reference: Its reference; None for a PEFT policy, which is its own without the adapter.
        ours: The policy's answers.
        theirs: The reference's answers to the same prompts.
        kl: Sequence KL of the policy.
    """

    policy: Any
    reference: Any
    ours: Answers
    theirs: Answers
    kl: Estimate


def checkpoint_table(
    folder: Path, evaluator: Evaluator, shipped: Shipped, load: Callable[[str], Any]
) -> Table | None:
    """One row per checkpoint, each number with its interval; None where the audits judged nothing.

    Args:
        folder: The run directory.
        evaluator: With what the audits found.
        shipped: What is measured already; its policy is used up.
        load: Loads a saved policy that is no adapter.
    """
    step, last = evaluator.best_step, evaluator.audits[-1]["step"] if evaluator.audits else None
    if step is None or shipped.ours.gold is None:
        return None
    theirs = shipped.theirs
    none = Estimate(0.0, None, None, len(evaluator.prompts))
    best, kl = theirs, none
    note = "the reference, so no checkpoint of the run is kept"
    if step == last:
        best, kl = shipped.ours, shipped.kl
        note = f"the shipped policy, which lies in {BEST}/ too"
    elif step:
        best, kl = _answers_of_best(folder / BEST, evaluator, shipped, load)
        note = f"step {step}, which lies in {BEST}/"
    rows = [
        _row("reference", 0, theirs, none, theirs),
        _row("best audited", step, best, kl, theirs),
        _row("shipped", last, shipped.ours, shipped.kl, theirs),
    ]
    used = [j for j in range(len(_COLUMNS)) if any(row[j] is not None for row in rows)]
    return Table(
        "Checkpoints",
        [_COLUMNS[j] for j in used],
        [[row[j] for j in used] for row in rows],
        f"Best by the smoothed gold of the audits: {note}. Measured on the "
        f"{len(evaluator.prompts)} prompts of this report, which no audit used.",
    )


def _answers_of_best(
    folder: Path, evaluator: Evaluator, shipped: Shipped, load: Callable[[str], Any]
) -> tuple[Answers, Estimate]:
    policy, reference = shipped.policy, shipped.reference
    if not (folder / "adapter_config.json").is_file():
        policy.to("cpu")  # three models at once would need more memory than training did
        policy = load(str(folder))
        policy_reference = reference
    elif reference is None:
        policy.load_adapter(str(folder), "best")
        policy.set_adapter("best")
        policy_reference = None
    else:
        # What was shipped is merged, and the reference is the base that the adapter belongs to.
        from peft import PeftModel

        policy, policy_reference = PeftModel.from_pretrained(reference, str(folder)), None
    answers = evaluator.answer(
        policy.eval(), evaluator.prompts, evaluator.num_samples, POLICY_STREAM
    )
    scores = score_samples(
        policy, policy_reference, answers.samples, batch_size=evaluator.batch_size
    )
    return answers, clustered_mean(scores.rao_blackwell, answers.samples.prompt_index)


def _row(name: str, step: int, answers: Answers, kl: Estimate, reference: Answers) -> list[Cell]:
    index = answers.samples.prompt_index

    def mean(values: np.ndarray | None) -> Estimate | None:
        return None if values is None else clustered_mean(values.ravel(), index)

    wins = None if answers is reference else win_rate(answers.gold, reference.gold)
    return [name, step, mean(answers.gold), mean(answers.proxy), kl, mean(answers.lengths), wins]
