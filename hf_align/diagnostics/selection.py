"""Judges best-of-n from one pool of scored completions: what each n buys, how far it moves.

Proxy, gold and KL for every n up to N, Gao's two laws fitted to them, and a verdict on the n that
is used, in a sentence. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from hf_align.diagnostics.best_of_n import (
    best_of_n_kl,
    best_of_n_kl_estimates,
    best_of_n_kl_exact,
    best_of_n_values,
)
from hf_align.diagnostics.kl import ConsistencyCheck
from hf_align.diagnostics.overoptimization import (
    INVALID,
    MIN_PROMPTS,
    NO_GAIN,
    NOT_DETECTED,
    OVER_OPTIMISED,
    Curve,
    Verdict,
    verdict,
)
from hf_align.diagnostics.scaling_laws import (
    MIN_RL_DISTANCE,
    ClusteredFit,
    Form,
    fit_clustered_scaling_law,
)
from hf_align.statistics import clustered_means
from hf_align.types import Estimate

LOW_VARIANCE_SHARE = 4
"""Up to N/4 an n is averaged over many subsets of the pool; at N over a single one."""

COVERED = 1 - 1e-5
"""Probability that a pool must hold for all completions of its prompt to count as known."""

FORMS: tuple[Form, ...] = ("best_of_n", "rl")


@dataclass(frozen=True)
class Selection:
    """What best-of-n does to G prompts for K values of n, the base policy (n = 1) first.

    Attributes:
        ns: (K,) completions chosen from, ascending.
        num_samples: N, the size of the pool.
        nominal_kl: (K,) log n - (n - 1)/n, nats: an upper bound.
        kl: K estimates of the KL by the winners' log-probabilities, nats; None without those.
        exact_kl: K estimates where the pool holds all that its prompts can be answered with, so
            that the KL can be computed, nats; else None.
        num_covered: Prompts of which that is so.
        proxy: (K, G) expected proxy score of the winner.
        gold: (K, G) expected gold; None without gold.
        fits: `{"proxy" or "gold": {form: fit}}`; empty where there are too few n, or no change.
    """

    ns: np.ndarray
    num_samples: int
    nominal_kl: np.ndarray
    kl: list[Estimate] | None
    exact_kl: list[Estimate] | None
    num_covered: int
    proxy: np.ndarray
    gold: np.ndarray | None
    fits: dict[str, dict[Form, ClusteredFit]]

    @property
    def sqrt_kl(self) -> np.ndarray:
        """(K,) distance from the base policy, sqrt(nats), by the best KL there is."""
        known = self.exact_kl or self.kl
        return np.sqrt(self.nominal_kl if known is None else [max(e.value, 0.0) for e in known])

    @property
    def low_variance(self) -> np.ndarray:
        """(K,) whether n is at most N/4."""
        return self.ns * LOW_VARIANCE_SHARE <= self.num_samples

    def curve(self, select_n: int) -> Curve:
        """The curve from the base policy to best-of-`select_n`, whose "steps" are n."""
        kept = self.ns <= select_n
        gold = None if self.gold is None else self.gold[kept]
        return Curve(self.ns[kept], self.sqrt_kl[kept], gold, self.proxy[kept])


def half_octaves(num_samples: int, *also: int) -> np.ndarray:
    """1, 2, 3, 4, 6, 8, 11, 16, … up to N, N itself and what else is asked for, ascending."""
    steps = np.arange(2 * num_samples.bit_length() + 1)
    ns = np.rint(2 ** (steps / 2)).astype(np.int64)
    return np.unique([*ns[ns <= num_samples], num_samples, *also])


def judge_selection(
    proxy: ArrayLike,
    gold: ArrayLike | None = None,
    logps: ArrayLike | None = None,
    completions: Sequence[Sequence[object]] | None = None,
    *,
    ns: ArrayLike | None = None,
) -> Selection:
    """Everything that one pool says of best-of-n.

    Args:
        proxy: (G, N) proxy scores, by which the best is chosen.
        gold: (G, N) gold of the same completions.
        logps: (G, N) their log-probabilities under the base policy, nats.
        completions: (G, N) the completions themselves, hashable, to tell equal ones; needed for the
            exact KL.
        ns: (K,) whole numbers from 1 to N, 1 among them; None for `half_octaves`.

    Raises:
        ValueError: As `best_of_n_values`.
    """
    proxy = np.asarray(proxy, float)
    ns = half_octaves(proxy.shape[1]) if ns is None else np.unique(ns)
    values = {"proxy": best_of_n_values(proxy, None, ns).T}
    if gold is not None:
        values["gold"] = best_of_n_values(proxy, gold, ns).T
    kl = exact = None
    covered = np.zeros(len(proxy), dtype=bool)
    if logps is not None:
        logps = np.minimum(np.asarray(logps, float), 0.0)  # rounding may carry 0 past 0
        # The mean over winners, and a winner is what best-of-n's mean is about.
        parts = [best_of_n_values(proxy, best_of_n_kl_estimates(logps, n), [n]) for n in ns]
        kl = _from_zero(clustered_means(np.hstack(parts)), ns)
        if completions is not None:
            exact_values = _exact_kl(proxy, logps, completions, ns)
            covered = np.isfinite(exact_values[:, 0])
            exact = _from_zero(clustered_means(exact_values), ns) if covered.all() else None
    found = Selection(
        ns=ns,
        num_samples=proxy.shape[1],
        nominal_kl=best_of_n_kl(ns),
        kl=kl,
        exact_kl=exact,
        num_covered=int(covered.sum()),
        proxy=values["proxy"],
        gold=values.get("gold"),
        fits={},
    )
    distances = found.sqrt_kl
    return replace(found, fits={name: _fits(distances, rows) for name, rows in values.items()})


def _from_zero(estimates: list[Estimate], ns: np.ndarray) -> list[Estimate]:
    """Best-of-1 is the base policy: its KL is 0, not 0 up to rounding."""
    return [
        Estimate(0.0, 0.0, 0.0, estimate.n) if n == 1 else estimate
        for n, estimate in zip(ns, estimates, strict=True)
    ]


def _exact_kl(
    proxy: np.ndarray, logps: np.ndarray, completions: Sequence[Sequence[object]], ns: np.ndarray
) -> np.ndarray:
    """(G, K) KL of the prompts whose completions are all in the pool, nats; NaN of the others."""
    result = np.full((len(proxy), len(ns)), np.nan)
    for row, answers in enumerate(completions):
        distinct = list({answer: column for column, answer in enumerate(answers)}.values())
        probabilities = np.exp(logps[row, distinct])
        if probabilities.sum() >= COVERED:
            known = probabilities / probabilities.sum(), proxy[row, distinct]
            result[row] = [best_of_n_kl_exact(*known, n) for n in ns]
    return result


def _fits(sqrt_kl: np.ndarray, values: np.ndarray) -> dict[Form, ClusteredFit]:
    """Both laws, where there are three distances to fit them to and something changes."""
    if values.shape[1] < 2 or np.unique(sqrt_kl[sqrt_kl >= MIN_RL_DISTANCE]).size < 3:
        return {}
    if not (np.ptp(values[1:] - values[0], axis=1) > 0).all():
        return {}
    return {form: fit_clustered_scaling_law(form, sqrt_kl, values) for form in FORMS}


def selection_verdict(found: Selection, select_n: int, consistency: ConsistencyCheck) -> Verdict:
    """Whether best-of-`select_n` lies past the peak of gold: `verdict` in the words of selection.

    Args:
        found: What the pool says; `select_n` is one of its n.
        select_n: The n that is used.
        consistency: Sampler/scorer check of the pool (k1 and Rao-Blackwell KL from the uniform
            distribution: what differs between them is -log p of the draws less the entropy).
    """
    if select_n == 1:
        return Verdict(NO_GAIN, f"{NO_GAIN}: best-of-1 is the base policy; raise --select_n.")
    curve = found.curve(select_n)
    judged = verdict(curve, consistency)
    if judged.label != INVALID and curve.gold is not None and curve.gold.shape[1] < MIN_PROMPTS:
        return judged
    return replace(judged, text=f"{judged.label}: {_sentence(judged, curve, consistency)}")


def _sentence(judged: Verdict, curve: Curve, consistency: ConsistencyCheck) -> str:
    used = f"best-of-{curve.steps[-1]:.0f} at KL {_nats(curve.sqrt_kl[-1])}"
    if judged.label == INVALID:
        return (
            "the draws' log-probabilities do not fit the model's entropy "
            f"(z = {consistency.z:.1f}): the completions were not sampled from the distribution "
            "that scores them."
        )
    if curve.gold is None:
        return f"no held-out gold: drift only, {used} from the base policy."
    gain = _interval(judged.gain)
    if judged.label == OVER_OPTIMISED:
        return _past_the_peak(judged, curve, used)
    if judged.label == NO_GAIN:
        return f"at no n is gold above the base policy; {used} differs from it by {gain}."
    rose = f"gold rose by {gain} from the base policy to {used}"
    if len(curve.steps) == 2:
        return f"{rose}, and there is no n between them at which it could have peaked."
    detectable, prompts = judged.minimum_detectable_drop, curve.gold.shape[1]
    if judged.label == NOT_DETECTED:
        return (
            f"{rose}, on {prompts} prompts; a fall of {detectable:.2g} or more from a smaller n "
            "would have been seen (80 % power)."
        )
    return (
        f"{rose}; {prompts} prompts show only drops of {detectable:.2g} or more, over a quarter of "
        "what was gained at the peak."
    )


def _past_the_peak(judged: Verdict, curve: Curve, used: str) -> str:
    gain, peak = judged.gain, judged.peak_index
    compared = f"{_interval(gain)} against the base policy"
    if peak == 0:
        return f"gold never rose; {used} is {compared}."
    return (
        f"gold peaked at n = {curve.steps[peak]:.0f} (KL {_nats(curve.sqrt_kl[peak])}); {used} is "
        f"{_interval(judged.drop)} below that peak and {compared}."
    )


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _nats(sqrt_kl: float) -> str:
    return f"{sqrt_kl**2:.2g} nats"
