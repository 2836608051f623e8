"""What a dataset is and what happened to it on the way in: counts, lengths and length bias.

Every source row is accounted for: read = kept + dropped, by reason (a ranking counts its pairs).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from hf_align.data.rankings import completions_and_ranks, ordered_pairs
from hf_align.data.sources import DataSource
from hf_align.data.splits import row_key
from hf_align.statistics import clustered_share, wilson_interval
from hf_align.types import content_of

TEXT_COLUMNS = ("prompt", "chosen", "rejected", "completion", "completions", "messages", "text")

REASONS = {
    "missing": "no value",
    "not_text": "not text",
    "empty": "empty text",
    "bad_unicode": "not valid Unicode",
    "bad_messages": "wrong message structure",
    "not_transcript": "not a transcript that ends with the assistant",
    "bad_preference": "preference out of range",
    "bad_ranks": "ranks do not fit the completions",
    "bad_margin": "margin is not a finite number",
    "not_list": "not a list",
    "identical_pair": "chosen and rejected are identical",
    "diverging_prompt": "chosen and rejected reply to different conversations",
    "tie": "exact tie",
    "missing_preference": "no preference given",
    "fraction": "not in the mixture's fraction",
    "max_train_samples": "over --max_train_samples",
    "max_test_samples": "over --max_test_samples",
    "duplicates": "rows that repeat an earlier row exactly (kept)",
    "contradictions": "pairs present in both orders (kept)",
    "prompt_overlap": "test prompts that are also in train",
    "tied_rank_pairs": "tied pairs within rankings (left out)",
    "wrapped_rows": "plain rows wrapped into one-turn conversations",
    "unwrapped_rows": "one-turn conversations turned into plain text",
    "merged_turns": "rows where neighbouring turns of one speaker were joined",
    "last_turn_not_assistant": "conversations that do not end with the assistant",
    "completion_repeats_prompt": "completions that start with their prompt",
    "prompt_differs_from_conversation": "prompt column differs from the conversations",
}
"""Counter name -> what it counts, in words."""


@dataclass
class DataReport:
    """The facts about a loaded dataset.

    Attributes:
        sources: What was read.
        task: `sft`, `preference`, `ranking` or `prompt`.
        layout: The layout recognised (`a + b` where parts differ).
        conversational: Whether the texts are messages.
        rows_read: Source rows per split.
        rows_kept: Rows per split of the result.
        dropped: Why rows are not in the result, reason -> how many.
        counted: Facts about rows that are in it; names are explained by `REASONS`.
        notes: What was done that a reader should know.
        warnings: What a reader should act on.
        lengths: Column -> `characters` and `words` -> mean, median, p95, max.
        length_bias: Share of pairs whose chosen is longer; None without pairs.
        prompts: Distinct prompts per split.
        overlap: Distinct prompts in both splits.
    """

    sources: list[DataSource]
    task: str
    layout: str
    conversational: bool
    rows_read: dict[str, int] = field(default_factory=dict)
    rows_kept: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lengths: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    length_bias: dict[str, object] | None = None
    prompts: dict[str, int] = field(default_factory=dict)
    overlap: int = 0

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A page for people: sources, counts, lengths, length bias, notes."""
        lines = ["## Data", "", *(f"- {_source_line(source)}" for source in self.sources)]
        form = "conversations" if self.conversational else "plain text"
        lines += [f"- task {self.task}, layout `{self.layout}`, {form}", ""]
        lines += ["| split | rows read | rows kept | distinct prompts |", "|---|---:|---:|---:|"]
        for split in dict.fromkeys([*self.rows_read, *self.rows_kept]):
            counts = (self.rows_read, self.rows_kept, self.prompts)
            cells = (f"{count[split]:,}" if split in count else "–" for count in counts)
            lines.append(f"| {split} | {' | '.join(cells)} |")
        for title, counts in (("Dropped", self.dropped), ("Counted", self.counted)):
            if counts:
                lines += ["", f"| {title} | rows | meaning |", "|---|---:|---|"]
                lines += [f"| {k} | {v:,} | {REASONS[k]} |" for k, v in counts.items()]
        lines += ["", *_length_table(self.lengths), *_bias_lines(self.length_bias)]
        lines += [f"- **warning:** {warning}" for warning in self.warnings]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"


def _source_line(source: DataSource) -> str:
    mark = source.revision or source.sha256 or ""
    label = "revision" if source.revision else "sha256"
    return f"`{source.name}` ({source.kind}, {label} {mark[:12]})"


