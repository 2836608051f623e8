"""Measures how far the members of a reward-model ensemble disagree, in and out of distribution.

Herding members can agree while all are wrong (Eisenstein et al. 2023, arXiv:2312.09244): large
disagreement is a reason for doubt, small disagreement is no reason for trust. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_mean, clustered_share
from hf_align.types import Estimate


def disagreement(member_scores: ArrayLike, *, offsets: ArrayLike | None = None) -> np.ndarray:
    """Standard deviation over members of their centred scores, ddof 1, score units.

    A score has no zero of its own, so every member is centred first. Members with independent
    errors of variance s^2 have E[sd^2] = s^2. Members on different scales disagree by scale alone:
    normalise them before. Coste et al. 2023, arXiv:2310.02743.

    Args:
        member_scores: (k, N) score of every completion by every member.
        offsets: (k,) what is subtracted from each member; None for its mean over these completions.
            To compare two sets of completions subtract the same offsets from both, or a shift that
            one member sees is lost.

    Returns:
        (N,) disagreement per completion.

    Raises:
        ValueError: With fewer than two members, on NaN or infinite scores, or wrong shapes.
    """
    scores = _checked(member_scores)
    offsets = scores.mean(axis=1) if offsets is None else np.asarray(offsets, dtype=np.float64)
    if offsets.shape != scores.shape[:1]:
        raise ValueError(f"got offsets {offsets.shape}, expected ({len(scores)},)")
    return (scores - offsets[:, None]).std(axis=0, ddof=1)


@dataclass(frozen=True)
class DisagreementComparison:
    """Disagreement on two sets of completions, in SDs of the ensemble's mean score.

    Attributes:
        inside: Mean disagreement on completions like the training data.
        outside: Mean disagreement on the others, such as a policy's.
        outlying: Share of the others whose disagreement exceeds 99 % of those inside; about 0.01
            where both sets are alike.
    """

    inside: Estimate
    outside: Estimate
    outlying: Estimate


def compare_disagreement(
    inside_scores: ArrayLike,
    inside_prompts: ArrayLike,
    outside_scores: ArrayLike,
    outside_prompts: ArrayLike,
) -> DisagreementComparison:
    """Disagreement in and out of distribution: both centred and scaled by the set inside.

    The 99 % quantile is the empirical one inside and takes a few hundred completions to be stable.

    Args:
        inside_scores: (k, N) member scores of completions like the training data.
        inside_prompts: (N,) their prompts.
        outside_scores: (k, M) member scores of the others, members in the same order.
        outside_prompts: (M,) their prompts.

    Raises:
        ValueError: If the numbers of members differ, the mean score inside is constant, or as
            `disagreement`.
    """
    inside_scores, outside_scores = _checked(inside_scores), _checked(outside_scores)
    if len(inside_scores) != len(outside_scores):
        raise ValueError(
            f"got {len(inside_scores)} members inside and {len(outside_scores)} outside, "
            "expected the same members"
        )
    scale = float(inside_scores.mean(axis=0).std())
    if scale == 0:
        raise ValueError("the ensemble gives every completion inside the same score")
    offsets = inside_scores.mean(axis=1)
    inside = disagreement(inside_scores, offsets=offsets) / scale
    outside = disagreement(outside_scores, offsets=offsets) / scale
    beyond = outside > np.quantile(inside, 0.99)
    return DisagreementComparison(
        inside=clustered_mean(inside, inside_prompts),
        outside=clustered_mean(outside, outside_prompts),
        outlying=clustered_share(beyond, outside_prompts),
    )


def _checked(member_scores: ArrayLike) -> np.ndarray:
    scores = np.asarray(member_scores, dtype=np.float64)
    if scores.ndim != 2 or len(scores) < 2 or scores.shape[1] == 0:
        raise ValueError(f"got member_scores {scores.shape}, expected (k, N) with k >= 2, N >= 1")
    bad = int(np.count_nonzero(~np.isfinite(scores)))
    if bad:
        raise ValueError(f"{bad} of {scores.size} member scores are NaN or infinite")
    return scores
