"""The block of `report.json` about one run of a comparison, and the captions of its figures."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from hf_align.diagnostics.goodhart import Judged, Trajectory
from hf_align.diagnostics.goodhart_alarms import Alarm
from hf_align.diagnostics.goodhart_measures import Measured
from hf_align.types import Estimate

CAPTIONS = {
    "gold_against_kl": "Gold gain over the reference against √KL, all runs and best-of-n on one "
    "axis. Bands: 95 % intervals over prompts. Diamond: the policy that is shipped.",
    "runs": "Each run by itself: gold (solid, with markers) and what the proxy claims in gold "
    "units (grey, dashed). Dotted: Gao's RL law, fitted to gold. The gap that opens is Goodhart's.",
    "gold_against_proxy": "Gold gain against the proxy's gain in gold units. On the dotted "
    "diagonal the proxy keeps its promises. Diamond: shipped.",
    "reliability": "Left: mean gold of completions with about the same proxy score, both counted "
    "from the reference's mean on the prompt; a policy below the reference gets less gold for the "
    "same score. Right: how often the proxy orders two "
    "answers to one prompt as gold does.",
    "length": "The gold gain split by length (Kitagawa): at equal length, by writing other "
    "lengths, and at lengths that only one of both policies writes.",
    "drift": "Reference, audits where they logged it, and shipped policy (markers with intervals): "
    "entropy, how odd the reference finds the text, KL per token, and length, against √KL.",
    "diversity": "1 − self-BLEU of equally many answers, to one prompt and to several, against "
    "√KL. Dotted: the reference. Lower is less diverse.",
    "features": "How far the mean of each text feature moved, in SDs of the reference.",
}
"""What each figure shows, by its file stem."""


def run_record(
    judged: Judged, alarms: list[Alarm], samples: list[dict[str, Any]], source: str
) -> dict[str, Any]:
    """Everything about one run, ready for JSON.

    Args:
        judged: The run.
        alarms: Its alarms.
        samples: Completions to read.
        source: How a stranger may see where it came from.
    """
    evidence = judged.evidence
    best = None
    if evidence.best_step is not None:
        best = {"step": evidence.best_step, "kept": evidence.best is not None}
        best["metrics"] = finite_metrics(evidence.best)
    return {
        "name": judged.name,
        "recipe": evidence.recipe,
        "source": source,
        "verdict": {"label": judged.verdict.label, "text": judged.verdict.text},
        "minimum_detectable_drop": judged.verdict.minimum_detectable_drop,
        "peak_step": _peak_step(judged),
        "metrics": finite_metrics(evidence.shipped),
        "best_audited": best,
        "proxy": {"name": evidence.proxy_name, "optimised": evidence.optimised},
        "calibration": None if judged.calibration is None else _plain(judged.calibration),
        "curve": _points(judged.trajectory),
        "audited": judged.trajectory.audited,
        "gao_fits": {form: _plain(fit) for form, fit in judged.trajectory.fits.items()},
        "decomposition": None if judged.decomposition is None else _plain(judged.decomposition),
        "length": None if judged.length is None else _plain(judged.length),
        "pairs_ordered_as_gold": {
            name: None if found is None else found.to_dict()
            for name, found in zip(("reference", "shipped"), judged.accuracy, strict=True)
        },
        "diversity": None
        if judged.diversity is None
        else dict(zip(("reference", "shipped"), map(_plain, judged.diversity), strict=True)),
        "chi_square": _plain(judged.chi_square),
        "alarms": [{"level": alarm.level, "text": alarm.text} for alarm in alarms],
        "statements": list(evidence.statements),
        "samples": samples,
    }


def finite_metrics(measured: Measured | None) -> dict[str, dict[str, Any]]:
    """Metrics as JSON; one that is infinite (z without any variance) is left out."""
    if measured is None:
        return {}
    return {
        name: estimate.to_dict()
        for name, estimate in measured.metrics.items()
        if math.isfinite(estimate.value)
    }


def _points(trajectory: Trajectory) -> list[dict[str, Any]]:
    points = []
    for i, step in enumerate(trajectory.steps):
        point: dict[str, Any] = {"step": int(step), "sqrt_kl": float(trajectory.sqrt_kl[i])}
        for name in ("gold", "proxy"):
            gains: list[Estimate] | None = getattr(trajectory, name)
            point[f"{name}_gain"] = None if gains is None else gains[i].to_dict()
        points.append(point)
    return points


def _peak_step(judged: Judged) -> int | None:
    peak = judged.verdict.peak_index
    return int(judged.curve.steps[peak]) if judged.trajectory.audited and peak else None


def _plain(value: Any) -> Any:
    """A dataclass of estimates, numbers and arrays as JSON; NaN becomes null."""
    return _jsonable(asdict(value))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
