"""What `inspect` says: a page for a terminal of 80 to 100 columns, and one in Markdown.

Both are built from the facts that go into report.json, so they cannot disagree with it.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_align.data import LAYOUTS, DataReport
from hf_align.data.report import REASONS
from hf_align.types import Text

if TYPE_CHECKING:
    import datasets

Facts = Mapping[str, Any]
Table = list[tuple[str, ...]]

_STATISTICS = ("mean", "median", "p95", "max")
_HEAD, _TAIL = 6, 3  # lines shown of the beginning and the end of a long text
# Worth a line even when nothing was found: the reader asked whether there are any.
_DROPPED = {"preference": ("identical_pair",), "ranking": ("tie", "identical_pair")}
_COUNTED = {
    "preference": ("duplicates", "contradictions", "prompt_overlap"),
    "ranking": ("duplicates", "tied_rank_pairs", "prompt_overlap"),
    "sft": ("duplicates", "prompt_overlap"),
    "prompt": ("duplicates", "prompt_overlap"),
}
_WITH_TIES = ("valued_pairs", "ranked")


def terminal_page(
    facts: Facts,
    splits: Mapping[str, datasets.Dataset],
    audit: Facts | None,
    num_rows: int,
) -> str:
    """The report, a few rows, and what to act on, as aligned text."""
    width = min(max(shutil.get_terminal_size().columns, 80), 100)
    sections = [
        ("Dataset", _dataset(facts, width)),
        ("Rows", _aligned(_rows_table(facts))),
        (f"Dropped: {sum(facts['dropped'].values()):,}", _counts(facts, "dropped")),
        ("Found among the rows kept", _counts(facts, "counted")),
        ("Length in characters and words", _aligned(_length_table(facts["lengths"]), texts=2)),
        ("Length bias", _wrapped(_length_bias(facts["length_bias"]), width)),
    ]
    if audit is not None:
        sections += _audit_sections(audit, facts["task"])
    sections += [
        ("Examples", _examples(splits["train"], num_rows, width)),
        ("First row as the model reads it", _rendered(audit, num_rows, width)),
        ("Warnings", _bullets(_warnings(facts, audit), width)),
        ("Notes", _bullets(facts["notes"], width)),
    ]
    blocks = [
        "\n".join([title, "-" * len(title), *(f"  {line}".rstrip() for line in lines)])
        for title, lines in sections
        if lines
    ]
    return "\n\n".join(blocks) + "\n"


def markdown(report: DataReport, audit: Facts | None) -> str:
    """The report as a page; it holds no rows, so that it can be shared where the data cannot."""
    page = report.to_markdown()
    if audit is None:
        return page
    lines = ["", "## Tokens", ""]
    for name, value in _tokenizer_facts(audit):
        lines.append(f"- {name}: `{value}`")
    for title, table in (
        (f"| tokens | {' | '.join(_STATISTICS)} |", _token_table(audit)),
        (f"| rows at max_length {audit['max_length']:,} | ", _limit_table(audit, report.task)),
    ):
        if table:
            header = title if title.endswith("|") else title + " | ".join(table[0][1:]) + " |"
            lines += ["", header, "|---|" + "---:|" * (len(table[0]) - 1)]
            lines += [f"| {' | '.join(row)} |" for row in table[1:]]
    lines += ["", *(f"- **training would stop:** {text}" for text in audit["refusals"])]
    lines += [f"- **warning:** {text}" for text in audit["problems"]]
    return page + "\n".join(lines).rstrip() + "\n"


def _dataset(facts: Facts, width: int) -> list[str]:
    sources = []
    for source in facts["sources"]:
        mark = source["revision"] or source["sha256"] or ""
        label = "revision" if source["revision"] else "sha256"
        sources.append(f"{source['name']} ({source['kind']}, {label} {mark[:12]})")
    layouts = [f"{name}: {LAYOUTS[name]}" for name in facts["layout"].split(" + ")]
    inferred = " (inferred; --task overrides)" if facts["task_inferred"] else ""
    form = "conversations" if facts["conversational"] else "plain text"
    entries = {"source": sources, "layout": layouts, "task": [facts["task"] + inferred]}
    lines = []
    for label, values in (entries | {"form": [form]}).items():
        for i, line in enumerate(_wrapped(values, width - 9)):
            lines.append(f"{'' if i else label:<9}{line}")
    return lines


def _rows_table(facts: Facts) -> Table:
    splits = list(dict.fromkeys([*facts["rows_read"], *facts["rows_kept"]]))
    names = {"read": "rows_read", "kept": "rows_kept", "distinct prompts": "prompts"}
    table: Table = [("", *splits)]
    for label, key in names.items():
        cells = (f"{facts[key][s]:,}" if s in facts[key] else "-" for s in splits)
        table.append((label, *cells))
    return table


def _counts(facts: Facts, kind: str) -> list[str]:
    always = (_DROPPED if kind == "dropped" else _COUNTED).get(facts["task"], ())
    if kind == "dropped" and facts["task"] == "preference":
        ranked = any(layout in facts["layout"] for layout in _WITH_TIES)
        always = (*always, "tie") if ranked else always
    counts = dict.fromkeys(always, 0) | facts[kind]
    if not counts:
        return ["nothing"] if kind == "dropped" else []
    return _aligned([(f"{n:,}", name, REASONS[name]) for name, n in counts.items()], texts=(1, 2))


def _length_table(lengths: Facts) -> Table:
    table: Table = [("", "", *_STATISTICS)]
    for column, units in lengths.items():
        for unit, stats in units.items():
            label = column if unit == "characters" else ""
            table.append((label, unit, *(f"{stats[name]:,.0f}" for name in _STATISTICS)))
    return table


def _length_bias(bias: Facts | None) -> list[str]:
    if bias is None:
        return []
    share, difference = bias["longer_chosen"], bias["mean_difference"]
    if share is None:
        return ["chosen and rejected are equally long in every pair"]
    reading = "no preference for length is visible"
    if share["low"] is None:
        share = f"{share['value']:.1%} of {share['pairs']:,} pairs"
        return [f"chosen is longer in {share}, all of one prompt"]
    if share["low"] > 0.5:
        reading = "the longer answer tends to be chosen: a policy can win by writing more"
    elif share["high"] < 0.5:
        reading = "the shorter answer tends to be chosen: a policy can win by writing less"
    return [
        f"chosen is longer in {share['value']:.1%} of pairs, 95 % interval {share['low']:.1%} to "
        f"{share['high']:.1%} ({share['pairs']:,} pairs; {bias['ties']:,} of equal length "
        f"left out); on average by {difference['characters']:+,.1f} characters, "
        f"{difference['words']:+,.1f} words",
        reading,
    ]


def _audit_sections(audit: Facts, task: str) -> list[tuple[str, list[str]]]:
    limit = f"What max_length {audit['max_length']:,} does"
    if all(figures["tokens"] is None for figures in audit["splits"].values()):
        return [
            ("Tokenizer", _aligned(_tokenizer_facts(audit), texts=2)),
            (limit, ["unknown: without a chat template the conversations have no tokens"]),
        ]
    return [
        ("Tokenizer", _aligned(_tokenizer_facts(audit), texts=2)),
        ("Length in tokens", _aligned(_token_table(audit))),
        (limit, _aligned(_limit_table(audit, task))),
    ]


def _tokenizer_facts(audit: Facts) -> Table:
    facts = audit["tokenizer"]
    roles = {"bos_token": "BOS", "eos_token": "EOS", "pad_token": "padding", "unk_token": "unknown"}
    special = ", ".join(f"{role} {facts[name] or 'none'}" for name, role in roles.items())
    positions = audit["max_positions"]
    template = "yes" if facts["chat_template"] else "none"
    if not audit["conversational"]:
        template += " (not used: the rows are plain text)" if facts["chat_template"] else ""
    return [
        ("model", facts["name"]),
        ("vocabulary", f"{facts['vocabulary']:,} tokens"),
        ("positions", f"{positions:,}" if positions else "no limit known"),
        ("chat template", template),
        ("special tokens", special),
    ]


def _token_table(audit: Facts) -> Table:
    table: Table = [("", *_STATISTICS)]
    for split, figures in audit["splits"].items():
        if figures["sequence_tokens"] is None:
            continue
        parts = dict(figures["tokens"])
        if "prompt" in parts and len(parts) > 1:
            parts["prompt + completion"] = figures["sequence_tokens"]
        for column, stats in parts.items():
            cells = (f"{stats[name]:,.0f}" for name in _STATISTICS)
            table.append((f"{split}: {column}", *cells))
    return table if len(table) > 1 else []


def _limit_table(audit: Facts, task: str) -> Table:
    splits = {n: f for n, f in audit["splits"].items() if f["sequence_tokens"] is not None}
    if not splits:
        return []
    cut = "longer: the end is cut" if task == "sft" else "longer: the completion is cut"
    rows: dict[str, list[int]] = {"fits": [], cut: []}
    rows |= {"prompt alone fills it: row is lost": [], "refused by the chat template": []}
    for figures in splits.values():
        spoilt = (figures["truncated"], figures["prompt_too_long"], figures["unrenderable"])
        for label, count in zip(rows, (figures["rows"] - sum(spoilt), *spoilt), strict=True):
            rows[label].append(count)
    return [
        ("", *splits),
        *((label, *(f"{n:,}" for n in counts)) for label, counts in rows.items()),
    ]


def _warnings(facts: Facts, audit: Facts | None) -> list[str]:
    if audit is None:
        return facts["warnings"]
    stops = [f"training would stop: {text}" for text in audit["refusals"]]
    return [*stops, *facts["warnings"], *audit["problems"]]


def _examples(split: datasets.Dataset, count: int, width: int) -> list[str]:
    count = min(count, len(split))
    lines: list[str] = []
    for number in range(count):
        index = number * len(split) // count
        lines += ["", f"train, row {index + 1:,}"] if lines else [f"train, row {index + 1:,}"]
        row = split[index]
        texts = _texts(row)
        margin = max(len(name) for name, _ in texts) + 2
        for name, text in texts:
            lines += _hanging(name, text, margin, width - 2)
    return lines


def _texts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row's columns as (label, text); of a ranking each completion under its rank."""
    if "ranks" not in row:
        return [(name, _shown(row[name], name)) for name in row if row[name] is not None]
    ranked = sorted(zip(row["ranks"], row["completions"], strict=True), key=lambda item: item[0])
    shown = [(f"rank {rank}", _shown(text, "completion")) for rank, text in ranked]
    return [("prompt", _shown(row["prompt"], "prompt")), *shown]