def _length_table(lengths: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    lines = ["| lengths | unit | mean | median | p95 | max |", "|---|---|---:|---:|---:|---:|"]
    for column, units in lengths.items():
        for unit, stats in units.items():
            cells = " | ".join(f"{stats[name]:,.0f}" for name in ("mean", "median", "p95", "max"))
            lines.append(f"| {column} | {unit} | {cells} |")
    return [*lines, ""]


def _bias_lines(bias: Mapping | None) -> list[str]:
    if bias is None:
        return []
    share, difference = bias["longer_chosen"], bias["mean_difference"]
    if share is None:
        return ["- chosen and rejected are equally long in every pair"]
    interval = ""
    if share["low"] is not None:
        interval = f"95 % interval {share['low']:.1%} to {share['high']:.1%} over prompts, "
    return [
        f"- chosen is longer in {share['value']:.1%} of pairs ({interval}{share['pairs']:,} pairs, "
        f"{bias['ties']:,} of equal length left out); on average by "
        f"{difference['characters']:+.1f} characters, {difference['words']:+.1f} words"
    ]


def length_stats(rows: Sequence[Mapping]) -> dict[str, dict[str, dict[str, float]]]:
    """Column -> `characters` and `words` -> mean, median, p95, max, over all rows."""
    if not rows:
        return {}
    stats = {}
    for column in TEXT_COLUMNS:
        if column not in rows[0]:
            continue
        values = [row[column] for row in rows]
        if column == "completions":
            values = [text for completions in values for text in completions]
        texts = [content_of(value) for value in values]
        stats[column] = {
            "characters": _summary([len(text) for text in texts]),
            "words": _summary([len(text.split()) for text in texts]),
        }
    return stats


def _summary(lengths: list[int]) -> dict[str, float]:
    values = np.asarray(lengths, dtype=float)
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }


def length_bias(rows: Sequence[Mapping]) -> dict[str, object] | None:
    """How often the chosen completion is the longer one, in characters; None without pairs.

    A ranking counts each of its strictly ordered pairs.

    `longer_chosen` is that share among pairs of unequal length, averaged over prompts, with its
    95 % interval (`n` prompts, `pairs` pairs; None where all lengths are equal): Wilson's where
    each prompt has one pair, otherwise clustered by prompt. `ties` counts the pairs of equal
    length, which are left out; `mean_difference` is chosen minus rejected over all pairs. A share
    of 0.5 means that length says nothing.
    """
    pairs, prompts = [], []
    for row in rows:
        if "chosen" not in row and "ranks" not in row:
            continue
        texts, ranks = completions_and_ranks(row)
        words = [content_of(text) for text in texts]
        ordered = [(words[i], words[j]) for i, j in ordered_pairs(ranks)]
        pairs += ordered
        prompts += [row_key({"t": row["prompt"]}).hex()] * len(ordered)
    if not pairs:
        return None
    characters = np.array([len(chosen) - len(rejected) for chosen, rejected in pairs])
    words = np.array([len(chosen.split()) - len(rejected.split()) for chosen, rejected in pairs])
    unequal = characters != 0
    share = None
    if unequal.any():
        share = _share_by_prompt(np.array(prompts), characters)
    return {
        "longer_chosen": share,
        "ties": int((~unequal).sum()),
        "mean_difference": {"characters": float(characters.mean()), "words": float(words.mean())},
    }


def _share_by_prompt(prompts: np.ndarray, characters: np.ndarray) -> dict[str, object]:
    unequal = np.flatnonzero(characters)
    longer = (characters[unequal] > 0).astype(float)
    prompts = prompts[unequal]
    if len(np.unique(prompts)) == len(unequal):
        share = wilson_interval(int(longer.sum()), len(unequal))
    else:
        share = clustered_share(longer, prompts)
    return share.to_dict() | {"pairs": len(unequal)}


def repeats(rows: Sequence[Mapping]) -> dict[str, int]:
    """`duplicates`: rows equal to an earlier one; `contradictions`: pairs in both orders."""
    seen = Counter(row_key(row) for row in rows)
    counts = {"duplicates": len(rows) - len(seen), "contradictions": 0}
    if rows and "chosen" in rows[0]:
        orders = {
            (
                row_key({"t": r["prompt"]}),
                row_key({"t": r["chosen"]}),
                row_key({"t": r["rejected"]}),
            )
            for r in rows
        }
        both = sum((prompt, worse, better) in orders for prompt, better, worse in orders)
        counts["contradictions"] = both // 2
    return {name: count for name, count in counts.items() if count}
