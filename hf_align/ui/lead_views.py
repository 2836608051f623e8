"""The lead's page as HTML: progress, agreement, people, disagreements, backup, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_align.feedback import Agreement, Progress, Quality
from hf_align.feedback.collection import Briefing
from hf_align.feedback.outbox import Lag
from hf_align.types import Estimate
from hf_align.ui.safe_text import escaped, safe_html, safe_prompt


@dataclass(frozen=True)
class Overview:
    """What the page shows.

    Attributes:
        progress: Counts.
        agreement: Of all annotators.
        quality: Of all together, then of each annotator.
        drifting: Annotator -> what changed between the first and the last stretch.
        accounts: Pseudonym -> account.
        paused: Annotator -> reason.
        disagreements: Pairs to settle.
        set_aside: Items that too many skipped, with how many.
        lag: What is not backed up.
        backup: Name of the backup; None for none.
        level: When an answer is acknowledged.
        briefing: Settings and guidelines.
    """

    progress: Progress
    agreement: Agreement
    quality: Sequence[Quality]
    drifting: Mapping[str, Sequence[str]]
    accounts: Mapping[str, str]
    paused: Mapping[str, str]
    disagreements: Sequence[Mapping[str, Any]]
    set_aside: Sequence[tuple[str, int]]
    lag: Lag
    backup: str | None
    level: str
    briefing: Briefing


def lead_view(seen: Overview) -> str:
    """The whole page."""
    return "".join(
        (
            _numbers(seen),
            _panel("Backup", _backup(seen)),
            _panel("Annotators", _people(seen)),
            _panel(f"Disagreements to settle ({seen.progress.disagreements})", _disputes(seen)),
            _panel("Skipped by too many", _skipped(seen)) if seen.set_aside else "",
            _panel("Export", _EXPORT),
            _panel("Push to the Hub", _PUSH),
            _panel("Hand out", _running(seen)),
            _panel("Guidelines", _guidelines(seen)),
        )
    )


def _panel(title: str, content: str) -> str:
    return f'<section class="panel"><h2>{escaped(title)}</h2>{content}</section>'


def _numbers(seen: Overview) -> str:
    done, everyone = seen.progress, seen.quality[0]
    pairs = (
        ("Votes", f"{done.votes} of {done.wanted}"),
        ("Items complete", f"{done.complete} of {done.items}"),
        ("Annotators", f"{done.annotators} ({done.paused_annotators} paused)"),
        ("Being worked on", done.held),
        ("Skips / set aside", f"{done.skips} / {done.set_aside}"),
        ("Ties", done.ties),
        ("Same winner", _share(seen.agreement.same_winner)),
        ("Krippendorff's α, winner", _value(seen.agreement.alpha_winner)),
        ("Krippendorff's α, strength", _value(seen.agreement.alpha_strength)),
        ("Left side wins", f"{_share(everyone.left)}{_p_value(everyone.left_p)}"),
        ("Gold answers right", _share(everyone.gold)),
        ("Same again on repeats", _share(everyone.consistency)),
    )
    boxes = "".join(f"<div><dt>{what}</dt><dd>{escaped(value)}</dd></div>" for what, value in pairs)
    state = '<p class="warn">The project is paused.</p>' if done.paused else ""
    return (
        f'{state}<dl class="numbers">{boxes}</dl>'
        '<button type="button" data-do="next">Refresh</button>'
    )


def _backup(seen: Overview) -> str:
    if seen.backup is None:
        return (
            '<p class="warn">There is no backup: what people answer is on this machine\'s disk '
            "only.</p>"
        )
    lag = seen.lag
    waiting = (
        "Everything is backed up."
        if not lag.events
        else (f"{lag.events} events are not backed up; the oldest has waited {lag.seconds:.0f} s.")
    )
    error = f'<p class="warn">The last upload failed: {escaped(lag.error)}</p>' if lag.error else ""
    meaning = {"local": "on this disk", "safe": "in the backup"}[seen.level]
    return (
        f"<p>{escaped(seen.backup)}. {waiting} An answer is acknowledged once it is {meaning}.</p>"
        f"{error}"
    )


def _people(seen: Overview) -> str:
    rows = "".join(_person(one, seen) for one in seen.quality[1:])
    if not rows:
        return "<p>Nobody has answered yet.</p>"
    heads = (
        *("Annotator", "Votes", "Gold right", "Agrees with others", "Same again", "Left side"),
        *("Seconds per item", "To look at", "Pause"),
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Annotators"><table><thead><tr>'
        + "".join(f"<th>{head}</th>" for head in heads)
        + f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _person(own: Quality, seen: Overview) -> str:
    reasons = [*own.reasons, *seen.drifting.get(own.annotator, ())]
    seconds = own.active_ms if own.active_ms is not None else own.wall_ms
    name = seen.accounts.get(own.annotator, "")
    cells = (
        f"{escaped(name)} <code>{escaped(own.annotator)}</code>",
        str(own.votes),
        *map(_share, (own.gold, own.agreement, own.consistency, own.left)),
        "–" if seconds is None else f"{seconds / 1000:.1f}",
        "<br>".join(map(escaped, reasons)) or "–",
        _pause_form(own.annotator, seen.paused.get(own.annotator)),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _pause_form(annotator: str, reason: str | None) -> str:
    hidden = f'<input type="hidden" name="annotator" value="{escaped(annotator)}">'
    if reason is not None:
        return (
            f'<form data-action="pause-annotator">{hidden}<span>{escaped(reason)}</span>'
            f'<button type="submit" aria-label="Let {escaped(annotator)} go on">Go on</button>'
            "</form>"
        )
    return (
        f'<form data-action="pause-annotator">{hidden}<label class="field"><span class="sr">Reason '
        f'for pausing {escaped(annotator)}</span><input name="reason" required maxlength="500" '
        'placeholder="Reason"></label>'
        f'<button type="submit" aria-label="Pause {escaped(annotator)}">Pause</button></form>'
    )


def _disputes(seen: Overview) -> str:
    if not seen.disagreements:
        return "<p>None.</p>"
    return "".join(map(_dispute, seen.disagreements))


_SCORES = ((2, "A"), (1, "A slightly"), (0, "Tie"), (-1, "B slightly"), (-2, "B"))


def _dispute(pair: Mapping[str, Any]) -> str:
    said = dict(_SCORES)
    votes = ", ".join(said[score] for score in sorted(pair["scores"], reverse=True))
    notes = "".join(f"<li>{escaped(note)}</li>" for note in pair["notes"])
    outputs = "".join(
        f'<section class="output" aria-label="Answer {name}"><h3>Answer {name}</h3>'
        f'<div class="text">{safe_html(text)}</div></section>'
        for name, text in zip("AB", pair["completions"], strict=True)
    )
    buttons = "".join(
        f'<button type="submit" name="score" value="{score}">{label}</button>'
        for score, label in _SCORES
    )
    return (
        f'<details class="dispute"><summary>{escaped(votes)}</summary>{safe_prompt(pair["prompt"])}'
        f'<div class="outputs two">{outputs}</div>{f"<ul>{notes}</ul>" if notes else ""}'
        f'<form data-action="adjudicate"><input type="hidden" name="item" '
        f'value="{escaped(pair["item_id"])}"><label class="field">Why (optional)'
        f'<input name="notes" maxlength="10000"></label>{buttons}</form></details>'
    )


def _skipped(seen: Overview) -> str:
    rows = "".join(
        f'<form data-action="requeue"><input type="hidden" name="item" value="{escaped(item)}">'
        f"<span><code>{escaped(item)}</code>: {skips} skips</span>"
        f'<button type="submit" aria-label="Put {escaped(item)} back">Put back</button></form>'
        for item, skips in seen.set_aside
    )
    return f"<p>Nobody gets these until you put them back.</p>{rows}"


def _select(name: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    chosen = "".join(f'<option value="{value}">{text}</option>' for value, text in options)
    return f'<label class="field">{label}<select name="{name}">{chosen}</select></label>'


_ROWS = (
    _select(
        "kind",
        "What",
        (
            *(("preference", "Pairs: chosen, rejected"), ("ranking", "Rankings")),
            *(("unpaired", "Single answers: good or not"), ("demonstration", "Demonstrations")),
            ("raw", "All events"),
        ),
    )
    + _select(
        "votes",
        "Votes",
        (("majority", "Majority"), ("single", "One row per vote"), ("soft", "Share of votes")),
    )
    + _select("ties", "Ties", (("drop", "Leave out"), ("both", "Both ways round")))
    + _select("skips", "Skips", (("drop", "Leave out"), ("tie", "Count as ties")))
)
_EXPORT = (
    f'<form data-action="export">{_ROWS}'
    + _select("format", "File", (("jsonl", "JSON lines"), ("parquet", "Parquet"), ("csv", "CSV")))
    + '<button type="submit" class="primary">Download</button></form>'
)
_PUSH = (
    f'<form data-action="push">{_ROWS}<label class="field">Repo<input name="repo" required '
    'maxlength="200" placeholder="namespace/name"></label>'
    + _select("public", "Seen by", (("no", "Me or my organisation"), ("yes", "Everyone")))
    + '<button type="submit">Push</button></form>'
)


def _running(seen: Overview) -> str:
    paused, project = seen.progress.paused, seen.briefing.project
    quota = "" if project.quota is None else project.quota
    fields = (
        ("overlap", "Votes per item", project.overlap),
        ("quota", "Answers per annotator (empty: no limit)", quota),
        ("gold_rate", "Share of gold items", project.gold_rate),
        ("repeat_rate", "Share of repeats", project.repeat_rate),
    )
    inputs = "".join(
        f'<label class="field">{label}<input name="{name}" value="{value}" inputmode="decimal" '
        'maxlength="12"></label>'
        for name, label, value in fields
    )
    return (
        f'<form data-action="pause"><input type="hidden" name="paused" '
        f'value="{"no" if paused else "yes"}"><button type="submit">'
        f"{'Go on handing out' if paused else 'Pause handing out'}</button></form>"
        f'<form data-action="settings">{inputs}<button type="submit">Change</button></form>'
    )


def _guidelines(seen: Overview) -> str:
    briefing = seen.briefing
    return (
        f'<form data-action="guidelines" class="column"><label class="field">Version '
        f"{briefing.guideline_version}, in Markdown"
        f'<textarea name="text" rows="8" maxlength="200000">{escaped(briefing.guidelines)}'
        '</textarea></label><label class="check"><input type="checkbox" name="quiz" value="yes">'
        "<span>Everyone takes the quiz again</span></label>"
        '<button type="submit">Publish a new version</button></form>'
    )


def _share(found: Estimate | None) -> str:
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value:.0%} (n = {found.n})"
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"


def _value(found: Estimate | None) -> str:
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _p_value(p: float | None) -> str:
    return "" if p is None else f", p\u00a0=\u00a0{p:.2g}"
