"""Judges a reward model's margins on labelled pairs: noise ceiling, likelihood, calibration.

A margin is score(first) - score(second); by Bradley and Terry it claims P(first is preferred) =
sigmoid(margin). Without `labels` the first completion is the chosen one. Within every estimate
prompts weigh the same, and intervals are clustered by prompt. Pure numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_align.diagnostics.accuracy import accuracy_estimate, equal_mass_bins
from hf_align.statistics import (
    clustered_mean,
    clustered_share,
    clustered_statistics,
    prompt_means,
)
from hf_align.types import Estimate

TEMPERATURE_RANGE = (0.01, 100.0)
"""A fitted temperature stays within this multiple of the margins' root mean square."""

_GRID_SIZE = 256  # inverse temperatures between which a resample's optimum is interpolated


def noise_ceiling(
    gold_differences: ArrayLike,
    prompts: ArrayLike,
    *,
    temperature: ArrayLike,
    flip_rate: ArrayLike = 0.0,
) -> Estimate:
    """Label accuracy expected of a judge who orders every pair as gold does: none does better.

    E[(1 - e) c + e (1 - c)] with c = sigmoid(|gold difference| / tau): an annotator prefers the
    better completion with probability c, and the answer is flipped with probability e (Gao et al.
    2022, arXiv:2210.10760; Coste et al. 2023, arXiv:2310.02743). It bounds accuracy on labels only
    if tau and e are the annotators' own, and only in expectation: on few pairs luck can pass it.

    Args:
        gold_differences: (N,) gold of one completion minus gold of the other, gold units, any sign.
        prompts: (N,) the prompt of each pair.
        temperature: tau in gold units, a number or (N,) for several annotators.
        flip_rate: e in [0, 0.5], a number or (N,).

    Raises:
        ValueError: If tau is not positive, e is out of range, or shapes or values are unusable.
    """
    temperature, flip_rate = np.asarray(temperature, float), np.asarray(flip_rate, float)
    if not (temperature > 0).all() or not ((flip_rate >= 0) & (flip_rate <= 0.5)).all():
        raise ValueError(
            f"got temperature {temperature} and flip_rate {flip_rate}, "
            "expected temperature > 0 and flip_rate in [0, 0.5]"
        )
    agreement = _sigmoid(np.abs(np.asarray(gold_differences, float)) / temperature)
    return clustered_share(agreement + flip_rate * (1 - 2 * agreement), prompts)


def negative_log_likelihood(
    margins: ArrayLike, prompts: ArrayLike, labels: ArrayLike | None = None
) -> Estimate:
    """-[y log sigmoid(m) + (1 - y) log sigmoid(-m)], nats per pair; log 2 where all margins are 0.

    The Bradley-Terry loss without its margin term (Ouyang et al. 2022, arXiv:2203.02155, eq. 1).
    It rewards calibration and accuracy together and a few confident mistakes dominate it: read it
    beside the accuracy and the fitted temperature.

    Args:
        margins: (N,) score of the first completion minus that of the second.
        prompts: (N,) the prompt of each pair.
        labels: (N,) 1 where the first is preferred, 0 where the second is, or the share of votes
            for the first. None where the first is the chosen one.

    Raises:
        ValueError: If shapes differ, a value is NaN or infinite, or a label is outside [0, 1].
    """
    margins, labels = _checked(margins, labels)
    losses = labels * np.logaddexp(0, -margins) + (1 - labels) * np.logaddexp(0, margins)
    return clustered_mean(losses, prompts)


