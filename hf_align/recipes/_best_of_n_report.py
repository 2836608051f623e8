"""What `best_of_n` says: its report, its figure, the card of its dataset and the closing lines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import BestOfNArguments
from hf_align.diagnostics.best_of_n import (
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_values,
    best_of_n_win_rates,
    win_rate_bound,
)
from hf_align.diagnostics.markdown import Table
from hf_align.diagnostics.overoptimization import OVER_OPTIMISED, Verdict
from hf_align.diagnostics.plots import save_figure
from hf_align.diagnostics.report import build_report, report_markdown
from hf_align.diagnostics.report import write_report as write_files
from hf_align.diagnostics.sample_files import (
    MOST_POOLED,
    POOL,
    ScoredCompletions,
    write_completions,
)
from hf_align.diagnostics.selection import (
    LOW_VARIANCE_SHARE,
    Selection,
    half_octaves,
    judge_selection,
    selection_verdict,
)
from hf_align.diagnostics.selection_plots import selection_figure
from hf_align.files import write_text
from hf_align.hub import shown_name
from hf_align.hub.cards import public_command, sources
from hf_align.recipes._best_of_n import Drawn, Job
from hf_align.recipes._closing import closing_samples, closing_table, wrapped
from hf_align.recipes._inputs import TESTBED
from hf_align.recipes._on_policy import TRANSLATION
from hf_align.recipes._policy_names import context_source
from hf_align.recipes._run import Run
from hf_align.sampling.policies import parse_policy
from hf_align.statistics import clustered_difference, clustered_mean, clustered_means
from hf_align.types import Estimate, content_of

CURVE = "curve.json"
"""What each prompt's winner is worth on average, for every n: what `goodhart` puts on its axis."""

_NUM_SAMPLES = 8  # rows of the report's table of samples
_FIGURE = "best_of_n.png"
_LAWS = {"best_of_n": "R = d (α − β d)", "rl": "R = d (α − β ln d)"}

_COLUMNS = """\
| column | content |
|---|---|
| `prompt` | what was asked |
| `completion` | the best of its completions |
| `score` | the proxy score that it won with |
| `pool_size` | how many completions it was chosen from |
| `ended` | whether it ended by itself; training on one that did not teaches to stop there |
"""


