"""The explorer's parts as HTML: charts, tables, completions, verdicts, best-of-n, what-if.

Texts of runs and models go through `safe_text`, and nothing says by colour alone what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_align.diagnostics.best_of_n import best_of_n_kl
from hf_align.diagnostics.explorer import AtKL, Selected, Shifts
from hf_align.diagnostics.html_report import MARKS
from hf_align.diagnostics.sample_files import ScoredCompletions
from hf_align.diagnostics.what_if import Fits, WhatIf
from hf_align.types import Estimate
from hf_align.ui.charts import NAMES, Series, curve_chart, glyph, pool_chart
from hf_align.ui.explorer_runs import OpenRun
from hf_align.ui.safe_text import escaped, safe_html, safe_prompt

HUB = "https://huggingface.co"
MOST_SHOWN = 20_000
_ABOUT = ("kl/sequence", "gold/gain", "proxy/gain", "length/gain", "gold/win_rate")
_LAW = {"rl": "d (α − β ln d)", "best_of_n": "d (α − β d)"}


def charts_view(runs: Sequence[OpenRun]) -> str:
    """Gold and proxy of all runs along one axis, which run is which, and the numbers."""
    curved = [run for run in runs if run.curve is not None]
    if not curved:
        return '<p class="hint">None of the runs picked has a curve.</p>'
    farthest = max(float(run.curve.sqrt_kl.max()) for run in curved)
    parts = []
    for name, unit in (("Gold", "gold"), ("Proxy", "score")):
        series = [
            Series(run.key, place, run.curve.sqrt_kl, gains)
            for place, run in enumerate(runs)
            if run.curve is not None and (gains := getattr(run, name.lower())) is not None
        ]
        chart = curve_chart(series, farthest, f"{name} gain", unit)
        parts.append(
            f'<figure class="panel-chart" data-panel="{name.lower()}"><figcaption>{name}: gain '
            f"over the reference</figcaption>{chart}</figure>"
        )
    return f'<div class="charts">{"".join(parts)}</div>{legend(runs)}{_numbers(curved)}'


def legend(runs: Sequence[OpenRun]) -> str:
    """Which line and marker is which run."""
    entries = "".join(
        f'<li>{glyph(place)}<span>{escaped(run.key)} <span class="quiet">({NAMES[place % 6]})'
        "</span></span></li>"
        for place, run in enumerate(runs)
        if run.curve is not None
    )
    return f'<ul class="legend" aria-label="Lines and markers">{entries}</ul>'


def _numbers(runs: Sequence[OpenRun]) -> str:
    tables = []
    for run in runs:
        rows = "".join(
            f'<tr><th scope="row">{step:.0f}</th><td>{distance**2:.3g}</td>'
            f"<td>{_of(run.gold, place)}</td><td>{_of(run.proxy, place)}</td></tr>"
            for place, (step, distance) in enumerate(
                zip(run.curve.steps, run.curve.sqrt_kl, strict=True)
            )
        )
        counted = "n" if run.is_selection else "step"
        tables.append(
            f"<h3>{escaped(run.key)}</h3>"
            f"{_table([counted, 'KL, nats', 'gold gain', 'proxy gain'], rows, run.key)}"
        )
    return (
        '<details class="numbers-table"><summary>The same as tables</summary>'
        f"{''.join(tables)}</details>"
    )


def _of(gains: Sequence[Estimate] | None, place: int) -> str:
    return "–" if gains is None else interval(gains[place])


def _table(head: Sequence[str], rows: str, label: str) -> str:
    cells = "".join(f'<th scope="col">{escaped(name)}</th>' for name in head)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Table: {escaped(label)}"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def interval(estimate: Estimate | None, signed: bool = True) -> str:
    """A number with its interval, for reading."""
    if estimate is None:
        return "–"
    shown = _number(estimate.value, signed)
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} [{_number(estimate.low, False)}, {_number(estimate.high, False)}]"


def _number(value: float, signed: bool) -> str:
    digits = 2 if abs(value) < 100 else 0
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def problems_view(problems: dict[str, str]) -> str:
    """The runs that cannot be shown, each with its reason."""
    return "".join(
        f'<p class="problem"><strong>{escaped(key)}</strong> cannot be shown: {escaped(why)}</p>'
        for key, why in problems.items()
    )


def notes_view(notes: Sequence[str]) -> str:
    """What has to be known before lines are compared."""
    return "".join(f'<p class="note">{escaped(note)}</p>' for note in notes)


def equal_view(runs: Sequence[OpenRun], found: Sequence[AtKL | None], kl: float) -> str:
    """All runs where each first reached one KL."""
    rows = []
    for place, (run, at) in enumerate(zip(runs, found, strict=True)):
        name = f'<th scope="row">{glyph(place)} {escaped(run.key)}</th>'
        if run.curve is None:
            rows.append(f'<tr>{name}<td colspan="3">no curve</td></tr>')
        elif at is None:
            rows.append(f'<tr>{name}<td colspan="3">not reached: {_farthest(run)}</td></tr>')
        else:
            counted = "n" if run.is_selection else "step"
            low, high = at.between
            where = f"{counted} {low}" if low == high else f"{counted} {low} to {high}"
            rows.append(
                f"<tr>{name}<td>{interval(at.gold)}</td><td>{interval(at.proxy)}</td>"
                f"<td>{where}</td></tr>"
            )
    table = _table(["run", "gold gain", "proxy gain", "reached at"], "".join(rows), "equal KL")
    return (
        f"<p>Where each run first reached <strong>KL {kl:.3g} nats</strong>, interpolated between "
        "its two nearest measurements; never beyond the last. 95 % intervals over prompts.</p>"
        f"{table}"
    )


def _farthest(run: OpenRun) -> str:
    """How far a run went, and what it had gained there."""
    place = int(run.curve.sqrt_kl.argmax())
    gained = [
        f"{name} {_number(gains[place].value, True)}"
        for name, gains in (("gold", run.gold), ("proxy", run.proxy))
        if gains is not None
    ]
    there = f" ({', '.join(gained)} there)" if gained else ""
    return f"it went to KL {run.curve.sqrt_kl[place] ** 2:.3g}{there}"


def samples_view(
    prompt: Any, sides: Sequence[tuple[str, str, Sequence[tuple[str, str]]]], flag: str = ""
) -> str:
    """A prompt with two answers side by side, each with its title and what was measured."""
    shown = "".join(
        f'<section class="output"><h3>{escaped(title)}</h3><div class="text">{_text(text)}</div>'
        f"{_facts(facts)}</section>"
        for title, text, facts in sides
    )
    warning = f'<p class="flag">{escaped(flag)}</p>' if flag else ""
    asked = f'<div class="prompt">{_prompt(prompt)}</div>'
    return f'{asked}{warning}<div class="outputs two">{shown}</div>'


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return f'<p class="role">Prompt</p><div class="text">{_text(prompt)}</div>'
    return safe_prompt([{**turn, "content": turn["content"][:MOST_SHOWN]} for turn in prompt])


def _text(text: str) -> str:
    if not text.strip():
        return '<p class="quiet">(empty)</p>'
    rest = len(text) - MOST_SHOWN
    more = f'<p class="quiet">… and {rest:,} more characters</p>' if rest > 0 else ""
    return safe_html(text[:MOST_SHOWN]) + more


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    entries = "".join(f"<div><dt>{escaped(k)}</dt><dd>{escaped(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{entries}</dl>'


def facts_of(
    side: ScoredCompletions, row: int, shifted: Shifts | None = None
) -> list[tuple[str, str]]:
    """What was measured of one completion; with its change from the reference's where given."""
    facts = []
    for name in ("gold", "proxy"):
        values = getattr(side, name)
        if values is None:
            continue
        text = _number(float(values[row]), False)
        changes = None if shifted is None else getattr(shifted, name)
        if changes is not None:
            change = float(changes[row])
            arrow = "▲" if change > 0 else "▼" if change < 0 else "="
            text += f" ({arrow} {_number(change, True)})"
        facts.append((name, text))
    if shifted is not None and side.log_ratio is not None:
        facts.append(("log π/π_ref", f"{_number(float(side.log_ratio[row]), True)} nats"))
    ended = "" if side.ended[row] else ", cut off"
    return [*facts, ("length", f"{int(side.lengths[row])} tokens{ended}")]


