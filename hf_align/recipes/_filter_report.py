"""What `filter` says: report.json, report.md, the dataset card, a figure and a page for terminals.

All are made of the same facts, so they cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import FilterArguments
from hf_align.data import LAYOUTS
from hf_align.data.report import REASONS
from hf_align.diagnostics.correlation import grouped_correlation
from hf_align.diagnostics.filter_plots import cut_figure
from hf_align.diagnostics.plots import save_figure
from hf_align.files import write_text
from hf_align.recipes._closing import wrapped
from hf_align.recipes._filter_inputs import Reward, RowReader
from hf_align.recipes._filtering import Cut, Example, Scored
from hf_align.statistics import wilson_interval
from hf_align.types import content_of

Facts = Mapping[str, Any]

_QUANTILES = {"min": 0, "p05": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
_UNITS = ("words", "characters")
_FOLLOWS = 0.3
"""A correlation with length from which on the report warns; a tenth of the variance."""

_PROMPT, _COMPLETION = 160, 400  # characters of an example
_MOST_SUBSETS = 30  # in the page; report.json has all
_FIGURE = "scores.png"


def build_facts(
    record: Facts,
    reader: RowReader,
    reward: Reward,
    scored: Scored,
    cut: Cut,
    examples: Sequence[Example],
    options: FilterArguments,
) -> dict[str, Any]:
    """The content of `report.json`."""
    records = scored.records()
    records = records[~np.isnan(records["score"])]
    scores, groups = np.array(records["score"]), records["group"]
    kept = scores >= cut.value
    sides = {"kept": kept, "dropped": ~kept}
    lengths = {unit: records[unit].astype(float) for unit in _UNITS}
    [source] = record["lineage"]["data"]
    facts: dict[str, Any] = {
        "schema": 1,
        "recipe": "filter",
        "name": record["name"],
        "data": source,
        "reward": reward.source | {"name": reward.name},
        "layout": reader.layout,
        "rows": {
            "read": int(records.size) + sum(scored.unusable.values()),
            "unusable": sum(scored.unusable.values()),
            "scored": int(records.size),
            "kept": int(kept.sum()),
            "dropped": int((~kept).sum()),
            "kept_share": float(kept.mean()),
        },
        "unusable": dict(scored.unusable),
        "cut": {
            "value": cut.value,
            "threshold": options.threshold,
            "keep_fraction": options.keep_fraction,
            "asked_for": cut.wanted,
            "at_the_cut": int((scores == cut.value).sum()),
        },
        "scores": {"all": _summary(scores)}
        | {side: _summary(scores[rows]) for side, rows in sides.items()},
        "lengths": {
            unit: {side: _summary(values[rows]) for side, rows in sides.items()}
            for unit, values in lengths.items()
        },
        "correlation": {
            unit: _correlation(scores, values, groups, options.seed)
            for unit, values in lengths.items()
        },
        "subsets": _subsets(records["subset"], kept, scored, options),
        "truncated": None if reward.model is None else reward.model.num_truncated,
        "seed": options.seed,
        "figures": [_FIGURE],
        "examples": [_as_dict(example) for example in examples],
    }
    return facts | {"warnings": _warnings(facts)}


def _summary(values: np.ndarray) -> dict[str, float] | None:
    """Mean, standard deviation and quantiles; None of no values."""
    if not values.size:
        return None
    quantiles = np.percentile(values, list(_QUANTILES.values()))
    return {"mean": float(values.mean()), "sd": float(values.std())} | dict(
        zip(_QUANTILES, map(float, quantiles), strict=True)
    )


def _correlation(
    scores: np.ndarray, lengths: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, Any] | None:
    """Of score and length over all rows; None where one of them does not vary."""
    if np.ptp(scores) == 0 or np.ptp(lengths) == 0:
        return None
    return grouped_correlation(scores, lengths, groups, seed=seed).to_dict()


def _subsets(
    numbers: np.ndarray, kept: np.ndarray, scored: Scored, options: FilterArguments
) -> dict[str, Any] | None:
    if options.subset_column is None:
        return None
    rows = np.bincount(numbers, minlength=len(scored.subsets))
    dropped = np.bincount(numbers[~kept], minlength=len(scored.subsets))
    groups = [
        {
            "value": label,
            "rows": int(rows[number]),
            "dropped": int(dropped[number]),
            "dropped_share": wilson_interval(int(dropped[number]), int(rows[number])).to_dict(),
        }
        for label, number in scored.subsets.items()
        if rows[number]
    ]
    groups.sort(key=lambda group: -group["rows"])
    return {"column": options.subset_column, "groups": groups}


def _as_dict(example: Example) -> dict[str, Any]:
    return {
        "kind": example.kind,
        "row": example.location,
        "score": example.score,
        "prompt": _shortened(content_of(example.prompt), _PROMPT),
        "completion": _shortened(content_of(example.completion), _COMPLETION),
    }


def _shortened(text: str, width: int) -> str:
    """One printable line, the middle of a long text left out."""
    half = (width - 3) // 2
    if len(text) > 4 * width:  # of a whole book only the ends are looked at
        text = f"{text[: 2 * width]} … {text[-2 * width :]}"
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= width else f"{line[:half]} … {line[-half:]}"


def _warnings(facts: Facts) -> list[str]:
    rows, cut, found = facts["rows"], facts["cut"], []
    if not rows["dropped"]:
        found.append(
            f"nothing was dropped: the lowest score is {facts['scores']['all']['min']:.4g}"
        )
    if cut["asked_for"] and rows["kept"] > cut["asked_for"] + 0.01 * rows["scored"]:
        found.append(
            f"{rows['kept']:,} rows stay where {cut['asked_for']:,} were asked for, because "
            f"{cut['at_the_cut']:,} tie at {cut['value']:.4g}: the reward does not tell them apart"
        )
    if facts["truncated"]:
        found.append(
            f"{facts['truncated']:,} of {rows['scored']:,} rows are longer than the reward model "
            "reads; they were scored by the part it read"
        )
    words = facts["correlation"]["words"]
    if rows["dropped"] and words and words["low"] is not None and abs(words["value"]) >= _FOLLOWS:
        medians = {side: facts["lengths"]["words"][side]["median"] for side in ("kept", "dropped")}
        found.append(
            f"the score follows length ({_interval(words)}), so the filter selects by length too: "
            f"half of the kept rows have over {medians['kept']:,.0f} words, half of the dropped "
            f"over {medians['dropped']:,.0f}"
        )
    return found


def _interval(entry: Facts) -> str:
    if entry["low"] is None:
        return f"{entry['value']:.2f}"
    return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


# ------------------------------------------------------------------------------------------- pages


def write_pages(draft: Path, facts: Facts, scored: Scored, cut: Cut) -> None:
    """Writes the figure, `report.json`, `report.md` and the dataset card `README.md`.

    Raises:
        OSError: The draft cannot be written.
    """
    records = scored.records()
    records = records[~np.isnan(records["score"])]
    folder = draft / "report"
    folder.mkdir()
    save_figure(cut_figure(records["score"], records["words"], cut.value), folder / _FIGURE)
    write_text(folder / "report.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", _markdown(facts, ""))
    # No `configs` in it: with them the datasets library would go on serving, from its cache, a
    # dataset that was overwritten; it finds data/train-* by itself.
    front = ["---", "tags:", "- hf-align", "---", ""]
    write_text(draft / "README.md", "\n".join(front) + "\n" + _markdown(facts, "report/"))


def _markdown(facts: Facts, figures_in: str) -> str:
    data = facts["data"]
    mark = data["revision"] or (data["sha256"] or "")[:12]
    lines = [f"# {facts['name']}: a filtered dataset", "", _verdict(facts), ""]
    lines += [f"- data: `{data['name']}`, split {data['split']}, {data['kind']} `{mark}`"]
    lines += [f"- reward: {facts['reward']['name']}"]
    lines += [f"- layout `{facts['layout']}`: {LAYOUTS[facts['layout']]}", ""]
    lines += [f"- **warning:** {text}" for text in facts["warnings"]]
    lines += ["", f"![Scores and lengths on both sides of the cut]({figures_in}{_FIGURE})", ""]
    lines += _as_markdown(_rows_table(facts), texts=1)
    lines += ["", *_as_markdown(_quantile_table(facts), texts=2), ""]
    lines += [f"- {text}" for text in _correlations(facts)]
    if facts["subsets"]:
        lines += ["", *_as_markdown(_subset_table(facts), texts=1)]
    lines += ["", "## Examples"]
    kind = None
    for example in facts["examples"]:
        if example["kind"] != kind:
            kind = example["kind"]
            lines += ["", f"### {kind.capitalize()}", ""]
        texts = [_code(example[part]) for part in ("prompt", "completion") if example[part]]
        lines.append(f"- **{example['score']:.4g}**, {example['row']}: {' → '.join(texts)}")
    return "\n".join(lines).rstrip() + "\n"


def _code(text: str) -> str:
    """Inline code: a row of a stranger's dataset must not format the page."""
    return "`" + text.replace("`", "'") + "`"


