"""Combines the scores of an ensemble's members into one score per completion, in numpy.

Every function takes scores of shape (k, N), members by completions, and returns (N,). The scale of
a Bradley–Terry score is arbitrary, so members are brought to one scale first (`standardised`, or
members whose heads `normalise` has already scaled).
"""

from __future__ import annotations

import numpy as np

from hf_align.types import InputError

COMBINATIONS = ("mean", "worst_case", "uncertainty_weighted", "lower_confidence_bound")
"""The names that `combined` and `ensemble.json` know."""


def mean(scores: np.ndarray) -> np.ndarray:
    """The members' mean, (N,): lowers the variance of the score, keeps what all members share.

    Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization",
    https://arxiv.org/abs/2310.02743

    Raises:
        InputError: The scores are not (k, N) with k ≥ 1.
    """
    return _members(scores).mean(axis=0)


def worst_case(scores: np.ndarray) -> np.ndarray:
    """Worst-case optimisation, WCO: min over members, (N,); never above the mean.

    No weight to choose, but one bad member decides. Coste et al. 2023,
    https://arxiv.org/abs/2310.02743

    Raises:
        InputError: The scores are not (k, N) with k ≥ 1.
    """
    return _members(scores).min(axis=0)


def uncertainty_weighted(scores: np.ndarray, coefficient: float) -> np.ndarray:
    """Uncertainty-weighted optimisation, UWO: mean − λ · variance over members, (N,).

    The variance divides by k (ddof = 0) and has the square of the score's unit, so λ depends on
    the scale: standardise first. Coste et al. 2023 use λ = 0.5 for best-of-n and 0.1 for PPO,
    https://arxiv.org/abs/2310.02743. λ = 0 is the mean.

    Args:
        scores: (k, N).
        coefficient: λ ≥ 0.

    Raises:
        InputError: λ is negative or no number, or the scores are not (k, N) with k ≥ 1.
    """
    _check_weight("coefficient", coefficient)
    scores = _members(scores)
    return scores.mean(axis=0) - coefficient * scores.var(axis=0)


def lower_confidence_bound(scores: np.ndarray, z: float) -> np.ndarray:
    """Lower confidence bound: mean − z · standard deviation over members, (N,).

    In the score's own unit, so unlike UWO it commutes with a common rescaling of the members. The
    deviation divides by k (ddof = 0): with two members z = 1 is the worst case. Auer 2002, "Using
    Confidence Bounds for Exploitation-Exploration Trade-offs",
    https://www.jmlr.org/papers/v3/auer02a.html

    Args:
        scores: (k, N).
        z: Deviations to stay below the mean, ≥ 0.

    Raises:
        InputError: z is negative or no number, or the scores are not (k, N) with k ≥ 1.
    """
    _check_weight("z", z)
    scores = _members(scores)
    return scores.mean(axis=0) - z * scores.std(axis=0)


def standardised(scores: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Each member on its own reference scale: (s_k − mean_k) / sd_k, (k, N).

    Args:
        scores: (k, N).
        mean: (k,) each member's mean on reference completions common to all.
        sd: (k,) each member's standard deviation there.

    Raises:
        InputError: Not one mean and one positive deviation per member.
    """
    scores = _members(scores)
    mean, sd = np.asarray(mean, dtype=float), np.asarray(sd, dtype=float)
    if mean.shape != (len(scores),) or sd.shape != (len(scores),):
        raise InputError(
            f"got means of shape {mean.shape} and deviations of shape {sd.shape} for "
            f"{len(scores)} members; give one of each per member"
        )
    if not (np.isfinite(mean).all() and np.isfinite(sd).all() and (sd > 0).all()):
        raise InputError(
            f"members have means {mean.tolist()} and deviations {sd.tolist()} on the reference "
            "completions; a member that scores everything alike cannot be standardised"
        )
    return (scores - mean[:, None]) / sd[:, None]


def combined(scores: np.ndarray, how: str, coefficient: float = 0.5, z: float = 1.0) -> np.ndarray:
    """The combination that `how` names, (N,).

    Args:
        scores: (k, N).
        how: One of `COMBINATIONS`.
        coefficient: λ of "uncertainty_weighted"; the others ignore it.
        z: Of "lower_confidence_bound"; the others ignore it.

    Raises:
        InputError: An unknown name, or what the combination itself refuses.
    """
    if how == "mean":
        return mean(scores)
    if how == "worst_case":
        return worst_case(scores)
    if how == "uncertainty_weighted":
        return uncertainty_weighted(scores, coefficient)
    if how == "lower_confidence_bound":
        return lower_confidence_bound(scores, z)
    raise InputError(f"combine is {how!r}; choose one of {', '.join(COMBINATIONS)}")


def _members(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or not len(scores):
        raise InputError(
            f"got scores of shape {scores.shape}, expected (members, completions) with a member"
        )
    return scores


def _check_weight(name: str, value: float) -> None:
    if not (np.isfinite(value) and value >= 0):
        raise InputError(f"{name} is {value}; give a number of at least 0")