def verdicts_view(runs: Sequence[OpenRun]) -> str:
    """What each run's own report says."""
    return f'<ul class="cards">{"".join(map(_verdict, runs))}</ul>'


def _verdict(run: OpenRun) -> str:
    report, source = run.run.report, run.run.source
    title = escaped(run.key)
    if source["revision"]:
        kind = "datasets/" if run.run.home.kind == "dataset" else ""
        place = f"{HUB}/{kind}{source['name']}/tree/{source['revision']}"
        title = (
            f'<a href="{escaped(place)}" target="_blank" rel="noopener noreferrer nofollow">'
            f'{title}</a> <span class="quiet">at {escaped(source["revision"][:8])}</span>'
        )
    made = f'<span class="quiet">{escaped(run.run.record["recipe"][:40])}</span>'
    if report is None:
        return f"<li><h3>{title} {made}</h3><p>It has no report.</p></li>"
    kind, mark = MARKS[report["verdict"]["label"]]
    label = escaped(report["verdict"]["label"])
    facts = [
        (name, interval(_estimate(report["metrics"][name]), name.endswith("gain")))
        for name in _ABOUT
        if name in report["metrics"]
    ]
    warnings = "".join(f'<p class="note">{escaped(w[:600])}</p>' for w in report["warnings"][:5])
    problem = f'<p class="note">{escaped(run.problem)}</p>' if run.problem else ""
    return (
        f'<li><h3>{title} {made}</h3><p class="verdict {kind}"><span aria-hidden="true">{mark}'
        f"</span> {label}</p><p>{escaped(_after_label(report['verdict']))}</p>{_facts(facts)}"
        f"{warnings}{problem}</li>"
    )


