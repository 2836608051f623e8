"""Lays out a comparison of runs as sections of tables: what is found, then what it rests on.

Numbers come from `goodhart`, `goodhart_measures` and `selection`; nothing is computed here but
means. A section is rendered as Markdown by the recipe and as HTML by `html_report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_align.diagnostics.goodhart import Judged
from hf_align.diagnostics.goodhart_alarms import LIMITS, Alarm
from hf_align.diagnostics.goodhart_measures import FeatureDrift, Measured, share_ended
from hf_align.diagnostics.markdown import Cell, Table
from hf_align.diagnostics.selection import Selection
from hf_align.statistics import clustered_mean
from hf_align.types import Estimate


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        title: Heading.
        text: What it shows and how to read it.
        figures: File stems of its figures.
        tables: Its tables.
        items: Sentences, as a list.
    """

    title: str
    text: str = ""
    figures: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    items: tuple[str, ...] = ()


def sections(
    runs: Sequence[Judged],
    selection: Selection | None,
    features: Sequence[FeatureDrift],
    alarms: Sequence[Alarm],
    figures: Sequence[str],
) -> list[Section]:
    """The report's parts in reading order; a part without numbers is left out.

    Args:
        runs: The runs.
        selection: Best-of-n of the reference; None without it.
        features: Text features and their drift.
        alarms: Of all runs.
        figures: File stems of the figures that were drawn.
    """
    has_gold = any(run.evidence.reference.gold is not None for run in runs)
    optimisation = [_calibration_table(runs), _fit_table(runs, selection)]
    if selection is not None:
        optimisation.append(_selection_table(selection))
    parts = [
        Section(
            "Alarms",
            "An alarm asks for a look and proves nothing. A fault means that numbers cannot be "
            "trusted."
            if alarms
            else "None.",
            tables=_kept(_alarm_table(alarms)),
        ),
        Section(
            "Gold and proxy against distance",
            "Distance is √KL from the reference, in √nats summed over the completion. Gains are "
            "paired by prompt with the reference, so every curve starts at 0; bands are 95 % "
            "intervals over prompts. The proxy is drawn in gold units, by what its scores stood "
            "for on the reference's completions."
            if has_gold
            else "No gold was named, so this report shows drift alone and cannot say whether any "
            "of it was a loss. Name one with --gold_reward.",
            ("gold_against_kl", "runs"),
            _kept(*optimisation),
        ),
        Section(
            "Reference, best audited, shipped",
            "On the report's prompts, which no audit has seen. The best audited checkpoint has "
            "numbers where it was kept.",
            tables=tuple(_policy_table(run) for run in runs),
        ),
        Section(
            "Gold against proxy",
            "Where policies follow the diagonal the proxy keeps its promises; to its right it "
            "claims more than it delivers. Below: gold at equal score, and how often the proxy "
            "still orders two answers to one prompt as gold does.",
            ("gold_against_proxy", "reliability"),
            _kept(_decomposition_table(runs), _association_table(runs)),
        ),
        *_movement(runs, features),
    ]
    known = set(figures)
    shown = [
        Section(s.title, s.text, tuple(f for f in s.figures if f in known), s.tables, s.items)
        for s in parts
    ]
    kept = [s for s in shown if s.figures or s.tables or s.title in ("Alarms", parts[1].title)]
    return [*kept, Section("What this report cannot see", items=LIMITS)]


def _movement(runs: Sequence[Judged], features: Sequence[FeatureDrift]) -> list[Section]:
    """What happened to length and everything else that is no reward."""
    return [
        Section(
            "Length",
            "Kitagawa's decomposition of the gold gain: at equal length, by the changed mix of "
            "lengths, and what lengths that only one policy writes leave to neither.",
            ("length",),
            _kept(_length_table(runs)),
        ),
        Section(
            "Drift",
            "How far the shipped policies moved. None of it is a fault by itself.",
            ("drift", "diversity", "features"),
            _kept(_distance_table(runs), _feature_table(runs, features)),
        ),
    ]


def verdict_table(runs: Sequence[Judged]) -> Table:
    """One row per run: verdict, gain, KL, and where gold peaked."""
    rows: list[list[Cell]] = []
    for run in runs:
        metrics, peak = run.evidence.shipped.metrics, run.verdict.peak_index
        drop = run.verdict.drop
        known = run.trajectory.audited and drop is not None
        fell = known and drop.low is not None and drop.low > 0
        rows.append(
            [
                run.name,
                run.verdict.label,
                metrics.get("kl/sequence"),
                metrics.get("gold/gain"),
                metrics.get("proxy/gain"),
                float(run.curve.steps[peak]) if fell else None,
                float(run.curve.sqrt_kl[peak] ** 2) if fell else None,
                drop if known else None,
                run.verdict.minimum_detectable_drop,
            ]
        )
    columns = ["run", "verdict", "KL, nats", "gold gain", "proxy gain"]
    columns += ["peak: step", "peak: KL", "drop", "detectable"]
    return Table(
        "Runs",
        columns,
        rows,
        "Gains are the shipped policy's over the reference, the proxy's in its own score. Drop: "
        "gold of the best earlier audit less the last. Detectable: the smallest drop that would be "
        "found with 80 % power. A peak is given where gold fell from it.",
    )