def _rendered(audit: Facts | None, count: int, width: int) -> list[str]:
    """The first row with its special tokens; completions without the prompt that they repeat."""
    if audit is None or not audit["examples"] or not count:
        return []
    lines = []
    example = audit["examples"][0]
    prompt = example.get("prompt", "")
    margin = max(map(len, example)) + 4
    for name, text in example.items():
        follows = name != "prompt" and prompt and text.startswith(prompt)
        label, shown = (f"+ {name}", text[len(prompt) :]) if follows else (name, text)
        lines += _hanging(label, shown, margin, width - 2)
    return lines


def _shown(value: Text | float, name: str) -> str:
    """A text as it is; a conversation with the speaker before each turn, unless there is but one
    answer."""
    if not isinstance(value, list):
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    if len(value) == 1 and name != "prompt":
        return value[0]["content"]
    return "\n".join(f"[{turn['role']}] {turn['content']}" for turn in value)


def _hanging(label: str, text: str, margin: int, width: int) -> list[str]:
    """A label and a text beside it: wrapped, shortened in the middle, safe for a terminal."""
    lines = [
        line
        for paragraph in _printable(text).split("\n")
        for line in textwrap.wrap(paragraph, width - margin - 2) or [""]
    ]
    if len(lines) > _HEAD + _TAIL + 1:
        words = sum(len(line.split()) for line in lines[_HEAD:-_TAIL])
        lines = [*lines[:_HEAD], f"[... {words:,} words ...]", *lines[-_TAIL:]]
    return [f"  {label if i == 0 else '':<{margin}}{line}" for i, line in enumerate(lines)]


def _printable(text: str) -> str:
    """Control characters as escapes: a row of a stranger's dataset must not steer the terminal."""
    return "".join(
        char if char.isprintable() or char == "\n" else " " if char.isspace() else _escaped(char)
        for char in text.replace("\t", "    ")
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _wrapped(sentences: Sequence[str], width: int) -> list[str]:
    """Lines that fit under a heading; paths and numbers are never broken."""
    keep = {"break_long_words": False, "break_on_hyphens": False}
    return [line for text in sentences for line in textwrap.wrap(text, width - 2, **keep)]


def _bullets(sentences: Sequence[str], width: int) -> list[str]:
    lines = []
    for sentence in sentences:
        first, *rest = _wrapped([_printable(sentence)], width - 2)
        lines += [f"- {first}", *(f"  {line}" for line in rest)]
    return lines


def _aligned(table: Table, texts: int | tuple[int, ...] = 1) -> list[str]:
    """Columns side by side: texts to the left, numbers to the right.

    `texts` is how many of the first columns are text, or which ones are.
    """
    left = range(texts) if isinstance(texts, int) else texts
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "   ".join(
            f"{cell:<{width}}" if i in left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
