"""Fits gold against the distance from the reference by the two laws of Gao et al. (2022).

With d = sqrt(KL): R = d (alpha - beta d) for best-of-n, R = d (alpha - beta log d) for RL. A fit
describes the range it was fitted on; whether gold dropped is for `overoptimization.verdict` to say.
Pure numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_statistics
from hf_align.types import Estimate

Form = Literal["best_of_n", "rl"]

MIN_RL_DISTANCE = 0.15
"""The RL law is infinitely steep at 0: nearer points are left out of its fit."""

_INTEGRATION_STEPS = 4096


@dataclass(frozen=True)
class ScalingLaw:
    """One law: R(d) = d (alpha - beta d) or d (alpha - beta log d), in units of R.

    Attributes:
        form: "best_of_n" or "rl".
        alpha: Gain per unit of d at the start, R per sqrt(nat).
        beta: What takes it back.
    """

    form: Form
    alpha: float
    beta: float

    def __call__(self, sqrt_kl: ArrayLike) -> np.ndarray:
        """R at the given distances, sqrt(nats), any shape; 0 at 0."""
        return _design(self.form, np.asarray(sqrt_kl, float)) @ np.array([self.alpha, self.beta])

    @property
    def peak(self) -> tuple[float, float] | None:
        """(d*, R*) anywhere, seen or extrapolated; None where the law has no maximum.

        d* = alpha / 2 beta and R* = alpha^2 / 4 beta; d* = exp(alpha/beta - 1) and R* = beta d*.
        """
        if self.beta <= 0 or (self.form == "best_of_n" and self.alpha <= 0):
            return None
        exponent = self.alpha / self.beta - 1
        if self.form == "rl" and exponent > 700:
            return None  # as good as never, and beyond a double
        d = self.alpha / (2 * self.beta) if self.form == "best_of_n" else math.exp(exponent)
        return d, float(self(d))


@dataclass(frozen=True)
class ScalingLawFit:
    """A fitted law and how far it can be trusted.

    Attributes:
        law: The fitted law.
        r_squared: 1 - weighted squared residuals / weighted squared deviations from the mean.
        peak: (d*, R*) where d* lies within the fitted distances, else None.
        nearest: Smallest distance fitted, sqrt(nats).
        farthest: Largest.
    """

    law: ScalingLaw
    r_squared: float
    peak: tuple[float, float] | None
    nearest: float
    farthest: float


def fit_scaling_law(
    form: Form,
    sqrt_kl: ArrayLike,
    gains: ArrayLike,
    standard_errors: ArrayLike | None = None,
) -> ScalingLawFit:
    """Fits one law to a curve by linear least squares on [d, -d^2] or [d, -d log d].

    Weights 1/SE^2. alpha and beta are strongly correlated, beta can come out negative on a rising
    curve, and a law that does not hold moves its peak (in a world that peaks at d = 1.18 the
    best-of-n law put it at 0.96): a peak is given only inside the data. A high R^2 does not
    make the extrapolation true. Gao et al. 2022, arXiv:2210.10760, section 3.1.

    Args:
        form: "best_of_n" or "rl"; "rl" leaves out d < 0.15.
        sqrt_kl: (C,) distances d = sqrt(sequence KL), sqrt(nats).
        gains: (C,) gold or proxy less its mean on the base policy, so that R(0) = 0.
        standard_errors: (C,) of the gains, in their unit; None weighs all alike.

    Raises:
        ValueError: If shapes differ, a value is not finite, a standard error is not positive, or
            fewer than three distances are left, or two distinct ones.
    """
    d, gains = np.asarray(sqrt_kl, float), np.asarray(gains, float)
    errors = np.ones_like(d) if standard_errors is None else np.asarray(standard_errors, float)
    if not d.shape == gains.shape == errors.shape or d.ndim != 1:
        raise ValueError(
            f"got sqrt_kl {d.shape}, gains {gains.shape} and standard_errors {errors.shape}, "
            "expected (C,)"
        )
    kept = _fitted(form, d)
    if not (np.isfinite(d) & np.isfinite(gains)).all() or not (errors[kept] > 0).all():
        raise ValueError("sqrt_kl and gains must be finite and standard_errors positive")
    d, gains, weights = d[kept], gains[kept], 1 / errors[kept] ** 2
    alpha, beta = _solver(form, d, weights) @ gains
    law = ScalingLaw(form, float(alpha), float(beta))
    return _described(law, d, gains, weights)


@dataclass(frozen=True)
class ClusteredFit:
    """A law fitted to per-prompt curves, with intervals clustered by prompt.

    Attributes:
        fit: The fit to the mean curve.
        alpha: Its alpha.
        beta: Its beta.
        peak_distance: d*, None where the fit has no peak within the data. Resamples that peak
            beyond the data count as its end, so an interval that ends there is open.
    """

    fit: ScalingLawFit
    alpha: Estimate
    beta: Estimate
    peak_distance: Estimate | None


def fit_clustered_scaling_law(
    form: Form,
    sqrt_kl: ArrayLike,
    values: ArrayLike,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> ClusteredFit:
    """`fit_scaling_law` of per-prompt curves; the whole curve is resampled by prompt.

    Args:
        form: "best_of_n" or "rl".
        sqrt_kl: (C,) distances, the base policy (0) first.
        values: (C, G) mean gold or proxy per checkpoint (or n) and prompt. The first row is
            subtracted from all; weights are 1/SE^2 of these paired differences.
        num_resamples: Bootstrap resamples of the prompts.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If the first distance is not 0, or as `fit_scaling_law`.
    """
    d, values = np.asarray(sqrt_kl, float), np.asarray(values, float)
    if values.ndim != 2 or d.shape != values.shape[:1] or not np.isfinite(values).all():
        raise ValueError(f"got sqrt_kl {d.shape} and values {values.shape}, expected finite (C, G)")
    if d.size == 0 or d[0] != 0 or values.shape[1] < 2:
        raise ValueError("expected the base policy at distance 0 first, and at least 2 prompts")
    gains = (values - values[0]).T  # (G, C)
    kept = _fitted(form, d)
    errors = gains.std(axis=0, ddof=1) / math.sqrt(len(gains))
    fit = fit_scaling_law(form, d, gains.mean(axis=0), np.where(kept, errors, 1.0))
    d, gains = d[kept], gains[:, kept]
    solver = _solver(form, d, 1 / errors[kept] ** 2)

    def coefficients(sums: np.ndarray) -> np.ndarray:
        fitted = sums[:, :-1] / sums[:, -1:] @ solver.T
        return np.column_stack([fitted, _peak_within(form, fitted, fit.farthest)])

    sums = np.column_stack([gains, np.ones(len(gains))])
    alpha, beta, peak = clustered_statistics(
        sums, coefficients, num_resamples=num_resamples, seed=seed
    )
    return ClusteredFit(fit, alpha, beta, None if fit.peak is None else peak)


def area_gap(gold: ScalingLaw, proxy: ScalingLaw, farthest: float) -> float | None:
    """integral of |gold - proxy| / integral of gold, from 0 to `farthest`: 0 where they agree.

    How much of what the proxy promises is not there (Kim et al. 2025, arXiv:2505.12763). Both laws
    must be in gold units: calibrate the proxy first, or the gap measures its scale. None where the
    gold area is at most a thousandth of the gap's: the ratio has no meaning there.

    Args:
        gold: Law fitted to gold.
        proxy: Law fitted to the calibrated proxy.
        farthest: Upper limit, sqrt(nats); within the fitted distances.

    Raises:
        ValueError: If the limit is not positive.
    """
    if not farthest > 0:
        raise ValueError(f"got farthest {farthest}, expected a positive distance")
    # Midpoints of equal steps in sqrt(d): the RL law is steep at 0.
    edges = farthest * np.linspace(0, 1, _INTEGRATION_STEPS + 1) ** 2
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    gap = float(widths @ np.abs(gold(middles) - proxy(middles)))
    area = float(widths @ gold(middles))
    if gap == 0:
        return 0.0
    return gap / area if area > 1e-3 * gap else None


def _design(form: Form, d: np.ndarray) -> np.ndarray:
    """(..., 2) columns whose product with (alpha, beta) is R."""
    if form not in ("best_of_n", "rl"):
        raise ValueError(f"got form {form!r}, expected 'best_of_n' or 'rl'")
    if (d < 0).any():
        raise ValueError("sqrt_kl must not be negative")
    bent = d**2 if form == "best_of_n" else d * np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -bent], axis=-1)


def _fitted(form: Form, d: np.ndarray) -> np.ndarray:
    """(C,) which distances take part: the base policy itself, at 0, tells nothing."""
    kept = d >= MIN_RL_DISTANCE if form == "rl" else d > 0
    if kept.sum() < 3 or np.unique(d[kept]).size < 2:
        raise ValueError(
            f"got {int(kept.sum())} usable distances, expected at least 3, not all alike"
        )
    return kept


def _solver(form: Form, d: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(2, C) matrix that maps gains to (alpha, beta)."""
    root = np.sqrt(weights)
    return np.linalg.pinv(_design(form, d) * root[:, None]) * root


def _described(
    law: ScalingLaw, d: np.ndarray, gains: np.ndarray, weights: np.ndarray
) -> ScalingLawFit:
    mean = float(weights @ gains / weights.sum())
    spread = float(weights @ (gains - mean) ** 2)
    rest = float(weights @ (gains - law(d)) ** 2)
    nearest, farthest, peak = float(d.min()), float(d.max()), law.peak
    inside = peak is not None and nearest <= peak[0] <= farthest
    r_squared = 1 - rest / spread if spread > 0 else math.nan
    return ScalingLawFit(law, r_squared, peak if inside else None, nearest, farthest)


def _peak_within(form: Form, coefficients: np.ndarray, farthest: float) -> np.ndarray:
    """(R,) d* of each row's law, cut to [0, farthest]; a law without a peak rises to the end."""
    alpha, beta = coefficients.T
    bends = beta > 0
    ratio = np.where(bends, alpha, 0) / np.where(bends, beta, 1)
    d = ratio / 2 if form == "best_of_n" else np.exp(np.minimum(ratio - 1, 700))
    return np.where(bends, np.clip(d, 0, farthest), farthest)
