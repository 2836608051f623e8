"""Writes what a report shows as Markdown: escaped text, numbers, estimates and tables of them.

Generated text is escaped: it cannot add table cells, HTML, links or images.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from hf_align.types import Estimate, Text, content_of

Cell: TypeAlias = "str | float | Estimate | None"
"""What a table's cell holds; None where nothing applies."""


@dataclass(frozen=True)
class Table:
    """Rows of a report that belong together.

    Attributes:
        title: Heading.
        columns: Names of the columns; the first names the rows.
        rows: As many cells as columns in each.
        note: How to read it, in a sentence.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The form stored in `report.json`; an estimate is `{"value", "low", "high", "n"}`.

        Raises:
            ValueError: A row has not as many cells as there are columns, or a number is NaN or
                infinite.
        """
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells for {len(self.columns)} columns")
            numbers = [c.value if isinstance(c, Estimate) else c for c in row]
            if not all(math.isfinite(n) for n in numbers if isinstance(n, (int, float))):
                raise ValueError(f"{self.title}: {row} is not finite")
        return {
            "title": self.title,
            "note": self.note,
            "columns": list(self.columns),
            "rows": [
                [cell.to_dict() if isinstance(cell, Estimate) else cell for cell in row]
                for row in self.rows
            ],
        }


def table_lines(table: Mapping[str, Any]) -> list[str]:
    """The lines of a table in the form of `Table.to_dict`, heading and note included."""
    lines = [f"### {escaped(table['title'])}", ""]
    if table["note"]:
        lines += [escaped(table["note"]), ""]
    lines.append(f"| {' | '.join(map(escaped, table['columns']))} |")
    lines.append("|---|" + "---:|" * (len(table["columns"]) - 1))
    lines += [f"| {' | '.join(map(_table_cell, row))} |" for row in table["rows"]]
    return [*lines, ""]


def samples_table(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table with a row per sample and a column per key."""
    keys = list(samples[0])
    rows = [f"| {' | '.join(escaped(key.replace('_', ' ')) for key in keys)} |"]
    rows.append("|" + "|".join("---" for _ in keys) + "|")
    rows += [f"| {' | '.join(_sample_cell(row[key]) for key in keys)} |" for row in samples]
    return rows


def number(value: float) -> str:
    """Three significant digits, whole numbers in full."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.{2 - max(-2, math.floor(math.log10(abs(value))))}f}"


def escaped(text: object) -> str:
    """Any text as inert Markdown that fits a table cell."""
    text = html.escape(str(text), quote=False)
    # A byte-level model samples control characters, which would make the page a binary file.
    shown = (c if c.isprintable() or c in "\r\n\t" else "\ufffd" for c in text)
    text = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", "".join(shown))
    return re.sub(r"\r\n|\r|\n", "<br>", text)


def code(name: str) -> str:
    """A name as code: nothing in it ends the code."""
    shown = "".join(c if c.isprintable() and c != "`" else "\ufffd" for c in name)
    return f"`{shown}`"


def _table_cell(cell: object) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, Mapping):
        # Shares and correlations stand below each other, so with equally many decimals.
        shown = f"{cell['value']:.3f}"
        if cell["low"] is None or cell["high"] is None:
            return shown
        # A narrow column breaks before an interval, not inside of it.
        return f"{shown} [{cell['low']:.3f},\u00a0{cell['high']:.3f}]"
    return number(cell) if isinstance(cell, (int, float)) else escaped(cell)


def _sample_cell(value: float | int | Text) -> str:
    return number(value) if isinstance(value, (int, float)) else escaped(content_of(value))
