"""Tables keep their shape and their numbers, and generated text in them is inert."""

import math

import pytest

from hf_align.diagnostics.markdown import Table, table_lines
from hf_align.types import Estimate


def test_a_table_shows_estimates_with_intervals_and_what_does_not_apply():
    table = Table(
        "Rankings",
        ["ranking", "accuracy", "pairs"],
        [
            ["model", Estimate(0.75, 0.5, 1.0, 40), 512],
            ["one prompt", Estimate(0.5, None, None, 1), None],
        ],
        "Same pairs.",
    )
    stored = table.to_dict()
    assert stored["rows"][0][1] == {"value": 0.75, "low": 0.5, "high": 1.0, "n": 40}
    assert stored["rows"][1][2] is None
    assert table_lines(stored) == [
        "### Rankings",
        "",
        "Same pairs.",
        "",
        "| ranking | accuracy | pairs |",
        "|---|---:|---:|",
        "| model | 0.750 [0.500,\u00a01.000] | 512 |",
        "| one prompt | 0.500 | – |",
        "",
    ]


def test_a_cell_cannot_break_out_of_its_table():
    lines = table_lines(Table("t", ["subset"], [["a | b\n<b>*c*</b>"]]).to_dict())
    assert lines[-2] == "| a \\| b<br>&lt;b&gt;\\*c\\*&lt;/b&gt; |"


@pytest.mark.parametrize("row", [["a"], ["a", math.nan], ["a", Estimate(math.inf, None, None, 2)]])
def test_a_row_of_another_length_or_without_a_number_is_refused(row):
    with pytest.raises(ValueError, match="t: "):
        Table("t", ["name", "value"], [row]).to_dict()
