"""What another KL coefficient would have done, as far as one run's own curve can say.

A run without a penalty, or with a small one, is walked along; where its fitted proxy less
beta * KL would have been stationary, gold is read off. Said only within the audited distances.
Pure numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.scaling_laws import (
    MIN_RL_DISTANCE,
    ClusteredFit,
    Form,
    ScalingLaw,
    fit_clustered_scaling_law,
)
from hf_align.statistics import clustered_statistics
from hf_align.types import Estimate

MIN_R_SQUARED = 0.9
"""A law that explains less of a curve is not read off."""

_HALVINGS = 60


@dataclass(frozen=True)
class WhatIf:
    """The answer for one coefficient.

    Attributes:
        beta: KL coefficient, proxy score per nat.
        kl: Sequence KL at which proxy - beta KL is stationary, nats; None where it cannot be said.
        proxy: Fitted gain of the proxy there.
        gold: Fitted gain of gold there; None without a usable fit to gold.
        is_open: Whether the interval of the KL reaches an end of the audited range, so that the
            true one may lie partly beyond.
        why: Why something cannot be said, or what weakens it; empty where nothing does.
    """

    beta: float
    kl: Estimate | None = None
    proxy: Estimate | None = None
    gold: Estimate | None = None
    is_open: bool = False
    why: str = ""


@dataclass(frozen=True)
class Fits:
    """Gao's law of a run's proxy and of its gold, the better of the two forms each.

    Attributes:
        proxy: Fitted to the gain of the proxy; None where there are too few distances.
        gold: The same of gold; None without gold.
        nearest: Smallest distance that took part, sqrt(nats).
        farthest: Largest.
    """

    proxy: ClusteredFit | None
    gold: ClusteredFit | None
    nearest: float
    farthest: float


def stationary_distance(law: ScalingLaw, beta: float) -> float | None:
    """sqrt(KL) > 0 at which law(d) - beta d^2 has its maximum; None where it has none above 0.

    For R = d (a - b d) it is a / 2 (b + beta). For R = d (a - b log d) it solves
    a - b (log d + 1) = 2 beta d, and of two solutions (b < 0) the farther one is the maximum.

    Args:
        law: The proxy's law, score against sqrt(nats).
        beta: KL coefficient, score per nat, 0 or more.
    """
    found = _stationary(law.form, np.array([[law.alpha, law.beta]]), beta, math.inf)[0]
    return None if not 0 < found < math.inf else float(found)


def fit_curve(curve: Curve) -> Fits:
    """Both laws fitted to a run's gains, the one that explains more of each kept."""
    d = curve.sqrt_kl
    usable = d[d >= MIN_RL_DISTANCE]
    ends = (float(usable.min()), float(usable.max())) if usable.size else (0.0, 0.0)
    return Fits(_best_fit(curve, curve.proxy), _best_fit(curve, curve.gold), *ends)


def _best_fit(curve: Curve, values: np.ndarray | None) -> ClusteredFit | None:
    d = curve.sqrt_kl
    if values is None or values.shape[1] < 2:
        return None
    # Both forms on the same points: the RL law cannot use those next to the reference.
    kept = (d >= MIN_RL_DISTANCE) & (np.ptp(values - values[0], axis=1) > 0)
    if np.unique(d[kept]).size < 3:
        return None
    kept[0] = True
    fits = [
        fit_clustered_scaling_law(form, d[kept], values[kept], num_resamples=2)
        for form in ("rl", "best_of_n")
    ]
    return max(fits, key=lambda found: found.fit.r_squared)