def _after_label(verdict: dict[str, str]) -> str:
    text = verdict["text"].removeprefix(f"{verdict['label']}: ")[:1000]
    return text[:1].upper() + text[1:]


def _estimate(entry: dict[str, Any]) -> Estimate:
    return Estimate(entry["value"], entry["low"], entry["high"], entry["n"])


def selection_view(points: Sequence[Selected], n: int) -> str:
    """What best-of-n is worth on average over all of a run's prompts."""
    here, base = points[n - 1], points[0]
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{interval(at, False)}</td>'
        f"<td>{interval(start, False)}</td><td>{_number(at.value - start.value, True)}</td></tr>"
        for name, at, start in (("proxy", here.proxy, base.proxy), ("gold", here.gold, base.gold))
        if at is not None and start is not None
    )
    rough = (
        ""
        if here.low_variance or n == 1
        else f'<p class="note">n is over a quarter of the {len(points)} completions drawn per '
        "prompt: the subsets of n overlap, and the variance is high.</p>"
    )
    return (
        f"<p><strong>Best of {n}</strong>: KL from the base policy of at most "
        f"{float(best_of_n_kl(n)):.3f} nats (log n − (n − 1)/n).</p>"
        + _table(["expected", f"best of {n}", "any one", "difference"], rows, "best-of-n")
        + f"{rough}<p class='hint'>Means over all prompts of the run and all subsets of n of its "
        "pool, without bias; 95 % intervals over prompts.</p>"
    )


