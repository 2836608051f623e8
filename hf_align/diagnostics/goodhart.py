"""Compares runs on the KL axis: gold and calibrated proxy, alarms, a verdict each, which to ship.

Every quantity is computed from what policies wrote on the same prompts (`Measured`) and from the
audits that a run kept (`Audits`). Gains are paired by prompt with the reference, so every curve
starts at 0. Pure numpy; `goodhart_tables`, `goodhart_plots` and `html_report` show the results.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hf_align.diagnostics.decomposition import (
    GoodhartDecomposition,
    LengthDecomposition,
    ProxyGoldAssociation,
    goodhart_decomposition,
)
from hf_align.diagnostics.divergences import ChiSquare, chi_square
from hf_align.diagnostics.diversity import Diversity
from hf_align.diagnostics.goodhart_measures import (
    Calibration,
    Measured,
    association,
    centered,
    diversity_of,
    fit_calibration,
    length_split,
    ordered_as_gold,
)
from hf_align.diagnostics.kl import ConsistencyCheck, check_consistency
from hf_align.diagnostics.overoptimization import Curve, Verdict, verdict
from hf_align.diagnostics.scaling_laws import (
    MIN_RL_DISTANCE,
    ClusteredFit,
    Form,
    fit_clustered_scaling_law,
)
from hf_align.statistics import clustered_difference, prompt_means
from hf_align.types import Estimate


@dataclass(frozen=True)
class Audits:
    """The checkpoints that a run audited while it trained, C by G audit prompts.

    Attributes:
        steps: (C,) training steps, 0 first.
        kl: (C,) sequence KL, nats.
        gold: (C, G) mean gold per prompt; None where not recorded or by another gold.
        proxy: (C, G) mean proxy score per prompt; None where not recorded.
        drift: `{metric: (C,)}` means logged beside; NaN where an audit has none.
    """

    steps: np.ndarray
    kl: np.ndarray
    gold: np.ndarray | None = None
    proxy: np.ndarray | None = None
    drift: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """Everything that is known of one run.

    Attributes:
        name: How the report calls it.
        recipe: What trained it.
        proxy_name: What its proxy scores are by; None without a proxy.
        optimised: Whether that proxy is what training optimised.
        audits: Its audits; None without any.
        reference: The reference's completions of the report's prompts, by this run's proxy.
        shipped: The saved policy's.
        best: Those of the best audited checkpoint, where it was kept and is not the shipped one.
        best_step: Its step.
        kl_budget: Sequence KL it was not to exceed, nats.
        statements: What has to be said of this run's records.
    """

    name: str
    recipe: str
    proxy_name: str | None
    optimised: bool
    audits: Audits | None
    reference: Measured
    shipped: Measured
    best: Measured | None = None
    best_step: int | None = None
    kl_budget: float | None = None
    statements: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """A run along the KL axis, gains over the reference in gold units.

    Attributes:
        steps: (C,) training steps.
        sqrt_kl: (C,) sqrt(nats).
        gold: C gains, paired by prompt; None without gold.
        proxy: C gains of the proxy by its calibration, so what the proxy claims; None without.
        fits: Gao's laws fitted to the gold gains; empty where there are too few checkpoints.
        audited: Whether it rests on audits, not on reference and shipped policy alone.
    """

    steps: np.ndarray
    sqrt_kl: np.ndarray
    gold: list[Estimate] | None
    proxy: list[Estimate] | None
    fits: dict[Form, ClusteredFit]
    audited: bool


@dataclass(frozen=True)
class Judged:
    """What the report says of one run.

    Attributes:
        evidence: What it rests on.
        curve: Checkpoints by prompts, in their own units.
        verdict: By `overoptimization.verdict`.
        consistency: Sampler/scorer check of the shipped policy's samples.
        calibration: Of its proxy; None without gold or proxy.
        trajectory: Along the KL axis.
        decomposition: Where the proxy's gain went; None without gold or proxy.
        length: How much of the gold gain is length; None without gold.
        association: Proxy and gold within prompts, reference and shipped; None where undefined.
        accuracy: Pairs of one prompt that the proxy orders as gold does, reference and shipped.
        diversity: 1 - self-BLEU, reference and shipped; None with one completion per prompt.
        chi_square: Of the shipped policy.
    """

    evidence: Evidence
    curve: Curve
    verdict: Verdict
    consistency: ConsistencyCheck
    calibration: Calibration | None
    trajectory: Trajectory
    decomposition: GoodhartDecomposition | None
    length: LengthDecomposition | None
    association: tuple[ProxyGoldAssociation | None, ProxyGoldAssociation | None]
    accuracy: tuple[Estimate | None, Estimate | None]
    diversity: tuple[Diversity, Diversity] | None
    chi_square: ChiSquare

    @property
    def name(self) -> str:
        """The run's name."""
        return self.evidence.name