def what_if(curve: Curve, beta: float, *, num_resamples: int = 2000, seed: int = 0) -> WhatIf:
    """Where a run with this KL coefficient would have come to rest, by another run's curve.

    The proxy's gain P and gold's R are fitted by Gao's laws in d = sqrt(KL); d* maximises
    P(d) - beta d^2 and R(d*) is read off. The interval resamples prompts, so it holds the sampling
    of prompts and not the choice of law, nor that a penalty may lead along another path.

    Args:
        curve: A run's audits, with its proxy.
        beta: KL coefficient, raw proxy score per nat.
        num_resamples: Bootstrap resamples of the prompts.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: The coefficient is negative or not finite.
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"got beta {beta}, expected 0 or more")
    fits = fit_curve(curve)
    why = _why_not(curve, fits)
    if why:
        return WhatIf(beta, why=why)
    uses_gold = fits.gold is not None and fits.gold.fit.r_squared >= MIN_R_SQUARED
    laws = [fits.proxy, *([fits.gold] if uses_gold else [])]
    gains = [curve.proxy, *([curve.gold] if uses_gold else [])]
    sums, solvers = _sums(curve, gains, laws)
    form, farthest = fits.proxy.fit.law.form, fits.farthest

    def read_off(total: np.ndarray) -> np.ndarray:
        mean = total[:, :-1] / total[:, -1:]
        width = mean.shape[1] // len(laws)
        coefs = [
            mean[:, i * width : (i + 1) * width] @ solver.T for i, solver in enumerate(solvers)
        ]
        d = _stationary(form, coefs[0], beta, farthest)
        read = [_value(law.fit.law.form, c, d) for law, c in zip(laws, coefs, strict=True)]
        return np.column_stack([d**2, *read, d])

    found = clustered_statistics(sums, read_off, num_resamples=num_resamples, seed=seed)
    distance = found[-1]
    refusal = _outside(distance.value, beta, fits)
    if refusal:
        return WhatIf(beta, why=refusal)
    is_open = distance.high is not None and (
        distance.high >= fits.farthest * (1 - 1e-9) or distance.low <= fits.nearest
    )
    why = "" if uses_gold else _no_gold(curve, fits)
    return WhatIf(beta, found[0], found[1], found[2] if uses_gold else None, is_open, why)


def _why_not(curve: Curve, fits: Fits) -> str:
    if curve.proxy is None:
        return (
            "This run recorded no proxy score, so there is nothing that a penalty would weigh "
            "against."
        )
    if fits.proxy is None:
        return "Too few audits away from the reference: a curve needs three at least."
    quality = fits.proxy.fit.r_squared
    if not quality >= MIN_R_SQUARED:
        return (
            f"Neither of Gao's laws describes this run's proxy (R² {quality:.2f}, below "
            f"{MIN_R_SQUARED:g}), so where a penalty would stop it cannot be read off."
        )
    return ""


def _outside(distance: float, beta: float, fits: Fits) -> str:
    if distance >= fits.farthest:
        return (
            f"At β = {beta:g} the optimum lies beyond the audited range, which ends at KL "
            f"{fits.farthest**2:.3g} nats; nothing is said about what was not measured. Try a "
            "larger β."
        )
    if distance <= fits.nearest:
        return (
            f"At β = {beta:g} the penalty outweighs the proxy before the first audit away from the "
            f"reference (KL {fits.nearest**2:.2g} nats); nothing is said about what was not "
            "measured. Try a smaller β."
        )
    return ""


def _no_gold(curve: Curve, fits: Fits) -> str:
    if curve.gold is None or fits.gold is None:
        return "This run recorded no gold, so what that KL is worth is not known."
    return (
        f"Neither of Gao's laws describes this run's gold (R² {fits.gold.fit.r_squared:.2f}, below "
        f"{MIN_R_SQUARED:g}); read gold at that KL off the curve instead."
    )


def _sums(
    curve: Curve, values: list[np.ndarray], laws: list[ClusteredFit]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(G, K) what each prompt adds, and of each law the matrix from mean gains to (alpha, beta)."""
    d = curve.sqrt_kl
    kept = d >= MIN_RL_DISTANCE
    for one in values:
        kept &= np.ptp(one - one[0], axis=1) > 0
    columns, solvers = [], []
    for one, law in zip(values, laws, strict=True):
        gain = (one - one[0])[kept].T  # (G, C)
        weights = 1 / (gain.std(axis=0, ddof=1) / math.sqrt(len(gain)))
        solvers.append(_solver(law.fit.law.form, d[kept], weights))
        columns.append(gain)
    return np.column_stack([*columns, np.ones(len(columns[0]))]), solvers


def _solver(form: Form, d: np.ndarray, root_weights: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(_design(form, d) * root_weights[:, None]) * root_weights


def _design(form: Form, d: np.ndarray) -> np.ndarray:
    """(..., 2) columns whose product with (alpha, beta) is the law at d."""
    unit = [ScalingLaw(form, 1.0, 0.0), ScalingLaw(form, 0.0, 1.0)]
    return np.stack([law(d) for law in unit], axis=-1)


def _value(form: Form, coefficients: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(R,) each row's law at that row's distance."""
    return (_design(form, d) * coefficients).sum(axis=1)


def _stationary(form: Form, coefficients: np.ndarray, beta: float, farthest: float) -> np.ndarray:
    """(R,) d that maximises each row's law - beta d^2 on [0, farthest]."""
    alpha, bend = coefficients.T
    if form == "best_of_n":
        curvature = bend + beta
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = alpha / (2 * curvature)
            at_end = np.where(alpha - curvature * farthest > 0, farthest, 0.0)
        return np.where(curvature > 0, np.clip(inside, 0, farthest), at_end)
    return _stationary_rl(alpha, bend, beta, farthest)


def _stationary_rl(alpha: np.ndarray, bend: np.ndarray, beta: float, farthest: float) -> np.ndarray:
    """The same for R = d (a - b log d), by halving where the slope changes from + to -."""

    def slope(d: np.ndarray) -> np.ndarray:
        return alpha - bend * (np.log(d) + 1) - 2 * beta * d

    # Where the proxy bends upward the slope rises first, to its maximum at |b| / 2 beta.
    tiny = np.full(alpha.shape, 1e-12)
    top = -bend / (2 * beta) if beta > 0 else tiny
    low = np.where(bend < 0, np.maximum(top, tiny), tiny)
    end = np.full(alpha.shape, min(farthest, 1e12))
    low = np.minimum(low, end)
    rises_to_end = slope(end) > 0
    moves = slope(low) > 0
    a, b = low.copy(), end.copy()
    for _ in range(_HALVINGS):
        # Geometric while far apart: distances differ by orders of magnitude.
        middle = np.where(b > 4 * a, np.sqrt(a * b), (a + b) / 2)
        up = slope(middle) > 0
        a, b = np.where(up, middle, a), np.where(up, b, middle)
    found = np.where(moves, (a + b) / 2, 0.0)
    # A maximum below 0 is worse than not moving at all.
    gain = found * (alpha - bend * np.log(np.maximum(found, 1e-12))) - beta * found**2
    return np.where(rises_to_end, farthest, np.where(gain > 0, found, 0.0))
