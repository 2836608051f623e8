"""The card of a dataset: what it holds, how it was collected, what biases it has, what went in.

A pure function of facts and records. Texts from the data are shown as code, so that no row can
format the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_align.hub.cards import lineage_section, public_text
from hf_align.hub.dataset_facts import ANNOTATORS
from hf_align.types import content_of

_MEANING = {
    "preference": "pairs of answers, the better one in `chosen`, in TRL's columns",
    "comparisons": "every judgement of two answers as it was given",
    "rankings": "rankings of several answers: 1 is the best, equal ranks tie",
    "events": "everything that annotators did, in order",
    "unpaired": "single answers with a label",
    "sft": "prompts with the answer to learn from",
    "prompts": "prompts alone",
    "text": "texts",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_COMPARED = {"preference", "comparisons", "rankings"}
_EXAMPLE = 200  # characters of an example's text
_SHARES = {
    "agreement": "Two annotators of one pair prefer the same answer",
    "length_bias": "The preferred answer is the longer one (0.5 is indifferent)",
    "position_bias": "The answer shown first is preferred (0.5 is indifferent)",
    "position_consistency": "A judge gives the same answer in both orders",
}
_IN_METRICS = {"position_bias": "first_preferred", "position_consistency": "position_consistency"}


def dataset_card(
    repo_id: str,
    facts: Mapping[str, Any],
    examples: Mapping[str, Mapping[str, Any]],
    record: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    body: str = "",
    license: str | None = None,
) -> str:
    """The README of a dataset repo.

    Args:
        repo_id: Name of the repo.
        facts: From `dataset_facts`.
        examples: A row of each table.
        record: Content of `run.json`, where a recipe made the dataset.
        report: Content of `report.json`, for what tables cannot tell: protocol, skips, drops.
        body: What else the recipe has to say, as Markdown without metadata and title.
        license: As the Hub abbreviates it.

    Returns:
        Markdown with a YAML header that `huggingface_hub` accepts; `load_dataset(repo, config)`
        finds every table by it.
    """
    report = report or {}
    sections = [
        _metadata(repo_id, facts, record or {}, license),
        f"# {repo_id.split('/')[-1]}\n",
        _tables_section(repo_id, facts),
        _collection_section(facts, report),
        _bias_section(facts, report),
        _counts_section(facts, {} if body else report),  # a recipe's own words have them
        f"## How it was made\n\n{body.strip()}\n" if body else "",
        _schema_section(facts, examples),
        lineage_section(record) if record and record.get("command") else "",
        _limits_section(facts, license),
    ]
    return "\n".join(section for section in sections if section)


def _limits_section(facts: Mapping[str, Any], license: str | None) -> str:
    lines = [f"Licence: `{license}`." if license else "The publisher states no licence."]
    if _COMPARED & set(facts["configs"]):
        lines.append(
            "Judgements are those of these annotators on these prompts, not human preference in "
            "general."
        )
    return "## Licence and limits\n\n" + " ".join(lines) + "\n"


def _metadata(
    repo_id: str, facts: Mapping[str, Any], record: Mapping[str, Any], license: str | None
) -> str:
    from huggingface_hub import DatasetCardData

    rows = sum(
        counts["rows"]
        for config in facts["configs"].values()
        for counts in config["splits"].values()
    )
    size = next((label for limit, label in _SIZES if rows < limit), "n>1M")
    configs = [
        {
            "config_name": config,
            "data_files": [
                {"split": split, "path": f"{config}/{split}-*"} for split in entry["splits"]
            ],
        }
        | ({"default": True} if place == 0 else {})
        for place, (config, entry) in enumerate(facts["configs"].items())
    ]
    compared = _COMPARED & set(facts["configs"])
    recipe = record.get("recipe") if "command" in record else None
    source = [
        entry["name"]
        for entry in record.get("lineage", {}).get("data", ())
        if entry.get("revision")
    ]
    card = DatasetCardData(
        pretty_name=repo_id.split("/")[-1],
        license=license,
        size_categories=[size],
        task_categories=["reinforcement-learning" if compared else "text-generation"],
        tags=[
            "hf-align",
            "trl",
            *(["preference"] if compared else []),
            *([recipe] if recipe else []),
        ],
        source_datasets=source or None,
        configs=configs,
    )
    return f"---\n{card.to_yaml()}\n---\n"


def _tables_section(repo_id: str, facts: Mapping[str, Any]) -> str:
    lines = ["| configuration | split | rows | prompts | what |", "|---|---|---:|---:|---|"]
    for config, entry in facts["configs"].items():
        for place, (split, counts) in enumerate(entry["splits"].items()):
            prompts = "–" if counts["prompts"] is None else f"{counts['prompts']:,}"
            shown = (f"`{config}`", _MEANING[config]) if place == 0 else ("", "")
            lines.append(f"| {shown[0]} | {split} | {counts['rows']:,} | {prompts} | {shown[1]} |")
    first = next(iter(facts["configs"]))
    code = f'from datasets import load_dataset\n\ndata = load_dataset("{repo_id}", "{first}")'
    lines += ["", f"```python\n{code}\n```\n"]
    shared = {name: entry["shared_prompts"] for name, entry in facts["configs"].items()}
    if any(shared.values()):
        said = ", ".join(f"{count:,} of `{name}`" for name, count in shared.items() if count)
        lines.append(f"Prompts that are in more than one split: {said}.\n")
    elif any(len(entry["splits"]) > 1 for entry in facts["configs"].values()):
        lines.append("No prompt is in more than one split.\n")
    return "\n".join(lines)


def _collection_section(facts: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    lines, who = [], facts["annotators"]
    protocol = report.get("protocol") or report.get("collection")
    for line in _said(protocol):
        lines.append(f"- {line}")
    if who:
        per = f"{who['fewest']:,} to {who['most']:,}" if who["number"] > 1 else f"{who['most']:,}"
        lines.append(f"- {who['number']:,} annotators, {per} judgements each")
    for line in _said(report.get("annotators")):
        lines.append(f"- {line}")
    if not lines:
        return ""
    return "## How it was collected\n\n" + "\n".join(lines) + "\n"


def _said(value: Any) -> list[str]:
    """What a report says of a subject, as lines: a text, or a mapping's entries."""
    if isinstance(value, Mapping):
        return [f"{_plain(k)}: {_value(v)}" for k, v in value.items() if v is not None]
    return [_plain(value)] if isinstance(value, str) and value else []


