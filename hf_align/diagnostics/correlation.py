"""Correlation of two numbers over all rows of a dataset, with an interval clustered by prompt.

For millions of rows: prompts are put into a bounded number of groups, whose sums are resampled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_statistics
from hf_align.types import Estimate


def grouped_correlation(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike, *, seed: int = 0
) -> Estimate:
    """Pearson's correlation over all rows, differences between prompts included.

    r = Σ(a − ā)(b − b̄) / sqrt(Σ(a − ā)² Σ(b − b̄)²). The interval resamples groups (a bootstrap,
    below 50 groups a jackknife with Student's t, on the scale of atanh r), which respects clusters
    that lie whole in one group and costs the same for any number of rows (random groups: Wolter
    2007, "Introduction to Variance Estimation", ch. 2).

    Args:
        a: (N,) first number of each row.
        b: (N,) second number.
        groups: (N,) group of each row, whole numbers from 0: a hash of its prompt modulo about
            1,000.
        seed: Seed of the bootstrap.

    Returns:
        The estimate; its `n` is the number of rows. Without an interval where there is one group.

    Raises:
        ValueError: If shapes differ, a value is NaN or infinite, or `a` or `b` is constant.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    groups = np.asarray(groups)
    if a.ndim != 1 or a.shape != b.shape or a.shape != groups.shape:
        raise ValueError(
            f"got a {a.shape}, b {b.shape} and groups {groups.shape}, expected (N,) of each"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a or b has values that are NaN or infinite")
    if a.size < 2 or a.min() == a.max() or b.min() == b.max():
        raise ValueError("a or b is constant, expected values that differ")
    # Standardised first: sums of squares of large numbers would lose what varies.
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    # One product at a time: each is as large as the data.
    factors = ((a, b), (a, a), (b, b))
    products = [np.bincount(groups, weights=left * right) for left, right in factors]
    plain = [np.bincount(groups), *(np.bincount(groups, weights=part) for part in (a, b))]
    sums = np.stack([*plain, *products], axis=1)
    z = clustered_statistics(sums[sums[:, 0] > 0], _fisher, seed=seed)[0]
    low, high = (None if end is None else float(np.tanh(end)) for end in (z.low, z.high))
    return Estimate(float(np.tanh(z.value)), low, high, int(a.size))


def _fisher(sums: np.ndarray) -> np.ndarray:
    """(R, 1) atanh of the correlation from (R, 6) sums of 1, a, b, ab, a², b²."""
    n, a, b, ab, aa, bb = np.moveaxis(sums, -1, 0)
    spread = np.sqrt(np.maximum((n * aa - a * a) * (n * bb - b * b), 0))
    # A resample in which one of them does not vary has no correlation: 0.
    r = np.divide(n * ab - a * b, spread, out=np.zeros_like(spread), where=spread > 0)
    return np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))[:, None]
