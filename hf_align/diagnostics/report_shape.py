"""Whether a report that was read has the form that everything that shows it relies on.

A report may be a stranger's: each part is of the kind it should be, every number is one, and a
figure is a file beside the report.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from hf_align.types import InputError

_FIGURE = re.compile(r"[\w-][\w.-]*\.(png|svg)")
_LARGEST = 1e15  # nothing measured here comes near it
_PARTS = {"recipe": str, "policy": str, "reference": str, "verdict": dict, "metrics": dict}
_PARTS |= {"figures": list, "samples": list, "warnings": list, "evaluation": dict}


def check_shape(
    report: Any, label: str, schema: int, metrics: Collection[str], verdicts: Collection[str]
) -> None:
    """Refuses what is no report.

    Args:
        report: What was read.
        label: How messages call it.
        schema: The only one that is read.
        metrics: Names that a report may use.
        verdicts: Labels that it may give.

    Raises:
        InputError: Names the part, and what it should be.
    """

    def fail(what: str) -> None:
        raise InputError(f"{label} is not a report of schema {schema}: {what}")

    if not isinstance(report, dict) or report.get("schema") != schema:
        fail(f"schema is {short(report.get('schema')) if isinstance(report, dict) else 'missing'}")
    for key, kind in _PARTS.items():
        if not isinstance(report.get(key), kind):
            fail(f"{key} is {short(report.get(key))}, expected {kind.__name__}")
    verdict = report["verdict"]
    if verdict.get("label") not in list(verdicts) or not isinstance(verdict.get("text"), str):
        fail(f"verdict is {short(verdict)}, expected a label out of {', '.join(verdicts)}")
    for name, entry in report["metrics"].items():
        if name not in metrics:
            fail(f"unknown metric {short(name)}")
        if not is_estimate(entry):
            fail(f"metric {name!r} is {short(entry)}, expected value, low, high and n")
    for name in report["figures"]:
        if not is_figure(name):
            fail(f"figure {short(name)}, expected the name of a .png beside it")
    if not all(isinstance(line, str) for line in report["warnings"]):
        fail("warnings are not all sentences")
    _check_samples(report["samples"], fail)
    tables = report.get("tables", [])  # reports written before there were any have none
    if not isinstance(tables, list) or not all(map(is_table, tables)):
        fail("tables are not all title, note, columns and rows of as many cells")


def _check_samples(samples: list[Any], fail: Any) -> None:
    keys = set(samples[0]) if samples and isinstance(samples[0], dict) else set()
    if samples and not {"prompt", "policy", "reference"} <= keys:
        fail("samples have no prompt, policy and reference")
    for row in samples:
        if not isinstance(row, dict) or set(row) != keys:
            fail("the rows of samples have different keys")
        if not all(is_number(value) or _is_text(value) for value in row.values()):
            fail("samples hold what is neither a text nor a number")


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value)
    return isinstance(value, str)


def is_figure(name: Any) -> bool:
    """Whether it names a figure beside the report."""
    return isinstance(name, str) and _FIGURE.fullmatch(name) is not None


def is_number(value: Any) -> bool:
    """Whether it is a number that could have been measured."""
    return isinstance(value, int | float) and -_LARGEST < value < _LARGEST


def is_estimate(entry: Any) -> bool:
    """Whether it has the form of `Estimate.to_dict`."""
    if not isinstance(entry, dict) or set(entry) != {"value", "low", "high", "n"}:
        return False
    ends = (entry["low"], entry["high"])
    whole = isinstance(entry["n"], int) and is_number(entry["n"])
    return whole and is_number(entry["value"]) and all(e is None or is_number(e) for e in ends)


def is_table(table: Any) -> bool:
    """Whether it has the form of `Table.to_dict`."""
    if not isinstance(table, dict) or not {"title", "note", "columns", "rows"} <= set(table):
        return False
    texts = [table["title"], table["note"]]
    columns, rows = table["columns"], table["rows"]
    if not isinstance(columns, list) or not columns or not isinstance(rows, list):
        return False
    if not all(isinstance(text, str) for text in texts + columns):
        return False
    return all(
        isinstance(row, list)
        and len(row) == len(columns)
        and all(c is None or isinstance(c, str) or is_number(c) or is_estimate(c) for c in row)
        for row in rows
    )


def short(value: object) -> str:
    """A value as a message shows it."""
    shown = repr(value)
    return shown if len(shown) <= 120 else shown[:120] + "…"