def judge(evidence: Evidence) -> Judged:
    """Everything about one run that the report shows.

    Raises:
        ValueError: If the shapes of the evidence disagree or a score is NaN.
    """
    ours, base = evidence.shipped, evidence.reference
    consistency = check_consistency(ours.k1, ours.kl, ours.prompts)
    curve = curve_of(evidence)
    calibration = None
    if base.gold is not None and base.proxy is not None:
        calibration = fit_calibration(base.proxy, base.gold)
    several = 1 < base.lengths.shape[1] <= len(base.lengths)
    return Judged(
        evidence=evidence,
        curve=curve,
        verdict=verdict(curve, consistency),
        consistency=consistency,
        calibration=calibration,
        trajectory=trajectory(curve, calibration, evidence.audits is not None),
        decomposition=_decomposition(base, ours),
        length=length_split(base, ours),
        association=(association(base), association(ours)),
        accuracy=(ordered_as_gold(base), ordered_as_gold(ours)),
        diversity=(diversity_of(base), diversity_of(ours)) if several else None,
        chi_square=chi_square(ours.k1, ours.prompts),
    )


def curve_of(evidence: Evidence) -> Curve:
    """The run's audits; without at least two of them the report's reference and shipped policy."""
    audits = evidence.audits
    if audits is not None:
        kl = np.maximum(audits.kl, 0.0)
        kl[0] = 0.0  # the reference itself, up to rounding
        return Curve(audits.steps, np.sqrt(kl), audits.gold, audits.proxy)
    ends = evidence.reference, evidence.shipped
    scores = {}
    for name in ("gold", "proxy"):
        values = [getattr(end, name) for end in ends]
        if all(v is not None for v in values):
            scores[name] = np.stack([v.mean(axis=1) for v in values])
    kl = prompt_means(evidence.shipped.kl, evidence.shipped.prompts).mean()
    return Curve(np.array([0, 1]), np.sqrt([0.0, max(float(kl), 0.0)]), **scores)


def trajectory(curve: Curve, calibration: Calibration | None, audited: bool) -> Trajectory:
    """The curve as gains over the reference, the proxy's by its calibration, and Gao's laws."""
    gold = None if curve.gold is None else paired_gains(curve.gold)
    proxy = None
    if curve.proxy is not None and calibration is not None:
        proxy = paired_gains(calibration(curve.proxy))
    fits = {} if curve.gold is None else gao_fits(curve.sqrt_kl, curve.gold)
    return Trajectory(curve.steps, curve.sqrt_kl, gold, proxy, fits, audited)


def paired_gains(values: np.ndarray) -> list[Estimate]:
    """C differences from the first row, paired by prompt, of (C, G) values per prompt."""
    prompts = np.arange(values.shape[1])
    return [clustered_difference(row, values[0], prompts) for row in values]


def gao_fits(sqrt_kl: np.ndarray, values: np.ndarray) -> dict[Form, ClusteredFit]:
    """Gao's two laws where three distances and a change at each of them allow it."""
    usable = np.unique(sqrt_kl[sqrt_kl >= MIN_RL_DISTANCE]).size >= 3
    if values.shape[1] < 2 or not usable or not (np.ptp(values[1:] - values[0], axis=1) > 0).all():
        return {}
    moved = np.append(True, sqrt_kl[1:] > 0)  # an early audit may still be the reference
    d, kept = sqrt_kl[moved], values[moved]
    return {form: fit_clustered_scaling_law(form, d, kept) for form in ("rl", "best_of_n")}


def _decomposition(base: Measured, ours: Measured) -> GoodhartDecomposition | None:
    if any(x is None for x in (base.gold, base.proxy, ours.gold, ours.proxy)):
        return None
    # Counted from the reference's mean on the prompt: prompts differ in gold at equal score, and
    # a calibration over all of them would take that for a shift.
    base_proxy, base_gold = centered(base, base)
    if not np.ptp(base_proxy) > 1e-9:
        return None
    return goodhart_decomposition(
        base_proxy, base_gold, base.prompts, *centered(ours, base), ours.prompts
    )
