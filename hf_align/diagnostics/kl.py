"""Estimates KL(policy || reference) of sampled completions, in nats, summed over the tokens.

Per completion, EOS included; the mean over prompts is the sequence KL. `rao_blackwell` is the value
to report, `k1` its cross-check: both are unbiased only when the completions were sampled from the
very distribution that scores them, and `check_consistency` tests that. Pure numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_mean, prompt_means, standard_error
from hf_align.types import Estimate

MAX_CONSISTENT_Z = 4.0
"""|z| beyond this fails the sampler/scorer check."""

ROUNDING_NATS = 1e-6
"""Differences of mean KL below this are float32 rounding, not evidence."""


def k1(logps: ArrayLike, ref_logps: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """k1 = sum_t mask (log pi - log ref): unbiased, but single estimates can be negative.

    Between two unit Gaussians its variance is 2 KL. Schulman,
    http://joschu.net/blog/kl-approx.html.

    Args:
        logps: (B, T) log-probability of each sampled token under the policy, nats.
        ref_logps: (B, T) the same under the reference.
        mask: (B, T) 1 on completion tokens including EOS; elsewhere the values are ignored.

    Returns:
        (B,) nats per completion.
    """
    return _masked_sum(lambda log_ratio: log_ratio, logps, ref_logps, mask)


def k2(logps: ArrayLike, ref_logps: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """k2 = sum_t mask (log pi - log ref)^2 / 2: biased, 1.25 KL at KL 0.5.

    For comparison with other tools only.
    Arguments and result as `k1`.
    """
    return _masked_sum(lambda log_ratio: log_ratio**2 / 2, logps, ref_logps, mask)


def k3(logps: ArrayLike, ref_logps: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """k3 = sum_t mask (ref/pi - 1 - log(ref/pi)): unbiased, never negative, variance like e^(2 KL).

    Arguments and result as `k1`.
    """
    return _masked_sum(lambda log_ratio: np.expm1(-log_ratio) + log_ratio, logps, ref_logps, mask)


def rao_blackwell(log_probs: ArrayLike, ref_log_probs: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """sum_t mask sum_v pi(v) (log pi(v) - log ref(v)): each step's full KL on sampled prefixes.

    Unbiased, never negative, variance at most k1's (Amini et al. 2025, arXiv:2504.10637). Tokens
    that the policy cannot emit (log-probability -inf) contribute 0, also where the reference cannot
    either.

    Args:
        log_probs: (B, T, V) normalised log-probabilities of the policy, nats.
        ref_log_probs: (B, T, V) the same of the reference.
        mask: (B, T) 1 on completion tokens including EOS; elsewhere the values are ignored.

    Returns:
        (B,) nats per completion.

    Raises:
        ValueError: If the shapes disagree.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    ref_log_probs = np.asarray(ref_log_probs, dtype=np.float64)
    mask = np.asarray(mask).astype(bool)
    if log_probs.shape != ref_log_probs.shape or log_probs.shape[:2] != mask.shape:
        raise ValueError(
            f"got log_probs {log_probs.shape}, ref_log_probs {ref_log_probs.shape}, "
            f"mask {mask.shape}, expected (B, T, V), (B, T, V), (B, T)"
        )
    emitted = mask[:, :, None] & (log_probs > -np.inf)
    log_probs = np.where(emitted, log_probs, -np.inf)
    log_ratio = np.where(emitted, log_probs, 0) - np.where(emitted, ref_log_probs, 0)
    return (np.exp(log_probs) * log_ratio).sum(axis=(1, 2))


def consistency_z(k1: ArrayLike, rao_blackwell: ArrayLike, prompts: ArrayLike) -> float:
    """z = mean(k1 - RB) / SE, clustered by prompt: N(0, 1) if the scorer is the sampler.

    It diverges when a token was masked, tempered or truncated away in sampling but not in scoring,
    or the reverse. Mean differences below 1e-6 nats are rounding and give 0.

    Args:
        k1: (N,) k1 per completion.
        rao_blackwell: (N,) Rao-Blackwell KL per completion.
        prompts: (N,) the prompt of each completion.

    Raises:
        ValueError: With fewer than two prompts, or on NaN or infinite values.
    """
    difference = np.asarray(k1, dtype=np.float64) - np.asarray(rao_blackwell, dtype=np.float64)
    error = standard_error(difference, prompts)
    mean = float(prompt_means(difference, prompts).mean())
    if abs(mean) < ROUNDING_NATS:
        return 0.0
    return mean / error if error > 0 else math.copysign(math.inf, mean)


@dataclass(frozen=True)
class ConsistencyCheck:
    """Whether the scorer's distribution is the one that was sampled from.

    Attributes:
        consistent: |z| <= 4 and mean k1 >= -3 SE (a KL is never negative).
        z: `consistency_z`.
        k1: Sequence KL by k1, nats.
        rao_blackwell: Sequence KL by Rao-Blackwell, nats.
    """

    consistent: bool
    z: float
    k1: Estimate
    rao_blackwell: Estimate


def check_consistency(
    k1: ArrayLike, rao_blackwell: ArrayLike, prompts: ArrayLike
) -> ConsistencyCheck:
    """Cross-checks the two KL estimates of the same completions.

    Arguments and errors as `consistency_z`.
    """
    z = consistency_z(k1, rao_blackwell, prompts)
    k1_estimate = clustered_mean(k1, prompts)
    floor = -3 * standard_error(k1, prompts) - ROUNDING_NATS
    return ConsistencyCheck(
        consistent=abs(z) <= MAX_CONSISTENT_Z and k1_estimate.value >= floor,
        z=z,
        k1=k1_estimate,
        rao_blackwell=clustered_mean(rao_blackwell, prompts),
    )


def _masked_sum(estimator, logps: ArrayLike, ref_logps: ArrayLike, mask: ArrayLike) -> np.ndarray:
    logps = np.asarray(logps, dtype=np.float64)
    ref_logps = np.asarray(ref_logps, dtype=np.float64)
    keep = np.asarray(mask).astype(bool)
    if not logps.shape == ref_logps.shape == keep.shape or keep.ndim != 2:
        raise ValueError(
            f"got logps {logps.shape}, ref_logps {ref_logps.shape}, "
            f"mask {keep.shape}, expected (B, T)"
        )
    # Padding may hold -inf or NaN: it is replaced before the arithmetic, not multiplied by 0 after.
    log_ratio = np.where(keep, logps, 0.0) - np.where(keep, ref_logps, 0.0)
    return estimator(log_ratio).sum(axis=1)
