"""Renders a report as one HTML page that needs nothing else: no request, no script, no font.

Figures are inline SVG whose colours follow the page's, light or dark by the reader's setting. Wide
tables and figures scroll in their own box, so the page fits a phone. Generated text is escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_align.diagnostics.goodhart_tables import Section
from hf_align.diagnostics.markdown import number
from hf_align.types import content_of

# What figures draw with, and the page's variable that takes its place. Black that is SVG's default
# is not written, so the page gives it to the whole figure.
_THEME = {
    "#000000": "ink",
    "#ffffff": "paper",
    "#e5e5e5": "line",
    "#666666": "muted",
    "#0072b2": "c0",
    "#d55e00": "c1",
    "#008a64": "c2",
    "#aa3377": "c3",
    "#7a5c00": "c4",
    "#007c91": "c5",
}

MARKS = {
    "OVER-OPTIMISED": ("bad", "▼"),
    "INVALID": ("bad", "✕"),
    "NO GAIN": ("wary", "–"),
    "INCONCLUSIVE": ("wary", "?"),
    "NOT DETECTED": ("good", "✓"),
}
"""How each verdict looks: its kind, and a sign that says the same without colour."""

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2024; --muted: #5a626b;
  --line: #dfe3e8; --panel: #f5f7f9; --link: #0b57a4; --bad: #a3271b; --wary: #7a5200;
  --good: #17663f; --c0: #0072b2; --c1: #c45500; --c2: #008a64; --c3: #aa3377; --c4: #7a5c00;
  --c5: #007c91; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e8eaed; --muted: #a6aeb8;
  --line: #363c43; --panel: #1d2126; --link: #8ab8ff; --bad: #ff9c8a; --wary: #f0bf5c;
  --good: #7fd6a4; --c0: #5cb3e6; --c1: #ff9350; --c2: #3fcf9f; --c3: #ea90c6; --c4: #d8b64f;
  --c5: #5fcbdf; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
p, ul { max-width: 46rem; } p { margin: .5rem 0; } li { margin: .25rem 0; }
a { color: var(--link); }
.lead { font-size: 1.06rem; } .quiet { color: var(--muted); font-size: .9rem; }
.warning { border-left: 3px solid var(--wary); padding: .1rem .8rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; }
.runs { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr));
  padding: 0; margin: 1rem 0; max-width: none; list-style: none; }
.runs li { background: var(--panel); border: 1px solid var(--line); border-radius: 6px;
  padding: .8rem 1rem; margin: 0; overflow-wrap: anywhere; }
.runs h3 { margin: 0; display: flex; justify-content: space-between; gap: .6rem; flex-wrap: wrap; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.verdict { font-weight: 700; font-size: .85rem; letter-spacing: .02em; white-space: nowrap; }
.bad { color: var(--bad); } .wary { color: var(--wary); } .good { color: var(--good); }
.box { overflow-x: auto; -webkit-overflow-scrolling: touch; }
.box:focus-visible, a:focus-visible, summary:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px; }
figure { margin: 1.2rem 0; } figcaption { color: var(--muted); font-size: .9rem; }
figure svg { display: block; width: 100%; min-width: 36rem; height: auto; fill: var(--ink); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  margin: .3rem 0 .6rem; }
th, td { text-align: left; vertical-align: top; padding: .34rem .9rem .34rem 0;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 5rem; max-width: 16rem; }
td { min-width: 4rem; } td.number { white-space: nowrap; } td.text { min-width: 14rem; }
td small { color: var(--muted); display: block; font-size: .82rem; }
summary { cursor: pointer; } code { font-size: .92em; overflow-wrap: anywhere; }
@media print { .box { overflow: visible; } figure { break-inside: avoid; } }
"""