def write_report(
    run: Run, options: BestOfNArguments, job: Job, drawn: Drawn, source: dict[str, Any]
) -> dict[str, Any]:
    """Measures, judges, writes `report/`, the dataset card and the finished record.

    Returns:
        The content of `report.json`.

    Raises:
        OSError: The folder cannot be written.
    """
    pool, n = drawn.pool, options.select_n
    found = judge_selection(
        pool.scores,
        drawn.gold,
        drawn.logps,
        _answers(pool.samples.completion_ids, options.num_samples),
        ns=half_octaves(options.num_samples, n),
    )
    judged = selection_verdict(found, n, drawn.consistency)
    peak_n = _peak(found, judged, n)
    figure = selection_figure(found, n, peak_n=peak_n)
    save_figure(figure, run.path / "report" / _FIGURE)
    _warn(run, pool, found)
    base = _shown_base(source, job)
    report = build_report(
        recipe=run.recipe,
        policy=f"best-of-{n} of {base}",
        reference=base,
        verdict=judged,
        metrics=_metrics(drawn, found, n),
        tables=_tables(pool.scores, found, n),
        figures=[_FIGURE],
        samples=_samples(drawn),
        curve=found.curve(n) if n > 1 else None,
        warnings=run.warnings,
        evaluation=_settings(options, job, found),
    )
    report["peak_n"] = peak_n
    report["best_of_n"] = _every_n(drawn, n)
    write_files(report, run.path / "report")
    write_text(run.path / "report" / CURVE, json.dumps(_per_prompt(found)) + "\n")
    write_completions(run.path / "report" / POOL, _first_of_pool(drawn))
    run.record |= {
        "status": "finished",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    run.write_json("run.json", run.record)
    write_text(run.path / "README.md", _card(run.record, report, len(job.prompts), n))
    return report


def _shown_base(source: dict[str, Any], job: Job) -> str:
    """The base policy, which may be a model in context."""
    shown = shown_name(source)
    return shown if job.context is None else f"{shown} in context ({job.context.version})"


def _answers(completion_ids: list[list[int]], num_samples: int) -> list[list[tuple[int, ...]]]:
    ids = [tuple(answer) for answer in completion_ids]
    return [ids[start : start + num_samples] for start in range(0, len(ids), num_samples)]


def _peak(found: Selection, judged: Verdict, select_n: int) -> int | None:
    """The n at which gold peaked, where it fell after that."""
    if judged.label != OVER_OPTIMISED or not judged.peak_index:
        return None
    return int(found.curve(select_n).steps[judged.peak_index])


def _warn(run: Run, pool: Any, found: Selection) -> None:
    cut = int((~pool.selected.ended).sum())
    if cut:
        run.warn(
            f"{cut} of {len(pool.chosen)} selected completions were cut off; training on them "
            "would teach to stop there (column `ended`)"
        )
    empty = _num_empty(pool)
    if empty:
        run.warn(
            f"{empty} of {len(pool.chosen)} selected completions are empty; train on the others "
            "with --invalid_rows drop"
        )
    tied = float((pool.scores == pool.scores.max(axis=1, keepdims=True)).sum(axis=1).mean())
    if tied > 1.5:
        run.warn(
            f"{tied:.1f} completions of a prompt share its best score on average, and one of them "
            "is drawn: the nominal KL overstates how far that moves"
        )


def _num_empty(pool: Any) -> int:
    """Winners without words, which no training takes."""
    return sum(not text.strip() for text in pool.selected.texts)


def _metrics(drawn: Drawn, found: Selection, n: int) -> dict[str, Estimate]:
    """Best-of-n against the base policy, expected over the pool's subsets of n."""
    samples, scores = drawn.pool.samples, drawn.pool.scores
    place, prompts = int(np.searchsorted(found.ns, n)), np.arange(len(scores))
    known = found.exact_kl or found.kl
    metrics = {
        "kl/best_of_n": known[place],
        "kl/best_of_n_nominal": Estimate(float(best_of_n_kl(n)), None, None, len(scores)),
        "kl/consistency_z": Estimate(drawn.consistency.z, None, None, len(scores)),
    }

    def compare(name: str, values: np.ndarray) -> None:
        best, base = best_of_n_values(scores, values, [n, 1]).T
        metrics[f"{name}/mean"] = clustered_mean(best, prompts)
        metrics[f"{name}/reference"] = clustered_mean(base, prompts)
        metrics[f"{name}/gain"] = clustered_difference(best, base, prompts)

    if drawn.gold is not None:
        compare("gold", drawn.gold)
    compare("proxy", scores)
    compare("length", samples.lengths.reshape(scores.shape))
    ended = best_of_n_values(scores, samples.ended.reshape(scores.shape).astype(float), [n])
    share = clustered_means(ended)[0]
    low, high = (
        None if end is None else min(max(end, 0.0), 1.0) for end in (share.low, share.high)
    )
    metrics["length/ended"] = Estimate(share.value, low, high, share.n)
    return metrics


def _tables(scores: np.ndarray, found: Selection, select_n: int) -> list[Table]:
    tables = [_curve_table(scores, found, select_n)]
    rows = [
        [name, _LAWS[form], fit.alpha, fit.beta, fit.fit.r_squared, fit.peak_distance]
        for name, fits in found.fits.items()
        for form, fit in fits.items()
    ]
    if rows:
        tables.append(
            Table(
                "Gao's laws",
                ["fitted to", "law", "α", "β", "R²", "peak at d"],
                rows,
                "R is the gain over the base policy, d = √KL in √nats; least squares over n ≥ 2, "
                "weighted by 1/SE². A peak is named only within the data.",
            )
        )
    return tables


def _curve_table(scores: np.ndarray, found: Selection, select_n: int) -> Table:
    columns: dict[str, list[Any]] = {"KL, nominal": [float(kl) for kl in found.nominal_kl]}
    if found.kl is not None:
        columns["KL, by log-probabilities"] = list(found.kl)
    if found.exact_kl is not None:
        columns["KL, exact"] = list(found.exact_kl)
    columns["proxy"] = clustered_means(found.proxy.T)
    if found.gold is not None:
        columns["gold"] = clustered_means(found.gold.T)
    beaten = [n for n in found.ns.tolist() if n < found.num_samples]
    rates = clustered_means(best_of_n_win_rates(scores, beaten)) if beaten else []
    columns["proxy win rate"] = [*rates, *[None] * (len(found.ns) - len(rates))]
    columns["n/(n + 1)"] = [float(bound) for bound in win_rate_bound(found.ns)]
    shown = [
        place
        for place, n in enumerate(found.ns.tolist())
        if n & (n - 1) == 0 or n in (select_n, found.num_samples)
    ]
    rows = [
        [f"{found.ns[place]}{'' if found.low_variance[place] else ' †'}"]
        + [values[place] for values in columns.values()]
        for place in shown
    ]
    return Table(
        "Best-of-n from one pool",
        ["n", *columns],
        rows,
        f"Each n is the mean over all subsets of n out of {found.num_samples}; † n > N/"
        f"{LOW_VARIANCE_SHARE}, where the subsets are few and overlap, so that the variance is "
        "high. The win rate is against one other completion, by the proxy; without ties it is "
        "n/(n + 1).",
    )


def _per_prompt(found: Selection) -> list[dict[str, Any]]:
    """For every n its KL, and the expected proxy and gold of each prompt's winner."""
    entries = []
    for place, n in enumerate(found.ns.tolist()):
        entry = {"n": n, "kl": float(found.sqrt_kl[place] ** 2)}
        for name, values in (("proxy", found.proxy), ("gold", found.gold)):
            if values is not None:
                entry[name] = values[place].round(6).tolist()
        entries.append(entry)
    return entries


def _first_of_pool(drawn: Drawn) -> ScoredCompletions:
    """All completions of the first prompts, to be read."""
    samples, scores = drawn.pool.samples, drawn.pool.scores
    return ScoredCompletions(
        samples.completion_prompts,
        samples.texts,
        samples.lengths,
        samples.ended,
        gold=None if drawn.gold is None else drawn.gold.ravel(),
        proxy=scores.ravel(),
    ).first(MOST_POOLED, scores.shape[1])


def _every_n(drawn: Drawn, select_n: int) -> dict[str, Any]:
    """Proxy and gold of all n up to N."""
    curve = best_of_n_curve(drawn.pool.scores, drawn.gold)
    num_samples = drawn.pool.scores.shape[1]
    points = [
        {
            "n": int(n),
            "nominal_kl": float(curve.kl[place]),
            "proxy": curve.proxy[place].to_dict(),
            "gold": None if curve.gold is None else curve.gold[place].to_dict(),
            "low_variance": bool(n * LOW_VARIANCE_SHARE <= num_samples),
        }
        for place, n in enumerate(curve.ns)
    ]
    counts = {"num_samples": num_samples, "select_n": select_n}
    return counts | {"num_empty": _num_empty(drawn.pool), "curve": points}


def _samples(drawn: Drawn) -> list[dict[str, Any]]:
    """Winners beside the first completion of their pool, which is any completion of the base."""
    pool, rows = drawn.pool, []
    for index in range(min(_NUM_SAMPLES, len(pool.chosen))):
        row: dict[str, Any] = {"prompt": content_of(pool.samples.prompts[index])}
        for side, column in (("policy", int(pool.chosen[index])), ("reference", 0)):
            row[side] = pool.samples.texts[index * pool.scores.shape[1] + column]
            row[f"{side}_proxy"] = round(float(pool.scores[index, column]), 2)
            if drawn.gold is not None:
                row[f"{side}_gold"] = round(float(drawn.gold[index, column]), 2)
        rows.append(row)
    return rows


def _settings(options: BestOfNArguments, job: Job, found: Selection) -> dict[str, Any]:
    return {
        "prompts": len(job.prompts),
        "completions per prompt": options.num_samples,
        "sampling": f"temperature {options.temperature:g}, no top-k or top-p, at most "
        f"{job.max_new_tokens} tokens",
        **(
            {}
            if job.context is None
            else {"shown in context": shown_name(context_source(job.context))}
        ),
        "proxy": job.proxy.name,
        "gold": job.gold.name if job.gold else "none",
        "prompts whose completions are all in the pool (exact KL)": found.num_covered,
        "seed": options.seed,
    }


def _card(record: dict[str, Any], report: dict[str, Any], num_prompts: int, n: int) -> str:
    """The dataset card."""
    lineage = record["lineage"]
    rows = [
        f"| {role.replace('_', ' ')} | {shown_name(source)} |" for role, source in sources(lineage)
    ]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    # No `configs`: with them the datasets library would go on serving, from its cache, a dataset
    # that was overwritten.
    return "\n".join(
        [
            "---\ntags:\n- hf-align\n- best-of-n\n---\n",
            f"# {record['name']}: best-of-{n} completions\n",
            f"{num_prompts:,} prompts, each with the completion that the proxy scores best among "
            f"{n} of **{report['reference']}**.\n",
            _COLUMNS,
            report_markdown(report, figures_in="report/").rstrip() + "\n",
            "## Lineage\n",
            "| what went in | which |",
            "|---|---|",
            *rows,
            f"\nCommand: `{public_command(record['command'], lineage)}` (seed {record['seed']}). "
            f"Versions: {versions}.\n",
        ]
    )


def closing_page(
    report: dict[str, Any], lineage: dict[str, Any], options: BestOfNArguments, path: Path
) -> str:
    """What is printed at the end: metrics, the curve, samples, the verdict, and what to do next."""
    lines = [closing_table(report), "", *_closing_curve(report), closing_samples(report), ""]
    lines.append(wrapped(report["verdict"]["text"]))
    lines += [wrapped(f"warning: {line}") for line in report["warnings"]]
    lines += ["", f"selected completions: {path / 'data'}", f"report and card: {path}"]
    if report["peak_n"]:
        return "\n".join(
            [*lines, f"next: the same with --select_n {report['peak_n']} and another --output_dir"]
        )
    judge = " --gold_reward testbed" if options.dataset_name == TESTBED else ""
    # The translation task's policy has no name elsewhere, and an adapter is no whole model.
    own = parse_policy(str(options.model_name_or_path)).model
    model = "MODEL" if own == TRANSLATION or "base_model" in lineage else own
    judge += " --invalid_rows drop" if report["best_of_n"]["num_empty"] else ""
    command = (
        f"python -m hf_align.recipes.sft --model {model} --dataset_name {path / 'data'}{judge}"
    )
    return "\n".join([*lines, f"next: {command}"])


def _closing_curve(report: dict[str, Any]) -> list[str]:
    points = report["best_of_n"]["curve"]
    shown = [p for p in points if p["n"] & (p["n"] - 1) == 0 or p["n"] == len(points)]
    lines = [f"{'n':>5}  {'KL <=':>6}  {'proxy':<24}  gold"]
    for point in shown:
        proxy, gold = (_cell(point[name]) for name in ("proxy", "gold"))
        lines.append(f"{point['n']:>5}  {point['nominal_kl']:>6.3f}  {proxy:<24}  {gold}".rstrip())
    return lines


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
