"""Reports that give no verdict on a policy, such as those of `evaluate`, `annotate` and `hhh`.

Each says what it measured in parts of its own. Here they are read as data and shown as far as their
form is known: sentences, tables, estimates, counts; whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hf_align.diagnostics.markdown import escaped, number, table_lines
from hf_align.diagnostics.report_shape import is_estimate, is_figure, is_number, is_table, short
from hf_align.records import one_line
from hf_align.types import InputError

_SENTENCES = ("statements", "warnings", "notes")
_APART = (*_SENTENCES, "schema", "recipe", "name", "tables", "figures", "samples", "examples")
_MOST = 200
"""Lines of facts that are shown; a report of thousands is no report."""


def check_findings(report: Mapping[str, Any], label: str) -> None:
    """Refuses what nothing that shows a report could show.

    Args:
        report: What was read.
        label: How messages call it.

    Raises:
        InputError: Names the part, and what it should be.
    """

    def fail(what: str) -> None:
        raise InputError(f"{label} is no report: {what}")

    if report.get("schema", 1) != 1:
        fail(f"schema is {short(report['schema'])}")
    for name in _SENTENCES:
        lines = report.get(name, [])
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            fail(f"{name} are not all sentences")
    tables = report.get("tables", [])
    if not isinstance(tables, list) or not all(map(is_table, tables)):
        fail("tables are not all title, note, columns and rows of as many cells")
    figures = report.get("figures", [])
    if not isinstance(figures, list) or not all(map(is_figure, figures)):
        fail(f"figures are {short(figures)}, expected names of .png files beside it")
    for name, value in _leaves(report):
        if not isinstance(value, bool | str | None) and not is_number(value):
            fail(f"{one_line(name, 60)} is {short(value)}, which was never measured")


def findings_lines(report: Mapping[str, Any]) -> list[str]:
    """What a report says, as lines for a terminal."""
    lines = [one_line(line, 600) for line in report.get("statements", [])]
    lines += [f"  {one_line(name, 60)}: {_plain(value)}" for name, value in _facts(report)]
    lines += [f"warning: {one_line(line)}" for line in report.get("warnings", [])]
    return lines


def findings_markdown(report: Mapping[str, Any]) -> str:
    """What a report says, as Markdown in which its author's texts are inert."""
    lines = []
    for line in report.get("statements", []):
        lines += [escaped(line), ""]
    lines += [f"> Warning: {escaped(line)}\n" for line in report.get("warnings", [])]
    for table in report.get("tables", []):
        lines += table_lines(table)
    facts = list(_facts(report))
    if facts:
        lines += ["| what | value |", "|---|---|"]
        lines += [f"| {escaped(name)} | {escaped(_plain(value))} |" for name, value in facts]
        lines.append("")
    lines += [f"- {escaped(line)}" for line in report.get("notes", [])]
    return "\n".join(lines)


def _facts(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    own = {name: value for name, value in report.items() if name not in _APART}
    for place, fact in enumerate(_leaves(own, whole=True)):
        if place == _MOST:
            yield "and more", "in report.json"
            return
        if fact[1] is not None and fact[1] != "":
            yield fact


def _leaves(value: Any, name: str = "", whole: bool = False) -> Iterator[tuple[str, Any]]:
    """Every text and number with its path; with `whole`, estimates as they are."""
    if isinstance(value, Mapping) and not (whole and is_estimate(value)):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} / {key}" if name else str(key), whole)
    elif isinstance(value, list):
        for place, inner in enumerate(value, start=1):
            yield from _leaves(inner, name if len(value) == 1 else f"{name} {place}", whole)
    else:
        yield name, value


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        ends = (value["low"], value["high"])
        interval = "" if None in ends else f" [{', '.join(map(number, ends))}]"
        return f"{number(value['value'])}{interval}, n = {value['n']}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return one_line(value, 200) if isinstance(value, str) else number(value)
