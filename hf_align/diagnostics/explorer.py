"""What a reader of published runs asks: gains along a run, several runs at one KL, what to read.

Everything is computed from a run's record of its audits (gold and proxy per prompt) or from a
best-of-n run's values per prompt, and never beyond the distances that were measured. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from hf_align.diagnostics.best_of_n import best_of_n_kl
from hf_align.diagnostics.overoptimization import Curve
from hf_align.statistics import clustered_means
from hf_align.types import Estimate, InputError

MOST_CHECKPOINTS = 2000
MOST_PROMPTS = 20_000
_LARGEST = 1e15

Order = Literal["prompts", "over_optimised", "farthest"]


def curve_of_audits(entries: Any, label: str) -> Curve:
    """The content of an `audits.json` that someone else may have written.

    Args:
        entries: `{"step", "kl", "gold", "proxy"}` per audit, the rewards per prompt.
        label: How messages call the file.

    Raises:
        InputError: Fewer than two audits, steps that do not rise from 0, or values that are no
            finite numbers, one per prompt.
    """
    return _curve(entries, "step", 0, label)


def curve_of_selection(entries: Any, label: str) -> Curve:
    """A best-of-n run's values per prompt, for every n, as a curve whose steps are n.

    Args:
        entries: `{"n", "kl", "gold", "proxy"}` per n.
        label: How messages call the file.

    Raises:
        InputError: As `curve_of_audits`; the first n is 1.
    """
    return _curve(entries, "n", 1, label)


def _curve(entries: Any, counted: str, first: int, label: str) -> Curve:
    def fail(what: str) -> None:
        raise InputError(f"{label} is damaged: {what}; copy it again")

    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        fail("it is no list of measurements")
    if not 2 <= len(entries) <= MOST_CHECKPOINTS:
        fail(f"it holds {len(entries):,} measurements, and a curve has 2 to {MOST_CHECKPOINTS:,}")
    steps = [entry.get(counted) for entry in entries]
    if not all(isinstance(step, int) and not isinstance(step, bool) for step in steps):
        fail(f"a {counted} is no whole number")
    if steps[0] != first or any(b <= a for a, b in pairwise(steps)):
        fail(f"its {counted} does not rise from {first}")
    kl = _numbers([entry.get("kl") for entry in entries])
    if kl is None or kl.ndim != 1:
        fail("a KL is no finite number")
    values = {}
    for name in ("gold", "proxy"):
        given = [entry.get(name) for entry in entries]
        values[name] = None
        if any(one is None for one in given):
            continue
        values[name] = _numbers(given)
        if values[name] is None or values[name].ndim != 2 or not values[name].size:
            fail(f"{name} is not as many finite numbers in every measurement, one per prompt")
        if values[name].shape[1] > MOST_PROMPTS:
            fail(f"{name} is on {values[name].shape[1]:,} prompts, over {MOST_PROMPTS:,}")
    distances = np.sqrt(np.maximum(kl, 0.0))
    distances[0] = 0.0  # the reference itself, up to rounding
    return Curve(np.array(steps), distances, **values)


def _numbers(values: Any) -> np.ndarray | None:
    """Finite numbers of equal shape; None for anything else."""
    try:
        found = np.array(values)
    except (ValueError, TypeError, OverflowError):
        return None
    if found.dtype.kind not in "if" or not (np.abs(found) < _LARGEST).all():
        return None
    return found.astype(np.float64)


def gains(values: np.ndarray) -> list[Estimate]:
    """Gain over the first row at each of C checkpoints, paired and clustered by prompt.

    Args:
        values: (C, G) gold or proxy per checkpoint and prompt.
    """
    num_prompts = values.shape[1]
    return [Estimate(0.0, 0.0, 0.0, num_prompts), *clustered_means((values[1:] - values[0]).T)]


@dataclass(frozen=True)
class AtKL:
    """A run where it first reached a distance.

    Attributes:
        gold: Gain of gold over the reference there; None without gold.
        proxy: The same of the proxy.
        between: The two measured steps (or n) that it lies between; equal where it was measured.
    """

    gold: Estimate | None
    proxy: Estimate | None
    between: tuple[int, int]


def at_distance(curve: Curve, sqrt_kl: float) -> AtKL | None:
    """Gains where a run first reached a distance; None where it never did.

    Between two neighbouring checkpoints each prompt's values are interpolated linearly in sqrt(KL),
    on which curves bend least, and the interval is clustered by prompt. Nothing is extrapolated.

    Args:
        curve: Checkpoints in the order of training, the reference first.
        sqrt_kl: The distance, sqrt(nats).

    Raises:
        ValueError: The distance is negative or not finite.
    """
    if not 0 <= sqrt_kl < np.inf:
        raise ValueError(f"got sqrt_kl {sqrt_kl}, expected a distance of 0 or more")
    reached = np.flatnonzero(curve.sqrt_kl >= sqrt_kl)
    if not reached.size:
        return None
    after = int(reached[0])
    before = max(after - 1, 0)
    low, high = curve.sqrt_kl[before], curve.sqrt_kl[after]
    share = 1.0 if high <= low else float((sqrt_kl - low) / (high - low))
    before = after if share == 1 else before

    def gain(values: np.ndarray | None) -> Estimate | None:
        if values is None:
            return None
        there = (1 - share) * values[before] + share * values[after]
        return clustered_means((there - values[0])[:, None])[0]

    steps = int(curve.steps[before]), int(curve.steps[after])
    return AtKL(gain(curve.gold), gain(curve.proxy), steps)


@dataclass(frozen=True)
class Shifts:
    """What a policy's completions gained over the reference's, row by row.

    Attributes:
        gold: (N,) gold less the reference's; None without gold.
        proxy: (N,) the same of the proxy.
        log_ratio: (N,) log policy - log reference, nats; None of the reference itself.
    """

    gold: np.ndarray | None
    proxy: np.ndarray | None
    log_ratio: np.ndarray | None

    @property
    def over_optimised(self) -> np.ndarray | None:
        """(N,) whether the proxy rose and gold fell; None without both."""
        if self.gold is None or self.proxy is None:
            return None
        return (self.proxy > 0) & (self.gold < 0)


def shifts(policy: Any, reference: Any) -> Shifts:
    """Row-by-row gains of two `ScoredCompletions` of the same prompts in the same order.

    Raises:
        InputError: They answer different prompts.
    """
    if len(policy) != len(reference) or policy.prompts != reference.prompts:
        raise InputError(
            "the completions of this step answer other prompts than those of the reference"
        )

    def gained(name: str) -> np.ndarray | None:
        ours, theirs = getattr(policy, name), getattr(reference, name)
        return None if ours is None or theirs is None else ours - theirs

    return Shifts(gained("gold"), gained("proxy"), policy.log_ratio)


def reading_order(found: Shifts, order: Order, num_rows: int) -> np.ndarray:
    """(N,) rows in the order in which they are worth reading.

    "over_optimised": rows whose proxy rose while gold fell come first; among those, and among the
    others, the larger gain of the proxy less that of gold first, each in SDs of its own gains, so
    that neither unit decides. "farthest": largest |log-ratio| first. "prompts": as audited, which
    is also what the others fall back to where there is nothing to order by. Equal rows stay in
    order.
    """
    rows = np.arange(num_rows)
    if order == "farthest" and found.log_ratio is not None:
        return np.argsort(-np.abs(found.log_ratio), kind="stable")
    flagged = found.over_optimised
    if order == "over_optimised" and flagged is not None:
        apart = _standardised(found.proxy) - _standardised(found.gold)
        return np.lexsort((rows, -apart, ~flagged))
    return rows


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std()
    return values / spread if spread > 0 else values


@dataclass(frozen=True)
class Selected:
    """What the best of n is worth on average.

    Attributes:
        n: Completions drawn.
        kl_bound: log n - (n - 1)/n, nats: the most that the choice moves.
        proxy: Expected proxy score of the one chosen.
        gold: Its expected gold; None without gold.
        low_variance: Whether the pool is large enough for n (n <= N/4).
    """

    n: int
    kl_bound: float
    proxy: Estimate
    gold: Estimate | None
    low_variance: bool


def selected_points(report: Any, label: str) -> list[Selected] | None:
    """Every n of a best-of-n run's report, which someone else may have written; None without any.

    Raises:
        InputError: They are not what such a report has.
    """
    part = report.get("best_of_n")
    if part is None:
        return None
    points = part.get("curve") if isinstance(part, dict) else None
    if not isinstance(points, list) or not 1 <= len(points) <= MOST_CHECKPOINTS:
        raise InputError(f"{label} is damaged: best_of_n has no curve")
    found = []
    for place, point in enumerate(points, 1):
        proxy = _estimate(point.get("proxy")) if isinstance(point, dict) else None
        if proxy is None or point.get("n") != place:
            raise InputError(f"{label} is damaged: best_of_n has no n = {place}")
        bound = float(best_of_n_kl(place))
        rough = point.get("low_variance") is not True
        found.append(Selected(place, bound, proxy, _estimate(point.get("gold")), not rough))
    return found


def _estimate(entry: Any) -> Estimate | None:
    """An estimate as reports hold it; None for anything else."""
    if not isinstance(entry, dict) or not isinstance(entry.get("n"), int):
        return None
    ends = [entry.get(name) for name in ("value", "low", "high")]
    value, low, high = (None if end is None else _numbers(end) for end in ends)
    if value is None or any(x is not None and x.ndim for x in (value, low, high)):
        return None
    if (low is None) != (high is None):
        return None
    interval = (None, None) if low is None else (float(low), float(high))
    return Estimate(float(value), *interval, entry["n"])