def _verdict(facts: Facts) -> str:
    rows, cut = facts["rows"], facts["cut"]
    text = (
        f"Kept {rows['kept']:,} of {rows['scored']:,} rows ({rows['kept_share']:.1%}): those that "
        f"score at least {cut['value']:.4g}"
    )
    if cut["asked_for"] is not None and rows["kept"] > cut["asked_for"]:
        text += f" ({cut['asked_for']:,} were asked for; those that tie at the cut stay)"
    if rows["unusable"]:
        text += f"; {rows['unusable']:,} further rows could not be scored"
    return text + "."


def _rows_table(facts: Facts) -> list[tuple[str, ...]]:
    rows = facts["rows"]
    table = [("", "rows", "share")]
    for name in ("read", "unusable", "kept", "dropped"):
        table.append((name, f"{rows[name]:,}", f"{rows[name] / rows['read']:.1%}"))
    for reason, count in facts["unusable"].items():
        meaning = REASONS.get(reason, reason)
        table.append((f"unusable: {meaning}", f"{count:,}", f"{count / rows['read']:.1%}"))
    if facts["truncated"] is not None:
        share = facts["truncated"] / rows["read"]
        table.append(("cut by the reward model", f"{facts['truncated']:,}", f"{share:.1%}"))
    return table