def _alarm_table(alarms: Sequence[Alarm]) -> Table | None:
    rows = [[alarm.run, alarm.level, alarm.text] for alarm in alarms]
    return Table("Alarms by run", ["run", "level", "what"], rows) if rows else None


def _calibration_table(runs: Sequence[Judged]) -> Table | None:
    rows: list[list[Cell]] = []
    seen = set()
    for run in runs:
        c, name = run.calibration, run.evidence.proxy_name
        if c is None or name in seen:
            continue
        seen.add(name)
        span = f"{c.lowest:.2f} to {c.highest:.2f}"
        rows.append([str(name), c.slope, c.r_squared, span, float(c.num_completions)])
    if not rows:
        return None
    return Table(
        "The proxy in gold units",
        ["proxy", "gold per unit of score", "R²", "scores fitted", "completions"],
        rows,
        "A straight line, by least squares within prompts on the reference's completions.",
    )


def _fit_table(runs: Sequence[Judged], selection: Selection | None) -> Table | None:
    found = [(run.name, run.trajectory.fits) for run in runs]
    if selection is not None:
        found.append(("best-of-n", selection.fits.get("gold", {})))
    names = {"rl": "d (α − β ln d)", "best_of_n": "d (α − β d)"}
    rows: list[list[Cell]] = []
    for name, fits in found:
        for form, fit in fits.items():
            peak = fit.peak_distance
            r_squared = fit.fit.r_squared if np.isfinite(fit.fit.r_squared) else None
            rows.append([name, names[form], fit.alpha, fit.beta, r_squared, peak])
    if not rows:
        return None
    return Table(
        "Gao's laws fitted to the gold gain",
        ["run", "law, d = √KL", "α", "β", "R²", "peak at √KL"],
        rows,
        "Descriptive. A peak is given only where it lies inside the observed distances.",
    )


def _selection_table(selection: Selection) -> Table:
    prompts = np.arange(selection.proxy.shape[1])
    rows: list[list[Cell]] = []
    wanted = {2**k for k in range(20)}
    for k, n in enumerate(selection.ns):
        if int(n) not in wanted or n == 1:
            continue
        gold = None
        if selection.gold is not None:
            gold = clustered_mean(selection.gold[k] - selection.gold[0], prompts)
        proxy = clustered_mean(selection.proxy[k] - selection.proxy[0], prompts)
        known = selection.exact_kl or selection.kl
        kl = Estimate(float(selection.nominal_kl[k]), None, None, len(prompts))
        kl = kl if known is None else known[k]
        rows.append([f"best of {n}", kl, proxy, gold])
    return Table(
        "Best-of-n from the reference",
        ["selection", "KL, nats", "proxy gain, score", "gold gain"],
        rows,
        f"From one pool of {selection.num_samples} completions of {len(prompts)} prompts, chosen "
        "by the proxy; no training.",
    )


def _policy_table(run: Judged) -> Table:
    evidence = run.evidence
    sides: list[Measured | None] = [evidence.reference, evidence.best, evidence.shipped]
    best = (
        "best audited" if evidence.best_step is None else f"best audited, step {evidence.best_step}"
    )
    rows: list[list[Cell]] = []

    def add(name: str, *cells: Cell) -> None:
        if any(cell is not None for cell in cells):
            rows.append([name, *cells])

    for label, key, base in (
        ("gold reward", "gold/mean", "gold/reference"),
        ("gold gain over the reference", "gold/gain", None),
        ("share preferred to the reference by gold", "gold/win_rate", None),
        ("proxy score", "proxy/mean", "proxy/reference"),
        ("share preferred by the proxy", "proxy/win_rate", None),
        ("sequence KL, nats", "kl/sequence", None),
        ("KL per token, nats", "kl/per_token", None),
    ):
        first = evidence.shipped.metrics.get(base) if base else None
        found = [None if s is None else s.metrics.get(key) for s in sides[1:]]
        if evidence.best is None:
            found[0] = _audited(run, key)
        add(label, first, *found)
    add("length, tokens", *(_mean(s, "lengths") for s in sides))
    add("ended by themselves, share", *(None if s is None else share_ended(s) for s in sides))
    add("entropy, nats/token", *(_mean(s, "entropy") for s in sides))
    add("reference NLL, nats/token", *(_mean(s, "reference_nll") for s in sides))
    if run.diversity is not None:
        base, ours = run.diversity
        add("diversity per input", base.per_input, None, ours.per_input)
        add("diversity across inputs", base.across_inputs, None, ours.across_inputs)
    if all(row[2] is None for row in rows):
        rows = [[row[0], row[1], row[3]] for row in rows]
        return Table(run.name, ["", "reference", "shipped"], rows)
    note = ""
    if evidence.best is None and evidence.best_step is not None:
        note = "The best audited checkpoint was not kept; its numbers are its audit's."
    return Table(run.name, ["", "reference", best, "shipped"], rows, note)


