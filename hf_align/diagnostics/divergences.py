"""Measures of distance from the reference besides KL: chi-square, effective sample size, entropy.

And the gold gain that chi-square and the proxy's gain together guarantee. `chi_square` says when a
sample is too small to tell. Pure numpy; `kl` has the KL.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_mean, prompt_means
from hf_align.types import Estimate

MAX_WEIGHT_SHARE = 0.2
"""One completion that carries more than this share of the sum decides it: nothing is reported."""

_LARGEST_LOG = 700.0  # exp beyond this overflows a double


@dataclass(frozen=True)
class ChiSquare:
    """Chi-square divergence of the policy from the reference, or why there is none.

    Attributes:
        meaningful: Whether the sample can tell; otherwise both estimates are None.
        value: E_policy[policy / reference] - 1, no unit.
        effective_share: 1 / (1 + value): the share of a reference sample that would be left after
            reweighting it to the policy.
        largest_weight: Share of the sum carried by its largest term.
        text: One sentence.
    """

    meaningful: bool
    value: Estimate | None
    effective_share: Estimate | None
    largest_weight: float
    text: str


def chi_square(log_ratios: ArrayLike, prompts: ArrayLike) -> ChiSquare:
    """chi2 = E_policy[pi(y|x) / ref(y|x)] - 1 from the policy's own completions.

    The terms have a heavy tail, and beyond a KL of about 2 nats a sample misses the completions
    that make up the mean: the estimate is then too small, or one lucky draw. Where a single one
    carries over 20 % of the sum the result says so instead of giving a number. A passed check does
    not make a small sample large. Laidlaw et al. 2024, arXiv:2403.03185; Huang et al. 2024,
    arXiv:2407.13399.

    Args:
        log_ratios: (N,) log pi - log ref of each completion, summed over its tokens, nats.
        prompts: (N,) the prompt of each; prompts weigh the same.

    Raises:
        ValueError: If shapes differ or a value is NaN or infinite.
    """
    log_ratios, prompts = np.asarray(log_ratios, float), np.asarray(prompts)
    prompt_means(log_ratios, prompts)  # raises on bad shapes or values
    _, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    log_terms = log_ratios - np.log(counts[inverse])
    peak = float(log_terms.max())
    largest = float(1 / np.exp(log_terms - peak).sum())
    if largest > MAX_WEIGHT_SHARE or log_ratios.max() > _LARGEST_LOG:
        reason = f"one of {log_ratios.size} completions carries {largest:.0%} of the sum"
        if largest <= MAX_WEIGHT_SHARE:
            reason = f"the policy is {log_ratios.max():.0f} nats from the reference"
        text = f"chi-square is not meaningful here: {reason}."
        return ChiSquare(False, None, None, largest, text)
    value = clustered_mean(np.expm1(log_ratios), prompts)
    ends = (None if x is None else 1 / (1 + x) for x in (value.high, value.low))
    share = Estimate(1 / (1 + value.value), *ends, value.n)
    text = f"chi-square is {value.value:.3g}; effective share {share.value:.2g}."
    return ChiSquare(True, value, share, largest, text)


def chi_square_certificate(
    proxy_gain: ArrayLike, chi_square: ArrayLike, correlation: float
) -> np.ndarray:
    """Lower bound on the gold gain in gold SDs: [g - sqrt((1 - r^2) chi2)] / r.

    On the reference the proxy is r x gold + sqrt(1 - r^2) x error, all in SDs, error uncorrelated
    with gold. By Cauchy and Schwarz no policy gains more than sqrt(chi2) SDs of error; what is left
    of the proxy's gain must be gold (Laidlaw et al. 2024, arXiv:2403.03185). It holds for every
    policy and is therefore weak: for r = 0.5 it is negative almost at once, of use from about
    r = 0.9. A negative bound is no evidence of harm. r, g and chi2 are taken as known.

    Args:
        proxy_gain: Proxy gain over the reference in SDs of the proxy on the reference, any shape.
        chi_square: Chi-square divergence of the policy, the same shape.
        correlation: r of proxy and gold on the reference, above 0.

    Raises:
        ValueError: If the correlation is not in (0, 1] or a chi-square is negative.
    """
    proxy_gain, chi_square = np.asarray(proxy_gain, float), np.asarray(chi_square, float)
    if not 0 < correlation <= 1 or not (chi_square >= 0).all():
        raise ValueError(
            f"got correlation {correlation} and chi_square {chi_square}, expected a correlation in "
            "(0, 1] and chi_square >= 0"
        )
    return (proxy_gain - np.sqrt((1 - correlation**2) * chi_square)) / correlation


def token_entropy(log_probs: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """Mean over tokens of -sum_v pi(v) log pi(v), nats per token; log V for a uniform policy.

    It need not fall while a policy is over-optimised, and a mean over tokens mixes lengths.
    `logps.score_samples` computes the same from models.

    Args:
        log_probs: (B, T, V) normalised log-probabilities, nats; -inf for impossible tokens.
        mask: (B, T) 1 on completion tokens including EOS, at least one per row.

    Returns:
        (B,) nats per token.

    Raises:
        ValueError: If the shapes disagree or a row has no token.
    """
    log_probs, keep = np.asarray(log_probs, dtype=np.float64), np.asarray(mask).astype(bool)
    if log_probs.ndim != 3 or log_probs.shape[:2] != keep.shape:
        raise ValueError(
            f"got log_probs {log_probs.shape} and mask {keep.shape}, expected (B, T, V) and (B, T)"
        )
    emitted = keep[:, :, None] & (log_probs > -np.inf)
    terms = np.where(emitted, np.exp(np.where(emitted, log_probs, 0)), 0)
    return -(terms * np.where(emitted, log_probs, 0)).sum(axis=(1, 2)) / _lengths(keep)


def reference_nll(ref_logps: ArrayLike, mask: ArrayLike) -> np.ndarray:
    """-sum_t mask log ref / sum_t mask, nats per token: how odd the reference finds a completion.

    On the policy's completions its mean less the policy's entropy is the KL per token, exactly so
    for completions of one length. It moves like the KL and needs no policy logits; it rises also
    where gold does.

    Args:
        ref_logps: (B, T) log-probability of each sampled token under the reference, nats.
        mask: (B, T) 1 on completion tokens including EOS, at least one per row.

    Returns:
        (B,) nats per token.

    Raises:
        ValueError: If the shapes disagree or a row has no token.
    """
    ref_logps, keep = np.asarray(ref_logps, dtype=np.float64), np.asarray(mask).astype(bool)
    if ref_logps.ndim != 2 or ref_logps.shape != keep.shape:
        raise ValueError(f"got ref_logps {ref_logps.shape} and mask {keep.shape}, expected (B, T)")
    return -np.where(keep, ref_logps, 0.0).sum(axis=1) / _lengths(keep)


def _lengths(keep: np.ndarray) -> np.ndarray:
    lengths = keep.sum(axis=1)
    if not lengths.all():
        raise ValueError(f"row {int(np.argmin(lengths))} of the mask keeps no token")
    return lengths