def _quantile_table(facts: Facts) -> list[tuple[str, ...]]:
    shown = ("mean", "min", "p05", "p25", "median", "p75", "p95", "max")
    table = [("", "", *shown)]
    groups = {"score": facts["scores"]} | {unit: facts["lengths"][unit] for unit in _UNITS}
    for name, sides in groups.items():
        for side in ("kept", "dropped"):
            if sides[side] is not None:
                cells = (_number(sides[side][quantile], name) for quantile in shown)
                table.append((name if side == "kept" else "", side, *cells))
    return table


def _number(value: float, what: str) -> str:
    if what == "score":
        return f"{value:.4g}"
    return f"{value:,.0f}" if value >= 100 or value.is_integer() else f"{value:.1f}"


def _correlations(facts: Facts) -> list[str]:
    return [
        f"correlation of score and length in {unit}: {_interval(entry)}"
        if entry
        else f"correlation of score and length in {unit}: none, one of them does not vary"
        for unit, entry in facts["correlation"].items()
    ]


def _subset_table(facts: Facts) -> list[tuple[str, ...]]:
    table = [(_shortened(facts["subsets"]["column"], 60), "rows", "dropped", "95 % interval")]
    groups = facts["subsets"]["groups"]
    for group in groups[:_MOST_SUBSETS]:
        share = group["dropped_share"]
        interval = f"{share['low']:.1%} to {share['high']:.1%}"
        value = _shortened(group["value"], 60)
        table.append((value, f"{group['rows']:,}", f"{share['value']:.1%}", interval))
    rest = groups[_MOST_SUBSETS:]
    if rest:
        rows = sum(group["rows"] for group in rest)
        share = sum(group["dropped"] for group in rest) / rows
        table.append((f"({len(rest):,} more)", f"{rows:,}", f"{share:.1%}", ""))
    return table


def _as_markdown(table: Sequence[tuple[str, ...]], texts: int) -> list[str]:
    header, *body = ([cell.replace("|", "\\|") for cell in row] for row in table)
    rule = ["---"] * texts + ["---:"] * (len(header) - texts)
    return [f"| {' | '.join(row)} |" for row in (header, rule, *body)]


def terminal_page(facts: Facts, path: Path) -> str:
    """The report's tables, its warnings, where things are and what to do next."""
    blocks = [_aligned(_rows_table(facts), 1), _aligned(_quantile_table(facts), 2)]
    if facts["subsets"]:
        blocks.append(_aligned(_subset_table(facts), 1))
    blocks.append([*_correlations(facts), "", wrapped(_verdict(facts))])
    lines = "\n\n".join("\n".join(block) for block in blocks).splitlines()
    lines += [wrapped(f"warning: {text}") for text in facts["warnings"]]
    on_testbed = facts["data"]["name"].startswith("testbed-")
    how = "--model testbed --gold_reward testbed" if on_testbed else "--model MODEL"
    lines += ["", f"kept rows: {path / 'data'}", f"report: {path / 'report'}"]
    lines.append(f"next: python -m hf_align.recipes.sft {how} --dataset_name {path / 'data'}")
    return "\n".join(lines)


def _aligned(table: Sequence[tuple[str, ...]], texts: int) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "   ".join(
            f"{cell:<{width}}" if place < texts else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