# Nothing is fetched, whatever a text in the report may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html_page(
    report: Mapping[str, Any],
    sections: Sequence[Section],
    figures: Mapping[str, str],
    captions: Mapping[str, str],
    title: str,
) -> str:
    """The report as a whole HTML page.

    Args:
        report: Content of `report.json`, with `runs` and `recommendation`.
        sections: Its parts in reading order.
        figures: `{file stem: SVG text}`.
        captions: `{file stem: what the figure shows}`; its text alternative as well.
        title: Of the page.
    """
    parts = [(f"part-{i}", section) for i, section in enumerate(sections)]
    links = "".join(f'<li><a href="#{key}">{_text(s.title)}</a></li>' for key, s in parts)
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="lead">{_text(report["recommendation"]["text"])}</p>',
        *(f'<p class="warning">{_text(line)}</p>' for line in report["warnings"]),
        _cards([*report["runs"], *report.get("best_of_n_runs", ())]),
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>',
        *(_section(key, section, figures, captions) for key, section in parts),
        _samples(report["runs"]),
        _settings(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def inline_svg(svg: str, name: str) -> str:
    """A figure of matplotlib's as a part of the page: its own ids, the page's colours, no size.

    Args:
        svg: The SVG file's text.
        name: A prefix for its ids, which are the same in every figure.
    """
    start = svg.index("<svg")
    text = re.sub(r"<metadata>.*?</metadata>", "", svg[start:], flags=re.DOTALL)
    head, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    rest = rest.replace("xlink:href", "href")
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', rest)
    rest = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", rest)
    for color, variable in _THEME.items():
        rest = re.sub(rf"\b(fill|stroke): {color}\b", rf"\1: var(--{variable})", rest)
    return f'<svg {view[0] if view else ""} aria-hidden="true" focusable="false">{rest.strip()}'


def _section(
    key: str, section: Section, figures: Mapping[str, str], captions: Mapping[str, str]
) -> str:
    lines = [f'<section aria-labelledby="{key}"><h2 id="{key}">{_text(section.title)}</h2>']
    if section.text:
        lines.append(f"<p>{_text(section.text)}</p>")
    for name in section.figures:
        caption = _text(captions.get(name, name.replace("_", " ")))
        lines.append(
            f'<figure><div class="box" tabindex="0" role="img" aria-label="{caption}">'
            f"{inline_svg(figures[name], name)}</div><figcaption>{caption}</figcaption></figure>"
        )
    lines += [_table(table.to_dict(), section.title) for table in section.tables]
    if section.items:
        lines.append(f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in section.items)}</ul>")
    return "\n".join([*lines, "</section>"])


def _cards(runs: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for run in runs:
        label = run["verdict"]["label"]
        style, mark = MARKS[label]
        text = run["verdict"]["text"].removeprefix(f"{label}: ")
        cards.append(
            f'<li><h3>{_text(run["name"])} <span class="verdict {style}"><span aria-hidden="true">'
            f"{mark}</span> {_text(label)}</span></h3><p>{_text(text[:1].upper() + text[1:])}</p>"
            + "".join(f'<p class="quiet">{_text(line)}</p>' for line in run["statements"])
            + "</li>"
        )
    return f'<h2 class="unseen">Verdicts</h2><ul class="runs">{"".join(cards)}</ul>'


def _table(table: Mapping[str, Any], section: str) -> str:
    title = _text(table["title"])
    heading = "" if table["title"] == section else f"<h3>{title}</h3>"
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table["columns"])
    rows = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>'
        for row in table["rows"]
    )
    note = f'<p class="quiet">{_text(table["note"])}</p>' if table["note"] else ""
    return (
        f'{heading}{note}<div class="box" tabindex="0" role="region" aria-label="{title}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: Any) -> str:
    if cell is None:
        return '<td class="number">–</td>'
    if isinstance(cell, Mapping):
        interval = ""
        if cell["low"] is not None and cell["high"] is not None:
            ends = _decimals(cell["low"]), _decimals(cell["high"])
            interval = "" if ends[0] == ends[1] else f"<small>[{', '.join(ends)}]</small>"
        return f'<td class="number">{_decimals(cell["value"])}{interval}</td>'
    if isinstance(cell, (int, float)):
        return f'<td class="number">{number(cell).replace("-", "−")}</td>'
    return f'<td class="{"text" if len(cell) > 40 else "number"}">{_text(cell)}</td>'


def _decimals(value: float) -> str:
    shown = f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"
    return (shown[1:] if float(shown) == 0 and shown[0] == "-" else shown).replace("-", "−")


def _samples(runs: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for run in runs:
        if not run["samples"]:
            continue
        keys = list(run["samples"][0])
        head = "".join(f'<th scope="col">{_text(key.replace("_", " "))}</th>' for key in keys)
        rows = "".join(
            f"<tr>{''.join(_cell(_plain(row[key])) for key in keys)}</tr>" for row in run["samples"]
        )
        name = _text(run["name"])
        parts.append(
            f"<details><summary>{name}</summary>"
            f'<div class="box" tabindex="0" role="region" aria-label="Samples of {name}"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
        )
    if not parts:
        return ""
    return "<section><h2>Samples, not selected</h2>" + "".join(parts) + "</section>"


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else content_of(value)


def _settings(report: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li>{_text(key)}: {_text(value)}</li>" for key, value in report["evaluation"].items()
    )
    return f"<section><h2>How it was measured</h2><ul>{items}</ul></section>"


def _text(text: object) -> str:
    """Any text as inert HTML; control characters, which a byte-level model samples, are shown."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text))
    return html.escape(shown, quote=True)
