"""Splits the accuracy on preference pairs by margin, length difference, subset or any column.

Within a group prompts weigh the same, and intervals are clustered by prompt. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_share, wilson_interval
from hf_align.types import Estimate


@dataclass(frozen=True)
class AccuracyGroup:
    """Accuracy among the pairs that have something in common.

    Attributes:
        label: The group's name, or the range of its values.
        center: Mean of its values; None for a named group.
        accuracy: Share of its pairs ordered correctly.
        count: Pairs.
    """

    label: str
    center: float | None
    accuracy: Estimate
    count: int


def accuracy_by_group(
    correct: ArrayLike, groups: ArrayLike, prompts: ArrayLike
) -> list[AccuracyGroup]:
    """Accuracy in each group of pairs, such as the subsets named in a column.

    Many small groups spread by chance: compare their intervals, not their order.

    Args:
        correct: (N,) 1 where the pair is ordered correctly, 0 where not, 0.5 for a tie.
        groups: (N,) the group of each pair: strings or integers.
        prompts: (N,) the prompt of each pair.

    Returns:
        One entry per distinct group, in sorted order.

    Raises:
        ValueError: If shapes differ, or `correct` is NaN or outside [0, 1].
    """
    correct, groups, prompts = np.asarray(correct, float), np.asarray(groups), np.asarray(prompts)
    if not correct.shape == groups.shape == prompts.shape or correct.ndim != 1:
        raise ValueError(
            f"got correct {correct.shape}, groups {groups.shape} and prompts {prompts.shape}, "
            "expected (N,)"
        )
    if not ((correct >= 0) & (correct <= 1)).all():
        raise ValueError("correct has values outside [0, 1] or NaN")
    result = []
    for group in np.unique(groups):
        inside = groups == group
        accuracy = accuracy_estimate(correct[inside], prompts[inside])
        result.append(AccuracyGroup(str(group), None, accuracy, int(inside.sum())))
    return result


def accuracy_by_value(
    correct: ArrayLike,
    values: ArrayLike,
    prompts: ArrayLike,
    *,
    edges: ArrayLike | None = None,
    num_bins: int = 8,
    symmetric: bool = False,
) -> list[AccuracyGroup]:
    """Accuracy in ranges of a number, such as a margin or a difference of lengths.

    Args:
        correct: (N,) as `accuracy_by_group`.
        values: (N,) the number of each pair.
        prompts: (N,) the prompt of each pair.
        edges: Ascending cuts between the ranges; a value on a cut belongs to the range above it.
            None for ranges of about equal mass; equal values stay together.
        num_bins: Ranges of equal mass; ignored with `edges`.
        symmetric: Ranges of equal mass of |value|, num_bins / 2 on each side and 0 by itself: for
            differences whose sign matters.

    Returns:
        One entry per range that has pairs, ascending, labelled "smallest to largest" value.

    Raises:
        ValueError: If a value is NaN or infinite, or as `accuracy_by_group`.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("values must be (N,) without NaN or infinite ones")
    if edges is not None:
        bins = np.searchsorted(np.asarray(edges, float), values, side="right")
    elif symmetric:
        bins = np.sign(values) * (1 + equal_mass_bins(np.abs(values), num_bins // 2))
    else:
        bins = equal_mass_bins(values, num_bins)
    groups = accuracy_by_group(correct, bins, prompts)
    result = []
    for group, k in zip(groups, np.unique(bins), strict=True):
        inside = values[bins == k]
        low, high = (f"{x:.3g}".replace("-", "−") for x in (inside.min(), inside.max()))
        label = low if low == high else f"{low} to {high}"
        result.append(AccuracyGroup(label, float(inside.mean()), group.accuracy, group.count))
    return result


def equal_mass_bins(values: np.ndarray, num_bins: int) -> np.ndarray:
    """(N,) bin of each value, 0 to at most num_bins - 1, none empty; equal values share a bin."""
    if num_bins < 1:
        raise ValueError(f"got num_bins {num_bins}, expected at least 1")
    # A quantile that is a data point opens its bin: "higher" makes every cut a data point.
    cuts = np.quantile(values, np.arange(1, num_bins) / num_bins, method="higher")
    bins = np.searchsorted(np.unique(cuts), values, side="right")
    return np.unique(bins, return_inverse=True)[1]


def accuracy_estimate(values: ArrayLike, prompts: ArrayLike) -> Estimate:
    """`clustered_share`; where all agree, and resampling shows no spread, Wilson over prompts."""
    share = clustered_share(values, prompts)
    if share.value in (0.0, 1.0):
        return wilson_interval(round(share.value * share.n), share.n)
    return share
