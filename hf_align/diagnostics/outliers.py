"""Looks for completions unlike the reference's, and for heavy tails of the error of a proxy.

`outlier_share` uses Mahalanobis distances of hidden states, `tail_index` Hill's estimator. Neither
is a verdict: policies have been over-optimised without a single outlier. Pure numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_share
from hf_align.types import Estimate

OUTLIER_QUANTILE = 0.99
"""Reference completions, held out, of which 1 % lie farther count as normal."""


def mahalanobis_distances(
    features: ArrayLike, reference_features: ArrayLike, *, shrinkage: float = 0.01
) -> np.ndarray:
    """sqrt((f - m)' S^-1 (f - m)), m and S of the reference completions; in reference SDs.

    S is shrunk toward a multiple of the identity, (1 - w) S + w tr(S)/D I, as it is singular unless
    there are more completions than dimensions, and unreliable unless there are many more.

    Args:
        features: (N, D) such as a reward model's hidden states at EOS.
        reference_features: (M, D) the same of the reference's completions.
        shrinkage: w in [0, 1].

    Returns:
        (N,) distances.

    Raises:
        ValueError: If the dimensions differ, a value is not finite, all reference features are
            equal, or the shrinkage is out of range.
    """
    features, reference = np.asarray(features, float), np.asarray(reference_features, float)
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"got features {features.shape} and reference_features {reference.shape}, expected "
            "(N, D) and (M, D)"
        )
    if not (np.isfinite(features).all() and np.isfinite(reference).all()):
        raise ValueError("features must not hold NaN or infinite values")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"got shrinkage {shrinkage}, expected 0 to 1")
    center = reference.mean(axis=0)
    covariance = (reference - center).T @ (reference - center) / max(1, len(reference) - 1)
    scale = float(np.trace(covariance)) / len(covariance)
    if scale == 0:
        raise ValueError("the reference features are all equal, expected features that differ")
    covariance = (1 - shrinkage) * covariance + shrinkage * scale * np.eye(len(covariance))
    offsets = features - center
    squared = np.einsum("nd,nd->n", offsets, np.linalg.solve(covariance, offsets.T).T)
    return np.sqrt(np.maximum(squared, 0.0))


def outlier_share(
    features: ArrayLike,
    prompts: ArrayLike,
    reference_features: ArrayLike,
    held_out_features: ArrayLike,
    *,
    shrinkage: float = 0.01,
) -> Estimate:
    """Share of completions farther from the reference than 99 % of its own held-out completions.

    About 0.01 where nothing changed. The threshold is empirical, and held out because distances of
    the very completions that m and S were fitted to are too small. After MOP (arXiv:2510.13694). It
    stayed at 1 % throughout in runs whose gold collapsed: silence says nothing.

    Args:
        features: (N, D) of the policy's completions.
        prompts: (N,) their prompts.
        reference_features: (M, D) of reference completions that m and S are fitted to.
        held_out_features: (H, D) of others, a few hundred at least, that set the threshold; taken
            as known.
        shrinkage: As `mahalanobis_distances`.

    Raises:
        ValueError: As `mahalanobis_distances`.
    """
    held_out = mahalanobis_distances(held_out_features, reference_features, shrinkage=shrinkage)
    distances = mahalanobis_distances(features, reference_features, shrinkage=shrinkage)
    return clustered_share(distances > np.quantile(held_out, OUTLIER_QUANTILE), prompts)


def tail_index(values: ArrayLike, num_largest: int) -> float:
    """Hill's k / sum_{i <= k} log(x_(i) / x_(k+1)): a Pareto's exponent, relative SE 1/sqrt(k).

    Small is heavy: a proxy whose error has a heavier tail than gold can be optimised without any
    gold gain at vanishing KL (Kwa et al. 2024, arXiv:2407.14503). Meaningless after bounded
    shaping. Light tails have no index, and the estimate rises without end as k falls (200,000
    lognormal values: about 2.1, 2.9 and 3.6 at k = 20,000, 2000 and 200): compare several k. The SE
    holds for independent values.

    Args:
        values: (N,) centred scores, or score less gold in gold units.
        num_largest: k, the order statistics used; the (k+1)-th must be positive.

    Raises:
        ValueError: If k is out of range, a value is not finite, or the threshold is not positive.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or not 1 <= num_largest < values.size:
        raise ValueError(
            f"got values {values.shape} and num_largest {num_largest}, expected finite (N,) and "
            "1 to N - 1"
        )
    largest = np.sort(np.partition(values, values.size - num_largest - 1)[-num_largest - 1 :])
    if largest[0] <= 0:
        raise ValueError(f"the threshold is {largest[0]}, expected a positive one: lower k")
    excess = float(np.log(largest[1:] / largest[0]).sum())
    return num_largest / excess if excess > 0 else float("inf")