def fitted_temperature(
    margins: ArrayLike, prompts: ArrayLike, labels: ArrayLike | None = None
) -> Estimate:
    """T = argmin NLL(margins / T): 1 if calibrated, above 1 if overconfident (in score units).

    Guo et al. 2017, arXiv:1706.04599. With b = 1/T the NLL is convex and its slope, mean of
    (sigmoid(b m) - y) m, is bisected. Where no T is best (every pair ordered right: T -> 0; no
    better than chance: T -> infinity) the result is the end of `TEMPERATURE_RANGE` x the margins'
    root mean square. One number cannot repair margins whose error depends on their size: look at
    the reliability diagram.

    Arguments as `negative_log_likelihood`; the interval is a bootstrap over prompts.

    Raises:
        ValueError: If all margins are 0, or as `negative_log_likelihood`.
    """
    margins, labels = _checked(margins, labels)
    weights, inverse = _prompt_weights(margins, prompts)
    scale = math.sqrt(float(np.mean(margins**2)))
    if scale == 0:
        raise ValueError("all margins are 0, expected margins that differ")
    unit = margins / scale

    def pulls(b: float) -> np.ndarray:
        ahead, behind = _sigmoid(b * unit), _sigmoid(-b * unit)
        return weights * unit * ((1 - labels) * ahead - labels * behind)

    low, high = (math.log(end) for end in TEMPERATURE_RANGE)
    grid = np.linspace(-high, -low, _GRID_SIZE)  # log b
    slopes = np.stack([np.bincount(inverse, weights=pulls(math.exp(x))) for x in grid], axis=1)
    interval = clustered_statistics(slopes, lambda sums: -_roots(sums, grid)[:, None])[0]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if pulls(math.exp(-middle)).sum() < 0 else (middle, high)
    ends = (None if x is None else scale * math.exp(x) for x in (interval.low, interval.high))
    return Estimate(scale * math.exp((low + high) / 2), *ends, interval.n)


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of similar confidence sigmoid(|margin|).

    Attributes:
        low: Smallest confidence among them.
        high: Largest.
        predicted: Mean confidence.
        observed: How often the completion with the higher score is the preferred one.
        count: Pairs.
    """

    low: float
    high: float
    predicted: float
    observed: Estimate
    count: int


def reliability(
    margins: ArrayLike, prompts: ArrayLike, labels: ArrayLike | None = None, *, num_bins: int = 10
) -> list[ReliabilityBin]:
    """Predicted against observed agreement in equal-mass bins of confidence.

    Which completion of a pair comes first carries no information; counted as chosen/rejected every
    label would be 1. So each pair is put in the order the model prefers: confidence sigmoid(|m|)
    in [0.5, 1], outcome 1 where the label agrees. That equals adding every pair's mirror image
    (-m, 1 - y), but counts no pair twice. Equal margins share a bin, so there can be fewer bins. A
    preference for the first position cannot be seen here.

    Arguments and errors as `negative_log_likelihood`.
    """
    confidence, agreement = _folded(margins, labels)
    prompts = np.asarray(prompts)
    _prompt_weights(agreement, prompts)
    bins = equal_mass_bins(confidence, num_bins)
    result = []
    for k in range(bins.max() + 1):
        inside = bins == k
        result.append(
            ReliabilityBin(
                low=float(confidence[inside].min()),
                high=float(confidence[inside].max()),
                predicted=float(prompt_means(confidence[inside], prompts[inside]).mean()),
                observed=accuracy_estimate(agreement[inside], prompts[inside]),
                count=int(inside.sum()),
            )
        )
    return result


def expected_calibration_error(
    margins: ArrayLike, prompts: ArrayLike, labels: ArrayLike | None = None, *, num_bins: int = 10
) -> Estimate:
    """Plug-in ECE: sum over bins of their share x |observed - predicted|, bins as `reliability`.

    Guo et al. 2017, arXiv:1706.04599. Noise adds to it and never cancels: perfectly calibrated
    margins score about 0.10 at 100 pairs and 0.034 at 1000, so compare it at equal numbers of pairs
    only, or use `debiased_calibration_error`. It has no interval: one resampled from it would
    carry that bias twice.

    Arguments and errors as `negative_log_likelihood`.
    """
    confidence, agreement = _folded(margins, labels)
    weights, inverse = _prompt_weights(agreement, prompts)
    gaps = np.bincount(equal_mass_bins(confidence, num_bins), weights * (agreement - confidence))
    return Estimate(float(np.abs(gaps).sum()), None, None, int(inverse.max()) + 1)


def debiased_calibration_error(
    margins: ArrayLike,
    prompts: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    num_bins: int = 10,
    num_splits: int = 20,
    seed: int = 0,
) -> Estimate:
    """ECE without the share that noise adds: on average 0 for calibrated margins, at any size.

    |gap| = sign(gap) x gap, and noise enters because one sample supplies both. So prompts are
    halved: each half's gaps are counted with the signs that the other half shows, averaged over
    `num_splits` random halvings. Where margins are calibrated such a sign is independent of the gap
    it multiplies and the mean is exactly 0 (single results can be negative). Otherwise the mean
    lies between 0 and the binned ECE and approaches it as pairs are added: small samples hide
    small errors, they do not invent them. Subtracting the noise expected under calibration (Brocker
    2012; Kumar et al. 2019, arXiv:1909.10155, do so for the squared error; Roelofs et al. 2020,
    arXiv:2012.08668 measure the bias) would subtract it also where the gap dwarfs the noise. The
    interval has the width of the plug-in's with its signs held fixed. For calibrated margins it
    covered 0 in 96 % of simulations or more; a true error of 0.096 it covered in 70 %, 84 % and
    93 % at 100, 1000 and 4000 pairs, missing it from below.

    Args:
        margins: (N,) as `negative_log_likelihood`.
        prompts: (N,) the prompt of each pair.
        labels: (N,) as `negative_log_likelihood`.
        num_bins: Equal-mass bins of confidence.
        num_splits: Random halvings; more make the estimate depend less on the seed.
        seed: Seed of the halvings.

    Raises:
        ValueError: With fewer than two prompts, or as `negative_log_likelihood`.
    """
    confidence, agreement = _folded(margins, labels)
    weights, inverse = _prompt_weights(agreement, prompts)
    num_prompts = int(inverse.max()) + 1
    if num_prompts < 2:
        raise ValueError("a debiased calibration error needs at least 2 prompts, got 1")
    bins, gaps = equal_mass_bins(confidence, num_bins), agreement - confidence

    def signed(shown: np.ndarray, counted: np.ndarray) -> np.ndarray:
        signs = np.sign(np.bincount(bins[shown], (weights * gaps)[shown], bins.max() + 1))
        return signs[bins[counted]] * gaps[counted]

    rng, value = np.random.default_rng(seed), 0.0
    for _ in range(num_splits):
        first = (rng.permutation(num_prompts) < num_prompts // 2)[inverse]
        for half in (first, ~first):
            value += float(weights[half] @ signed(~half, half)) / num_splits
    everything = np.ones_like(bins, dtype=bool)
    plug_in = clustered_mean(signed(everything, everything), prompts)
    shift = value - plug_in.value
    return Estimate(value, plug_in.low + shift, plug_in.high + shift, num_prompts)


def _checked(margins: ArrayLike, labels: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    margins = np.asarray(margins, dtype=np.float64)
    labels = np.ones_like(margins) if labels is None else np.asarray(labels, dtype=np.float64)
    if margins.ndim != 1 or margins.shape != labels.shape:
        raise ValueError(f"got margins {margins.shape} and labels {labels.shape}, expected (N,)")
    bad = int(np.count_nonzero(~np.isfinite(margins)))
    if bad:
        raise ValueError(f"{bad} of {margins.size} margins are NaN or infinite")
    if not ((labels >= 0) & (labels <= 1)).all():
        raise ValueError("labels must lie in [0, 1]: 1 where the first completion is preferred")
    return margins, labels


def _folded(margins: ArrayLike, labels: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """(N,) sigmoid(|margin|), and (N,) agreement with the label, one half where the margin is 0."""
    margins, labels = _checked(margins, labels)
    return _sigmoid(np.abs(margins)), 0.5 + np.sign(margins) * (labels - 0.5)


def _prompt_weights(values: np.ndarray, prompts: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(N,) weights that make a sum the mean over prompts of prompt means; prompt indices."""
    prompt_means(values, prompts)  # raises on bad shapes or values
    _, inverse, counts = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[inverse]), inverse


def _roots(slopes: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(R,) where each row of ascending (R, K) slopes crosses 0, or the end it does not reach."""
    above = np.clip((slopes < 0).sum(axis=1), 1, len(grid) - 1)
    rows = np.arange(len(slopes))
    left, right = slopes[rows, above - 1], slopes[rows, above]
    rise = np.where(right > left, right - left, 1.0)
    return grid[above - 1] + np.clip(-left / rise, 0, 1) * (grid[above] - grid[above - 1])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))  # exact in both tails
