"""Writes a comparison: the table of methods, figures, the order that came out, one verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_align.configs import CompareArguments, JudgeArguments
from hf_align.diagnostics import comparison_plots as plots
from hf_align.diagnostics.comparison_plots import Shown
from hf_align.diagnostics.markdown import Table
from hf_align.diagnostics.plots import save_figure
from hf_align.diagnostics.report import build_report, report_markdown, write_report
from hf_align.files import write_text
from hf_align.recipes import _compare_table as table
from hf_align.recipes._closing import wrapped
from hf_align.recipes._compare_sampling import Comparison, judge_pairs, on_the_same
from hf_align.recipes._compare_table import Method, Order
from hf_align.recipes._compare_verdict import verdict_between
from hf_align.recipes._judges import Judges
from hf_align.recipes._parser import Choices
from hf_align.recipes._run import Run, begin_run
from hf_align.types import Estimate, content_of

_SHOWN_SAMPLES = 6


def write(
    path: Path,
    choices: Choices,
    options: CompareArguments,
    judge_options: JudgeArguments,
    judges: Judges | None,
    comparison: Comparison,
) -> dict[str, Any]:
    """Judges, measures, and writes `report/`, the records and the card, all of them or none.

    Returns:
        The content of `report.json`.
    """
    from hf_align.recipes._goodhart_report import drafted

    with drafted(path) as draft:
        run = Run("compare", draft, None)
        lineage = {
            "reference": comparison.reference.facts[0]["model"],
            "policies": [
                {"name": m.name, **facts["model"]} for m in comparison.methods for facts in m.facts
            ],
            "data": [{"name": options.dataset_name}],
        }
        if judges is not None:
            lineage["judges"] = judges.sources
        begin_run(run, choices, asdict(options) | asdict(judge_options), lineage)
        run.record["name"] = path.resolve().name
        key = judge_pairs(run, options, judge_options, judges, comparison)
        report = _report(run, options, comparison, key)
        run.record |= {
            "status": "finished",
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        run.write_json("run.json", run.record)
        head = "---\ntags:\n- hf-align\n- comparison\n---\n\n# Methods compared\n\n"
        write_text(draft / "README.md", head + report_markdown(report, figures_in="report/"))
    return report


def _report(
    run: Run, options: CompareArguments, comparison: Comparison, key: str | None
) -> dict[str, Any]:
    methods, reference = comparison.methods, comparison.reference
    raw, controlled, longer = table.win_rates(methods, reference, key)
    shown = [
        Shown(
            m.name,
            raw.get(m.name),
            controlled.get(m.name),
            *(m.mean(name) for name in ("gold", "proxy", "second", "kl")),
        )
        for m in comparison.everything
    ]
    orders = table.order(methods, comparison.tiers)
    judged = verdict_between(comparison.everything)
    statement = table.order_statement(orders, comparison.tiers) if orders else None
    best = max(methods, key=lambda m: raw[m.name].value if m.name in raw else -1.0)
    figures = _figures(run.path / "report", comparison, shown, key)
    tables = [_method_table(comparison, shown, longer), *_further_tables(comparison, orders, key)]
    report = build_report(
        recipe="compare",
        policy=", ".join(m.name for m in methods),
        reference=reference.name,
        verdict=judged,
        metrics=_metrics(best, raw, controlled),
        tables=tables,
        figures=figures,
        samples=_samples(best, comparison),
        warnings=[*run.warnings, *([statement] if statement and "differs" in statement else [])],
        evaluation=_settings(options, comparison, key) | {"metrics of": best.name},
    )
    report["order"] = statement
    report["methods"] = [
        {"name": m.name, "seeds": len(m.seeds), "facts": m.facts, **_numbers(s)}
        for m, s in zip(comparison.everything, shown, strict=True)
    ]
    write_report(report, run.path / "report")
    return report


def _numbers(shown: Shown) -> dict[str, Any]:
    found = {name: getattr(shown, name) for name in vars(shown) if name != "name"}
    return {name: None if value is None else value.to_dict() for name, value in found.items()}


def _method_table(comparison: Comparison, shown: Sequence[Shown], longer: Estimate | None) -> Table:
    columns = {
        "win rate": [s.win_rate for s in shown],
        "length-controlled": [s.controlled for s in shown],
        "gold": [s.gold for s in shown],
        "second": [s.second for s in shown],
        "proxy": [s.proxy for s in shown],
        "KL, nats": [s.kl for s in shown],
        "length, tokens": [m.mean("lengths") for m in comparison.everything],
        "diversity": [m.mean("diversity") for m in comparison.everything],
        "draws per answer": [_fact(m, "draws_per_answer") for m in comparison.everything],
        "drawn in training": [_fact(m, "drawn_in_training") for m in comparison.everything],
        "gradient steps": [_fact(m, "gradient_steps") for m in comparison.everything],
        "SD of gold over seeds": [m.spread for m in comparison.everything],
    }
    used = {name: cells for name, cells in columns.items() if any(c is not None for c in cells)}
    rows = [
        [m.name, *(cells[i] for cells in used.values())]
        for i, m in enumerate(comparison.everything)
    ]
    note = (
        "Win rates count a tie as one half; at equal length by one logistic model of all methods. "
        "Diversity is 1 − self-BLEU among the answers to a prompt. Costs are means over seeds, at "
        "the checkpoint that was compared. Intervals are over prompts."
    )
    if longer is not None:
        note += (
            f" Of the pairs that were decided and unequal in length the longer answer won "
            f"{longer.value:.1%} [{longer.low:.1%}, {longer.high:.1%}]."
            if longer.low is not None
            else ""
        )
    notes = [note, *_at_the_end(comparison), *comparison.notes]
    return Table("Methods", ["method", *used], rows, " ".join(notes))


def _at_the_end(comparison: Comparison) -> list[str]:
    """Says which methods are compared at the end of training although the best was asked for."""
    names = []
    for method in comparison.everything:
        count = sum(bool(facts.get("without_best")) for facts in method.facts)
        if count:
            names.append(f"{method.name} ({count} of {len(method.facts)} runs)")
    ended = f"No audit kept a best checkpoint of {', '.join(names)}: compared as training ended."
    return [ended] if names else []


def _fact(method: Method, name: str) -> float | None:
    values = [facts[name] for facts in method.facts if facts.get(name) is not None]
    return sum(values) / len(values) if values else None


def _further_tables(
    comparison: Comparison, orders: Sequence[Order], key: str | None
) -> list[Table]:
    tables = []
    if orders:
        tables.append(
            Table(
                "Expected order",
                ["expected to be better", "than", "gold difference", "better in seeds", "verdict"],
                [
                    [
                        o.above,
                        o.below,
                        o.difference,
                        o.seeds and f"{o.seeds[0]} of {o.seeds[1]}",
                        o.verdict,
                    ]
                    for o in orders
                ],
                "By gold on the same prompts, each method at its best audited checkpoint.",
            )
        )
    several = [m for m in comparison.methods if m.spread is not None]
    if several:
        count = max(len(m.seeds) for m in several)
        means = [
            [table.mean_over_prompts(a["gold"].astype(float)) for a in m.seeds] for m in several
        ]
        tables.append(
            Table(
                "Gold by seed",
                ["method", *(f"seed {i}" for i in range(1, count + 1))],
                [
                    [m.name, *row, *[None] * (count - len(row))]
                    for m, row in zip(several, means, strict=True)
                ],
            )
        )
    curves = temperature_curves(comparison, key)
    if curves:
        temperatures = sorted(comparison.by_temperature)
        tables.append(
            Table(
                "Win rate by sampling temperature",
                ["method", *(f"{t:g}" for t in temperatures)],
                [
                    [name, *(dict(points).get(t) for t in temperatures)]
                    for name, points in curves.items()
                ],
                "Against the reference's answers of the table, on the first of its prompts; the "
                "first seed of every method.",
            )
        )
    return tables


def temperature_curves(
    comparison: Comparison, key: str | None
) -> dict[str, list[tuple[float, Estimate]]]:
    """Per method its win rate at every temperature that was sampled."""
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for temperature, methods in sorted(comparison.by_temperature.items()):
        for method in methods:
            found = table.raw_win_rate(method, on_the_same(comparison.reference, method), key)
            if found is not None:
                curves.setdefault(method.name, []).append((temperature, found))
    return curves


def _figures(
    folder: Path, comparison: Comparison, shown: Sequence[Shown], key: str | None
) -> list[str]:
    names = [s.name for s in shown]
    against = f"{comparison.reference.name}"
    drawn = {"win_rates": plots.win_rate_figure(shown, against)}
    for by in ("gold", "proxy"):
        if any(s.kl is not None and getattr(s, by) is not None for s in shown):
            drawn[f"{by}_against_kl"] = plots.frontier_figure(shown, by=by)
    curves = temperature_curves(comparison, key)
    if curves:
        drawn["win_rate_by_temperature"] = plots.temperature_figure(curves, names, against)
    if any(s.second is not None for s in shown):
        rewards = comparison.reference.facts[0]["rewards"]
        drawn["two_rewards"] = plots.plane_figure(shown, (rewards["gold"], rewards["second"]))
    return [save_figure(figure, folder / f"{name}.png").name for name, figure in drawn.items()]


def _metrics(
    best: Method, raw: dict[str, Estimate], controlled: dict[str, Estimate]
) -> dict[str, Estimate]:
    found = {
        "judge/win_rate": raw.get(best.name),
        "judge/length_controlled_win_rate": controlled.get(best.name),
        "gold/mean": best.mean("gold"),
        "proxy/mean": best.mean("proxy"),
        "kl/sequence": best.mean("kl"),
        "length/mean": best.mean("lengths"),
        "length/ended": best.mean("ended"),
        "diversity/per_input": best.mean("diversity"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _samples(best: Method, comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for i, prompt in enumerate(comparison.prompts[:_SHOWN_SAMPLES]):
        row: dict[str, Any] = {"prompt": content_of(prompt)}
        for side, method in (("policy", best), ("reference", comparison.reference)):
            row[side] = method.texts[0][i][0]
            if "gold" in method.seeds[0]:
                row[f"{side}_gold"] = round(float(method.seeds[0]["gold"][i, 0]), 2)
        rows.append(row)
    return rows


def _settings(options: CompareArguments, comparison: Comparison, key: str | None) -> dict[str, Any]:
    rewards = comparison.reference.facts[0]["rewards"]
    kinds = {facts["kl"] for m in comparison.methods for facts in m.facts if facts["kl"]}
    asked = "a judge that is asked"
    contexts = [f["urial_prompt"] for m in comparison.methods for f in m.facts if f["urial_prompt"]]
    return {
        "prompts": len(comparison.prompts),
        "answers per prompt": options.num_samples,
        "sampling": f"temperature {options.temperature:g}, no top-k or top-p",
        "judge": rewards.get(key, asked) if key else asked,
        **rewards,
        "KL by": "; ".join(sorted(kinds)) or "none",
        **(
            {"in-context prompt": f"{contexts[0]['version']}, {contexts[0]['sha256'][:12]}"}
            if contexts
            else {}
        ),
        "seed": options.seed,
    }


def closing_page(report: dict[str, Any], path: Path) -> str:
    """What the terminal shows at the end: the main columns, the order, the verdict."""
    names = ("win_rate", "controlled", "gold", "proxy", "kl")
    rows = [("method", "win rate", "at equal length", "gold", "proxy", "KL")]
    for method in report["methods"]:
        cells = [method[name] for name in names]
        rows.append((method["name"], *("-" if c is None else f"{c['value']:.3f}" for c in cells)))
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    lines += ["", wrapped(report["verdict"]["text"])]
    if report["order"]:
        lines.append(wrapped(report["order"]))
    lines += [wrapped(f"warning: {w}") for w in report["warnings"] if w != report["order"]]
    return "\n".join([*lines, "", f"report: {path / 'report' / 'report.md'}"])