def pool_view(pool: ScoredCompletions, rows: slice, n: int, winner: int) -> str:
    """One prompt's pool: which of the first n was chosen, beside the first one drawn."""
    first, chosen = rows.start, rows.start + winner
    gold = None if pool.gold is None else pool.gold[rows]
    chart = pool_chart(pool.proxy[rows], gold, n, winner)
    sides = [
        ("Drawn first: any one completion", pool.completions[first], facts_of(pool, first)),
        (
            f"Best of {n} by the proxy" + (": the same one" if winner == 0 else ""),
            pool.completions[chosen],
            facts_of(pool, chosen),
        ),
    ]
    return (
        f'<figure class="panel-chart"><figcaption>This prompt: {n} of {rows.stop - rows.start} '
        "drawn (filled), the best by the proxy ringed</figcaption>"
        f"{chart}</figure>{samples_view(pool.prompts[first], sides)}"
    )


def what_if_view(
    run: OpenRun,
    found: WhatIf,
    fits: Fits,
    others: Sequence[tuple[str, float, Estimate | None, Estimate | None]],
) -> str:
    """Where a coefficient would have left a run, how that is known, and what others came to."""
    if found.kl is None:
        said = f'<p class="flag">Cannot be said. {escaped(found.why)}</p>'
    else:
        gold = f", gold <strong>{interval(found.gold)}</strong>" if found.gold else ""
        said = (
            f"<p>With β = {found.beta:g}, a run on the path of {escaped(run.key)} would have come "
            f"to rest at <strong>KL {interval(found.kl, False)} nats</strong>: proxy gain "
            f"<strong>{interval(found.proxy)}</strong>{gold}.</p>"
        )
        if found.is_open:
            said += (
                '<p class="note">The interval of the KL ends where the audits do; the true one may '
                "go on beyond.</p>"
            )
        if found.why:
            said += f'<p class="note">{escaped(found.why)}</p>'
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{beta:g}</td>'
        f"<td>{interval(kl, False)}</td><td>{interval(gain)}</td></tr>"
        for name, beta, kl, gain in others
    )
    happened = ""
    if rows:
        head = ["trained with a penalty", "β", "KL it came to, nats", "gold gain"]
        happened = (
            "<h3>What did happen</h3>"
            f"{_table(head, rows, 'what did happen')}"
            '<p class="hint">A penalised run takes a path of its own: where these differ from the '
            "answer above, believe these.</p>"
        )
    return f"{said}{happened}{_how(fits)}"


def _how(fits: Fits) -> str:
    lines = [
        f"{name} ≈ {_LAW[fit.fit.law.form]} with α = {fit.fit.law.alpha:.3g}, "
        f"β = {fit.fit.law.beta:.3g} (R² {fit.fit.r_squared:.3f})"
        for name, fit in (("proxy gain", fits.proxy), ("gold gain", fits.gold))
        if fit is not None
    ]
    laws = "".join(f"<li>{escaped(line)}</li>" for line in lines)
    return (
        '<details class="how"><summary>How this is known, and what it leaves out</summary>'
        "<p>Gao's laws in d = √KL are fitted to this run's audits, the better of the two forms for "
        "each curve; the proxy's law less β d² is stationary at the KL named, and gold is read off "
        f"its own law there.</p><ul>{laws}</ul><p>The interval resamples prompts. It holds neither "
        "the choice of law nor the main doubt: that a penalised run follows the path of this one. "
        "Runs that move slowly gain more per nat, so a penalised run usually does better than this "
        "says. β is in units of the raw proxy score per nat of sequence KL; shaping the score "
        "changes the unit.</p></details>"
    )


def order_note(shifted: Shifts, num_rows: int) -> str:
    """How many completions of an audit are over-optimised."""
    flagged = shifted.over_optimised
    if flagged is None:
        return f"{num_rows} prompts"
    return f"{num_rows} prompts; in {int(np.count_nonzero(flagged))} the proxy rose and gold fell"
