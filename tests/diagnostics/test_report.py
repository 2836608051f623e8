"""The report keeps its schema, refuses what it cannot define, and makes generated text inert."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hf_align.diagnostics.overoptimization import LABELS, Curve, Verdict
from hf_align.diagnostics.report import (
    METRICS,
    build_report,
    load_report,
    report_markdown,
    write_report,
)
from hf_align.types import Estimate, InputError


def make_report(**changes) -> dict:
    arguments = {
        "recipe": "dpo",
        "policy": "tiny-dpo",
        "reference": "tiny-sft",
        "verdict": Verdict("NOT DETECTED", "NOT DETECTED: gold rose.", None, None, 0.125, 2),
        "metrics": {
            "kl/sequence": Estimate(2.94321, 2.8, 3.1, 512),
            "gold/mean": Estimate(0.0, None, None, 1),
        },
        "figures": ["overoptimization.png"],
        "samples": [{"prompt": "w1", "policy": "a", "reference": "b", "policy_gold": 0.5}],
        "curve": Curve([0, 5], [0.0, 1.5], gold=np.array([[0.0, 1.0], [2.0, 3.0]])),
        "warnings": ["single seed"],
        "evaluation": {"num_prompts": np.int64(512), "temperature": 1.0},
    }
    return build_report(**{**arguments, **changes})


def test_round_trip_keeps_the_documented_schema(tmp_path):
    path = write_report(make_report(), tmp_path / "report")
    assert path == tmp_path / "report" / "report.json"
    report = load_report(path)
    assert report == load_report(path.parent)
    assert report["schema"] == 1
    assert (report["recipe"], report["policy"], report["reference"]) == (
        "dpo",
        "tiny-dpo",
        "tiny-sft",
    )
    assert report["verdict"] == {"label": "NOT DETECTED", "text": "NOT DETECTED: gold rose."}
    assert report["metrics"]["kl/sequence"] == {"value": 2.94321, "low": 2.8, "high": 3.1, "n": 512}
    assert report["metrics"]["gold/mean"] == {"value": 0.0, "low": None, "high": None, "n": 1}
    assert report["figures"] == ["overoptimization.png"]
    assert [point["step"] for point in report["curve"]] == [0, 5]
    assert [point["gold"]["value"] for point in report["curve"]] == [0.5, 2.5]
    assert report["curve"][0]["proxy"] is None
    assert report["evaluation"]["num_prompts"] == 512
    assert (path.parent / "report.md").read_text(encoding="utf-8") == report_markdown(report)


def test_writing_leaves_only_the_two_files_and_replaces_older_ones(tmp_path):
    write_report(make_report(policy="old"), tmp_path)
    write_report(make_report(policy="new"), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert load_report(tmp_path)["policy"] == "new"


def test_nothing_is_written_when_a_number_is_not_finite(tmp_path):
    report = make_report(evaluation={"temperature": math.nan})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(report, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="'gold/mean' is not finite"):
        make_report(metrics={"gold/mean": Estimate(math.nan, None, None, 3)})


def test_unknown_metric_names_are_refused():
    with pytest.raises(ValueError, match="unknown metric 'gold/avg'"):
        make_report(metrics={"gold/avg": Estimate(1.0, None, None, 3)})


def test_markdown_shows_value_interval_n_and_unit():
    lines = report_markdown(make_report()).splitlines()
    row = next(line for line in lines if "`kl/sequence`" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["`kl/sequence`", "2.94", "[2.80,\u00a03.10]", "512", "nats"]
    assert lines[0] == "**NOT DETECTED: gold rose.**"
    assert "![overoptimization](overoptimization.png)" in lines


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.123456, "0.123"), (-2.5, "-2.50"), (31.26, "31.3"), (12345.6, "12346"), (4, "4"), (0, "0")],
)
def test_numbers_have_three_significant_digits(value, shown):
    report = make_report(metrics={"gold/mean": Estimate(value, None, None, 3)})
    assert f"| `gold/mean` | {shown} |" in report_markdown(report)


def test_generated_text_cannot_add_cells_rows_html_links_or_images():
    hostile = "a | b\nc <img src=x onerror=alert(1)> ![x](http://y/z.png) `code` **b** & \\"
    samples = [{"prompt": hostile, "policy": hostile, "reference": "ok"}]
    markdown = report_markdown(make_report(samples=samples))
    row = next(line for line in markdown.splitlines() if line.endswith("| ok |"))
    unescaped = row.replace("\\\\", "").replace("\\|", "")
    assert unescaped.count("|") == 4
    assert "<img" not in row
    assert "&lt;img" in row
    assert "\\!\\[x\\](" in row
    assert "c &lt;" in row.split("<br>")[1]
    assert "\\`code\\`" in row


def test_conversations_show_their_contents():
    message = [{"role": "user", "content": "hello there"}]
    samples = [{"prompt": message, "policy": "x", "reference": "y"}]
    assert "| hello there | x | y |" in report_markdown(make_report(samples=samples))


def test_uneven_samples_are_refused():
    with pytest.raises(ValueError, match="different keys"):
        make_report(samples=[{"prompt": "", "policy": "", "reference": ""}, {"prompt": ""}])
    with pytest.raises(ValueError, match="expected prompt, policy and reference"):
        make_report(samples=[{"prompt": "", "policy": ""}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"metrics": []}, "metrics is"),
        ({"verdict": {"label": "FINE", "text": ""}}, "expected a label out of"),
        ({"metrics": {"gold/avg": {}}}, "unknown metric 'gold/avg'"),
        ({"metrics": {"gold/mean": {"value": 1}}}, "expected value, low, high and n"),
    ],
)
def test_loading_names_what_is_wrong(tmp_path, change, message):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(make_report(evaluation={}) | change))
    with pytest.raises(InputError, match=message):
        load_report(path)


def test_a_missing_or_broken_file_is_a_clear_mistake(tmp_path):
    with pytest.raises(InputError, match="no report at"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_report(tmp_path)


def test_the_glossary_defines_every_metric_in_one_line():
    for name, (unit, definition, direction) in METRICS.items():
        assert name == name.lower()
        assert name.count("/") == 1
        assert unit
        assert definition.endswith(".")
        assert "\n" not in definition
        assert "|" not in unit + definition + direction


def test_every_verdict_label_loads(tmp_path):
    for label in LABELS:
        write_report(make_report(verdict=Verdict(label, f"{label}: x")), tmp_path)
        assert load_report(tmp_path)["verdict"]["label"] == label