def _value(value: Any) -> str:
    if isinstance(value, Mapping) and "value" in value:
        return _estimate(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return _plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _bias_section(facts: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    rows = []
    metrics = report.get("metrics")
    measured = metrics if isinstance(metrics, Mapping) else {}
    for key, meaning in _SHARES.items():
        found = facts.get(key) or report.get(key) or measured.get(_IN_METRICS.get(key, ""))
        if isinstance(found, Mapping) and isinstance(found.get("value"), int | float):
            rows.append(f"| {meaning} | {_estimate(found)} | {found.get('n', '–')} |")
    if not rows:
        return ""
    table = ["| share | value, 95 % interval | n |", "|---|---|---:|", *rows]
    return "## Agreement and biases\n\n" + "\n".join(table) + "\n"


def _estimate(entry: Mapping[str, Any]) -> str:
    if entry.get("low") is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def _counts_section(facts: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    rows = [(f"answered `{choice}`", n) for choice, n in (facts["choices"] or {}).items()]
    for key in ("pairs", "ties", "skips", "drops", "dropped", "dropped_before", "failures"):
        found = report.get(key)
        if isinstance(found, Mapping):
            rows += [(f"{key}: {_plain(reason)}", n) for reason, n in found.items()]
        elif isinstance(found, int):
            rows.append((key, found))
    rows = [(what, n) for what, n in rows if isinstance(n, int)]
    if not rows:
        return ""
    lines = ["| what | how many |", "|---|---:|", *(f"| {what} | {n:,} |" for what, n in rows)]
    return "## Ties, skips and drops\n\n" + "\n".join(lines) + "\n"


def _schema_section(facts: Mapping[str, Any], examples: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["## Columns, with a row of each table\n"]
    for config, entry in facts["configs"].items():
        lines += [f"### `{config}`\n", "| column | type | example |", "|---|---|---|"]
        row = examples.get(config, {})
        for name, kind in entry["columns"].items():
            value = None if name in ANNOTATORS else row.get(name)  # nobody is singled out
            lines.append(f"| {_code(name)} | {_code(kind)} | {_example(value)} |")
        lines.append("")
    return "\n".join(lines)


def _example(value: Any) -> str:
    if value is None:
        return "–"
    messages = isinstance(value, list) and value and isinstance(value[0], dict)
    if messages and all("content" in message for message in value):
        value = content_of(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return _code(text if len(text) <= _EXAMPLE else text[:_EXAMPLE] + " …") if text else "–"


def _code(text: Sequence[str] | str) -> str:
    """Inline code in a table's cell."""
    printable = "".join(c if c.isprintable() else "�" for c in str(text))
    return "`" + printable.replace("`", "'").replace("|", "¦") + "`"


def _plain(text: Any) -> str:
    """Text that a report brought along: one line, no markup, no paths."""
    return re.sub(r"([<>\[\]|*_`])", r"\\\1", public_text(" ".join(str(text).split())))