def _audited(run: Judged, metric: str) -> Cell:
    """What the audit of a best checkpoint that was not kept says."""
    audits, step = run.evidence.audits, run.evidence.best_step
    if audits is None or step is None or step not in audits.steps:
        return None
    place = int(np.searchsorted(audits.steps, step))
    prompts = None if audits.gold is None else np.arange(audits.gold.shape[1])
    if metric == "kl/sequence":
        return Estimate(float(audits.kl[place]), None, None, 0)
    if metric == "gold/gain" and run.trajectory.gold is not None:
        return run.trajectory.gold[place]
    values = {"gold/mean": audits.gold, "proxy/mean": audits.proxy}.get(metric)
    return None if values is None else clustered_mean(values[place], prompts)


def _mean(measured: Measured | None, name: str) -> Estimate | None:
    if measured is None:
        return None
    return clustered_mean(np.ravel(getattr(measured, name)).astype(float), measured.prompts)


def _decomposition_table(runs: Sequence[Judged]) -> Table | None:
    rows: list[list[Cell]] = []
    for run in runs:
        d = run.decomposition
        if d is not None:
            parts = [d.proxy_gain, d.gold_gain, d.regressional_loss, d.shift_loss, d.outside]
            rows.append([run.name, *parts])
    if not rows:
        return None
    return Table(
        "Where the proxy's gain went",
        ["run", "proxy gain", "= gold gain", "+ lost to noise", "+ lost to shift", "beyond"],
        rows,
        "In gold units, the proxy scaled to gold's SD on the reference, both counted from the "
        "reference's mean on the prompt. Noise is lost by selecting "
        "on any imperfect proxy; shift is what a score is worth less on the policy than on the "
        "reference. Beyond: share of completions scored above all of the reference's.",
    )


def _association_table(runs: Sequence[Judged]) -> Table | None:
    rows: list[list[Cell]] = []
    seen = set()
    for run in runs:
        sides = [(run.name, run.association[1], run.accuracy[1])]
        if run.evidence.proxy_name not in seen:
            seen.add(run.evidence.proxy_name)
            name = f"reference, by {run.evidence.proxy_name}"
            sides.insert(0, (name, run.association[0], run.accuracy[0]))
        for name, found, accuracy in sides:
            if found is not None:
                rows.append([name, accuracy, found.pearson, found.spearman, found.slope])
    if not rows:
        return None
    return Table(
        "Proxy and gold among answers to one prompt",
        ["policy", "pairs ordered as gold", "correlation", "rank correlation", "gold per score"],
        rows,
        "A late sign: correlations can stay well above 0 past the gold peak.",
    )


def _length_table(runs: Sequence[Judged]) -> Table | None:
    rows: list[list[Cell]] = []
    for run in runs:
        d = run.length
        if d is not None:
            parts = [d.gain, d.within, d.between, d.unmatched, d.overlap]
            rows.append([run.name, *parts])
    if not rows:
        return None
    columns = ["run", "gold gain", "= at equal length", "+ by other lengths", "+ neither"]
    return Table("Gold gain and length", [*columns, "overlap"], rows)


def _distance_table(runs: Sequence[Judged]) -> Table:
    rows: list[list[Cell]] = []
    for run in runs:
        metrics, chi = run.evidence.shipped.metrics, run.chi_square
        rows.append(
            [
                run.name,
                metrics.get("kl/sequence"),
                metrics.get("kl/sequence_k1"),
                run.consistency.z if np.isfinite(run.consistency.z) else None,
                chi.value,
                chi.effective_share,
            ]
        )
    return Table(
        "Distance from the reference",
        ["run", "KL, nats", "KL by k1, nats", "z of their gap", "χ²", "effective share"],
        rows,
        "χ² is given only where no single completion decides it.",
    )


def _feature_table(runs: Sequence[Judged], features: Sequence[FeatureDrift]) -> Table | None:
    if not features:
        return None
    rows = [[f.name, f.proxy, f.gold, *f.drifts] for f in features]
    columns = [
        "feature",
        "correlation with proxy",
        "with gold",
        *(f"drift, {r.name}" for r in runs),
    ]
    return Table(
        "What the text looks like",
        columns,
        rows,
        "Correlations within prompts on the reference; drift of the mean in SDs of the reference. "
        "Suspicious is a feature that drifts, that the proxy follows and gold does not.",
    )


def _kept(*tables: Table | None) -> tuple[Table, ...]:
    return tuple(table for table in tables if table is not None)
