"""Means, differences and shares with 95 % intervals that respect prompts as clusters.

Completions of one prompt resemble each other, so the prompt is the unit of evidence: with 64
prompts x 16 completions at an intra-class correlation of 0.5 an interval that treats completions as
independent covers 52 %, not 95 %. Only numpy and the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from hf_align.types import Estimate

MIN_BOOTSTRAP_PROMPTS = 50
"""Below this many prompts a percentile bootstrap is too narrow and Student's t is used."""

MAX_RESAMPLED = 16_384
"""More prompts than this are resampled in random groups of equal size: as good, and fast."""

_RESAMPLE_CHUNK = 4_000_000  # resampled indices held in memory at a time (32 MB)


def prompt_means(values: ArrayLike, prompts: ArrayLike) -> np.ndarray:
    """Mean of the values of each distinct prompt.

    Args:
        values: (N,) one number per completion.
        prompts: (N,) the prompt of each completion: integers or strings.

    Returns:
        (num_prompts,) means, in the sorted order of the distinct prompts.

    Raises:
        ValueError: If the shapes differ, nothing was given, or a value is NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    prompts = np.asarray(prompts)
    if values.ndim != 1 or values.shape != prompts.shape:
        raise ValueError(f"got values {values.shape} and prompts {prompts.shape}, expected (N,)")
    if values.size == 0:
        raise ValueError("got no values, expected at least one")
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{bad} of {values.size} values are NaN or infinite")
    _, inverse = np.unique(prompts, return_inverse=True)
    return np.bincount(inverse, weights=values) / np.bincount(inverse)


def standard_error(values: ArrayLike, prompts: ArrayLike) -> float:
    """Standard error of the mean over prompts: SD of the prompt means / sqrt(num_prompts).

    Raises:
        ValueError: With fewer than two prompts, or as `prompt_means`.
    """
    means = prompt_means(values, prompts)
    if means.size < 2:
        raise ValueError("a standard error needs at least 2 prompts, got 1")
    return float(means.std(ddof=1) / math.sqrt(means.size))


def clustered_mean(
    values: ArrayLike,
    prompts: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean over prompts of the per-prompt mean, with an interval clustered by prompt.

    From 50 prompts on a percentile bootstrap that resamples prompts; below, mean +- t * SE of the
    prompt means with num_prompts - 1 degrees of freedom. One prompt has no interval.

    Args:
        values: (N,) one number per completion.
        prompts: (N,) the prompt of each completion: integers or strings.
        confidence: Coverage of the interval.
        num_resamples: Bootstrap resamples of the prompts.
        seed: Seed of the bootstrap; equal seeds and prompts resample the same prompts.

    Returns:
        The estimate; its `n` is the number of prompts.

    Raises:
        ValueError: As `prompt_means`.
    """
    means = prompt_means(values, prompts)
    mean, num_prompts = float(means.mean()), means.size
    if num_prompts < 2:
        return Estimate(mean, None, None, num_prompts)
    if num_prompts < MIN_BOOTSTRAP_PROMPTS:
        margin = t_quantile(0.5 + confidence / 2, num_prompts - 1)
        margin *= float(means.std(ddof=1)) / math.sqrt(num_prompts)
        return Estimate(mean, mean - margin, mean + margin, num_prompts)
    if num_prompts > MAX_RESAMPLED:
        options = {"confidence": confidence, "num_resamples": num_resamples, "seed": seed}
        return clustered_means(means[:, None], **options)[0]
    resampled = _bootstrap_means(means, num_resamples, seed)
    low, high = np.quantile(resampled, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(mean, float(low), float(high), num_prompts)


def clustered_share(values: ArrayLike, prompts: ArrayLike) -> Estimate:
    """`clustered_mean` of values in [0, 1], with its interval cut to [0, 1]."""
    share = clustered_mean(values, prompts)
    if share.low is None or share.high is None:
        return share
    return Estimate(share.value, max(0.0, share.low), min(1.0, share.high), share.n)


def clustered_difference(
    a: ArrayLike,
    b: ArrayLike,
    prompts: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of a - b, paired: both were measured on the same prompts.

    Args:
        a: (N,) values of the first policy.
        b: (N,) values of the second, row i on the same prompt as row i of `a`.
        prompts: (N,) the prompt of each row.
        confidence: Coverage of the interval.
        num_resamples: Bootstrap resamples of the prompts.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If `a` and `b` differ in shape, or as `prompt_means`.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"got a {a.shape} and b {b.shape}, expected equal shapes")
    return clustered_mean(
        a - b, prompts, confidence=confidence, num_resamples=num_resamples, seed=seed
    )


def clustered_statistics(
    sums: ArrayLike,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[Estimate]:
    """Functions of sums over prompts, such as a correlation, with intervals clustered by prompt.

    The value is the statistic of the sums over all prompts. From 50 prompts on a percentile
    bootstrap that resamples prompts; below, value +- t * the jackknife's SE over prompts (Efron &
    Tibshirani 1993, ch. 11), which is best on a scale without bounds: pass atanh(r), not r. One
    prompt has no interval.

    Args:
        sums: (num_prompts, ...) what each prompt adds to the sums.
        statistic: Maps (R, ...) sums to (R, K) values, row by row.
        confidence: Coverage of the intervals.
        num_resamples: Bootstrap resamples of the prompts.
        seed: Seed of the bootstrap.

    Returns:
        K estimates; their `n` is the number of prompts.

    Raises:
        ValueError: If nothing was given or a sum is NaN or infinite.
    """
    sums = np.asarray(sums, dtype=np.float64)
    if sums.size == 0 or not np.isfinite(sums).all():
        raise ValueError(f"got sums {sums.shape}, expected finite sums of at least one prompt")
    num_prompts, total = len(sums), sums.sum(axis=0)
    values = statistic(total[None])[0]
    if num_prompts < 2:
        return [Estimate(float(value), None, None, num_prompts) for value in values]
    if num_prompts < MIN_BOOTSTRAP_PROMPTS:
        left_out = statistic(total - sums)
        error = left_out.std(axis=0) * math.sqrt(num_prompts - 1)
        margin = t_quantile(0.5 + confidence / 2, num_prompts - 1) * error
        lows, highs = values - margin, values + margin
    else:
        resampled = _bootstrap_statistics(sums, statistic, num_resamples, seed)
        quantiles = [0.5 - confidence / 2, 0.5 + confidence / 2]
        lows, highs = np.quantile(resampled, quantiles, axis=0)
    return [
        Estimate(float(value), float(low), float(high), num_prompts)
        for value, low, high in zip(values, lows, highs, strict=True)
    ]


def clustered_means(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[Estimate]:
    """Mean over prompts of every column, all resampled together: one curve, or several quantities.

    As `clustered_mean` column by column, at the price of about one.

    Args:
        values: (num_prompts, K) one number per prompt and quantity.
        confidence: Coverage of each interval by itself, not of all at once.
        num_resamples: Bootstrap resamples of the prompts.
        seed: Seed of the bootstrap.

    Returns:
        K estimates.

    Raises:
        ValueError: If there are no values, or one is NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"got values {values.shape}, expected finite (num_prompts, K)")
    return clustered_statistics(
        np.column_stack([values, np.ones(len(values))]),
        lambda sums: sums[:, :-1] / sums[:, -1:],
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
    )


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """Share of successes among n independent trials, with Wilson's score interval.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); Wilson 1927. Unlike p +- z SE it
    keeps its coverage near 0 and 1 and never leaves [0, 1].

    Raises:
        ValueError: Unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"got {successes} successes of {n}, expected 0 <= successes <= n, n >= 1")
    z = normal_quantile(0.5 + confidence / 2)
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    margin = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # With 0 or n successes one end is exactly the share; rounding must not carry it past.
    return Estimate(share, max(0.0, center - margin), min(1.0, center + margin), n)


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(probability)


def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """Quantile of Student's t for whole degrees of freedom, to about 1e-12.

    Bisects the closed form of P(|T| < t), Abramowitz & Stegun 26.7.3 and 26.7.4.

    Raises:
        ValueError: Unless 0 < probability < 1 and degrees_of_freedom >= 1.
    """
    if not 0 < probability < 1 or degrees_of_freedom < 1:
        raise ValueError(
            f"got probability {probability} and degrees_of_freedom {degrees_of_freedom}, "
            "expected 0 < probability < 1 and degrees_of_freedom >= 1"
        )
    inside = abs(2 * probability - 1)
    low, high = 0.0, math.pi / 2  # the angle atan(t / sqrt(df)) is bounded, t is not
    for _ in range(80):
        middle = (low + high) / 2
        if _t_central_probability(middle, degrees_of_freedom) < inside:
            low = middle
        else:
            high = middle
    t = math.sqrt(degrees_of_freedom) * math.tan((low + high) / 2)
    return math.copysign(t, probability - 0.5) if inside else 0.0


def _t_central_probability(angle: float, degrees_of_freedom: int) -> float:
    """P(|T| < sqrt(df) tan(angle)) for Student's t."""
    sin, cos = math.sin(angle), math.cos(angle)
    odd = degrees_of_freedom % 2 == 1
    term = cos if odd else 1.0
    total = 0.0
    for k in range(2 if odd else 1, degrees_of_freedom, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    return 2 / math.pi * (angle + sin * total) if odd else sin * total


def _bootstrap_means(means: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """(num_resamples,) means of prompts drawn with replacement."""
    rng = np.random.default_rng(seed)
    rows = max(1, _RESAMPLE_CHUNK // means.size)
    chunks = [
        means[rng.integers(means.size, size=(min(rows, num_resamples - start), means.size))].mean(1)
        for start in range(0, num_resamples, rows)
    ]
    return np.concatenate(chunks)


def _bootstrap_statistics(
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    num_resamples: int,
    seed: int,
) -> np.ndarray:
    """(num_resamples, K) values of the statistic for prompts drawn with replacement."""
    rng = np.random.default_rng(seed)
    if len(sums) > MAX_RESAMPLED:
        # Independent prompts make independent groups, and 8,192 or more of them tell the variance
        # to 1 %, less than 2000 resamples do.
        size = -(-len(sums) // MAX_RESAMPLED)
        sums = np.add.reduceat(sums[rng.permutation(len(sums))], np.arange(0, len(sums), size))
    num_prompts, flat = len(sums), sums.reshape(len(sums), -1)
    rows = max(1, _RESAMPLE_CHUNK // max(flat.shape))
    chunks = []
    for start in range(0, num_resamples, rows):
        counts = np.empty((min(rows, num_resamples - start), num_prompts))
        for count in counts:  # a tenth of the time of rng.multinomial
            drawn = rng.integers(num_prompts, size=num_prompts, dtype=np.int32)
            count[:] = np.bincount(drawn, minlength=num_prompts)
        chunks.append(statistic((counts @ flat).reshape(-1, *sums.shape[1:])))
    return np.concatenate(chunks)
