"""Decides while a run is under way whether gold has fallen since its best audited checkpoint.

Looking again after every audit multiplies false alarms; alpha-spending gives each look a share of
the error so that a whole run without a drop is stopped with probability at most alpha. Pure numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from hf_align.diagnostics.overoptimization import MIN_PROMPTS, best_earlier
from hf_align.statistics import normal_quantile, t_quantile

Spending = Callable[[float, float], float]
"""(share of the looks that are over, alpha) -> error spent by then; 0 at 0 and alpha at 1."""

_LARGEST_T = 1000  # with more prompts Student's t is the normal for these levels


def obrien_fleming_spending(share: float, alpha: float) -> float:
    """2 - 2 Phi(z_{1 - alpha/2} / sqrt(share)): next to nothing early, nearly all of it late.

    Lan & DeMets 1983, Biometrika 70(3), after O'Brien & Fleming 1979. For one-sided alpha. Early
    looks find only enormous drops: right where the best checkpoint is expected late.

    Raises:
        ValueError: Unless 0 <= share <= 1 and 0 < alpha < 1.
    """
    _check_spending(share, alpha)
    if share == 0:
        return 0.0
    return 2 * _normal_tail(normal_quantile(1 - alpha / 2) / math.sqrt(share))


def pocock_spending(share: float, alpha: float) -> float:
    """alpha log(1 + (e - 1) share): about the same at every look.

    Lan & DeMets 1983, after Pocock 1977. Finds an early drop early. Errors as
    `obrien_fleming_spending`.
    """
    _check_spending(share, alpha)
    return alpha * math.log1p((math.e - 1) * share)


@dataclass(frozen=True)
class Look:
    """The test after one audit.

    Attributes:
        best_index: Row of the best earlier checkpoint; 0 is the base.
        drop: Its gold less gold of this checkpoint, gold units. Too large on average where there is
            no drop, as the best is picked by the same noise; the threshold allows for that.
        standard_error: Of the paired drop, over prompts.
        statistic: drop / standard_error.
        threshold: What the statistic has to exceed at this look.
        spent: Error spent up to and with this look.
    """

    best_index: int
    drop: float
    standard_error: float
    statistic: float
    threshold: float
    spent: float

    @property
    def lower(self) -> float:
        """Lower bound of the drop that holds for all looks at once, gold units."""
        return self.drop - self.threshold * self.standard_error


@dataclass(frozen=True)
class SequentialTest:
    """All looks so far.

    Attributes:
        looks: One per audited checkpoint after the base.
        stopped_at: Row of the first checkpoint whose gold is significantly below an earlier one;
            None while the run may go on.
        best_index: Row to ship: the best checkpoint before `stopped_at`, or the best so far.
    """

    looks: list[Look]
    stopped_at: int | None
    best_index: int


def sequential_test(
    gold: ArrayLike,
    *,
    num_looks: int,
    alpha: float = 0.05,
    spending: Spending = obrien_fleming_spending,
) -> SequentialTest:
    """Tests every audited checkpoint against the best one before it, at error alpha for the run.

    Look k of K has level spending(k/K) - spending((k-1)/K), divided by k, as the best is picked
    among k checkpoints by the very gold it is tested on. Paired by prompt, one-sided, Student's t
    over prompts. Thresholds of classical group-sequential trials assume data that accumulate on one
    parameter; here every look asks another question of the same prompts, so levels are added up
    (Bonferroni), which holds for any dependence and gives away some power. (Picking on one half of
    the prompts and testing on the other, both ways round, was tried: 5 to 8 % of runs without a
    drop were stopped over 24 looks, as the two halves' answers are correlated.)

    The looks are the same however often the function is called on a growing `gold`. Run it with
    gold that the final report does not use, or the report's interval is optimistic. Not stopping is
    no proof of no drop: every look has less power than a single test at alpha.

    Args:
        gold: (C, G) mean gold per checkpoint and prompt so far, the base policy first.
        num_looks: Audits planned after the base, K; at least C - 1.
        alpha: Probability that a run whose gold never fell is stopped.
        spending: How alpha is spent.

    Raises:
        ValueError: If there is nothing to compare, more looks than planned, too few prompts, or a
            value is NaN or infinite.
    """
    gold = np.asarray(gold, dtype=np.float64)
    if gold.ndim != 2 or len(gold) < 2 or not np.isfinite(gold).all():
        raise ValueError(f"got gold {gold.shape}, expected finite (C, G) with C >= 2")
    if len(gold) - 1 > num_looks:
        raise ValueError(f"got {len(gold) - 1} looks, expected at most num_looks {num_looks}")
    num_prompts = gold.shape[1]
    if num_prompts < MIN_PROMPTS:
        raise ValueError(f"got {num_prompts} prompts, expected at least {MIN_PROMPTS}")
    means = gold.mean(axis=1)
    looks: list[Look] = []
    for k in range(1, len(gold)):
        best = int(best_earlier(means[: k + 1]))
        drops = gold[best] - gold[k]
        drop, error = float(drops.mean()), float(drops.std(ddof=1)) / math.sqrt(num_prompts)
        before, spent = (spending(x / num_looks, alpha) for x in (k - 1, k))
        threshold = _threshold((spent - before) / k, num_prompts)
        looks.append(Look(best, drop, error, _standardised(drop, error), threshold, spent))
    return _summed_up(looks, len(gold))


def _standardised(drop: float, error: float) -> float:
    """drop / error; identical checkpoints have 0."""
    if error > 0:
        return drop / error
    return math.copysign(math.inf, drop) if drop else 0.0


def _normal_tail(z: float) -> float:
    """P(N(0, 1) > z), with its digits in the far tail."""
    return math.erfc(z / math.sqrt(2)) / 2


def _summed_up(looks: list[Look], num_checkpoints: int) -> SequentialTest:
    crossed = [k for k, look in enumerate(looks, start=1) if look.statistic > look.threshold]
    if crossed:
        return SequentialTest(looks, crossed[0], looks[crossed[0] - 1].best_index)
    best = looks[-1].best_index if looks[-1].drop > 0 else num_checkpoints - 1
    return SequentialTest(looks, None, best)


@lru_cache(maxsize=4096)  # the quantile of t takes milliseconds, and looks are often recomputed
def _threshold(level: float, num_prompts: int) -> float:
    """Upper quantile for one look; infinite where its level is nothing in doubles."""
    if level < 1e-15:
        return math.inf
    if num_prompts > _LARGEST_T:
        return -normal_quantile(level)
    return -t_quantile(level, num_prompts - 1)


def _check_spending(share: float, alpha: float) -> None:
    if not 0 <= share <= 1 or not 0 < alpha < 1:
        raise ValueError(f"got share {share} and alpha {alpha}, expected [0, 1] and (0, 1)")
