"""Which of the known column layouts a dataset has, from its columns and its first rows.

A layout says where prompt, completions and preference are to be found; `rows.py` turns a row of it
into TRL's columns. https://huggingface.co/docs/trl/dataset_formats
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from hf_align.data.texts import InvalidRow, require_messages
from hf_align.data.transcripts import is_transcript
from hf_align.types import InputError

Task = Literal["sft", "preference", "prompt", "ranking"]

LAYOUTS: dict[str, str] = {
    "explicit": "prompt, chosen, rejected as plain text",
    "explicit_conversational": "prompt, chosen, rejected as messages",
    "explicit_mixed": "prompt, chosen, rejected, some as text and some as messages",
    "explicit_transcript": "prompt as a Human/Assistant transcript; chosen and rejected as text",
    "full_conversations": "prompt; chosen and rejected repeat it as whole conversations",
    "implicit_conversational": "chosen and rejected as whole conversations, no prompt column",
    "transcripts": "chosen and rejected as whole Human/Assistant transcripts (hh-rlhf)",
    "question_pairs": "question or instruction (and system); chosen and rejected",
    "ranked": "prompt, completions, ranks (1 = best)",
    "valued_pairs": "a prompt, two completions and the probability of one being preferred",
    "messages": "messages, or conversations in ShareGPT's form",
    "prompt_completion": "prompt and completion",
    "prompt_only": "prompt alone",
    "text": "text alone",
}
"""Layout name -> what it looks like."""

TASKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(LAYOUTS, ("sft", "preference", "prompt", "ranking")),
    "messages": ("sft", "prompt"),
    "prompt_completion": ("sft", "prompt"),
    "prompt_only": ("prompt",),
    "text": ("sft",),
}
"""Layout name -> the tasks that it can serve."""

INSTRUCTION_COLUMNS = ("question", "instruction", "query")
"""Columns that hold what a user asks an assistant; such rows become conversations."""

ANSWER_COLUMNS = ("completion", "response", "answer", "output")
"""Columns that hold the one answer of a demonstration, in order of preference."""

PAIR_COLUMNS = (("completion_a", "completion_b"), ("output_1", "output_2"))
"""Columns of two unlabelled completions; the value column says which one people prefer."""

VALUE_COLUMNS = ("p_a", "preference")
"""Probability of the first completion in [0, 1], and AlpacaEval's 1 + P(second) in [1, 2]."""

SYSTEM_COLUMNS = ("system", "system_prompt")

COLUMNS = (
    *("prompt", "chosen", "rejected", "completion", "messages", "text", "conversations"),
    *("completions", "ranks", *PAIR_COLUMNS[0], *PAIR_COLUMNS[1], *VALUE_COLUMNS),
    *(*SYSTEM_COLUMNS, *INSTRUCTION_COLUMNS, "input", *ANSWER_COLUMNS[1:]),
)
"""Every column name that a layout reads: the keys that a column mapping may have."""

MARGIN = "margin"
"""How much better the chosen completion is, in units of the score. No layout reads it: it goes
along where it is asked for (`keep_columns`), and may be mapped like those above."""

NEEDED = {
    "preference": "chosen and rejected, with a prompt column or as whole conversations",
    "sft": "messages, text, or prompt and completion",
    "prompt": "a prompt or messages",
    "ranking": "completions and ranks, or chosen and rejected, with a prompt column",
}


def detect_layout(
    columns: Collection[str], rows: Sequence[Mapping[str, object]], task: Task | None = None
) -> str:
    """The name of the layout, one of `LAYOUTS`.

    Args:
        columns: The dataset's columns, after any mapping.
        rows: Its first rows (a hundred are plenty); they tell text, messages and transcripts apart.
        task: Leaves out the layouts that cannot serve this task.

    Raises:
        InputError: No layout fits; the message names the columns found and how to map them.
    """
    names = set(columns)
    found = _candidates(names, rows)
    if task == "ranking" and "ranked" in found:
        return "ranked"
    for layout in found:
        if task is None or task in TASKS[layout]:
            return layout
    if (
        task in ("preference", "ranking")
        and {"chosen", "rejected"} <= names
        and not names & {"prompt", *INSTRUCTION_COLUMNS, "input"}
    ):
        raise InputError(
            "columns 'chosen' and 'rejected' are plain text without a prompt column, so where the "
            f"prompt ends is unknown; found columns: {', '.join(sorted(names))}; name the prompt's "
            "with --prompt_column"
        )
    need = NEEDED[task] if task else "; or ".join(NEEDED.values())
    remedy = {
        "preference": "--prompt_column, --chosen_column and --rejected_column",
        "ranking": "--prompt_column, --completions_column and --ranks_column",
    }.get(task or "preference", "--prompt_column, --completion_column or --messages_column")
    raise InputError(
        f"no layout for the task {task or '(any)'!r} recognised in columns "
        f"{', '.join(sorted(names)) or '(none)'}; needed: {need}; map yours with {remedy}"
    )


def _candidates(names: set[str], rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The layouts that the columns allow, most informative first."""
    asked = "prompt" in names or bool(names & {*INSTRUCTION_COLUMNS, "input"})
    found = []
    if {"chosen", "rejected"} <= names:
        pair = _pair_layout(names, rows)
        found += [pair] if pair else []
    if asked and {"completions", "ranks"} <= names:
        found.append("ranked")
    if asked and value_columns(names):
        found.append("valued_pairs")
    if names & {"messages", "conversations"}:
        found.append("messages")
    if asked and (names & set(ANSWER_COLUMNS)):
        found.append("prompt_completion")
    if asked:
        found.append("prompt_only")
    if "text" in names:
        found.append("text")
    return found


def _pair_layout(names: set[str], rows: Sequence[Mapping[str, object]]) -> str | None:
    """The layout of a chosen/rejected dataset; None for plain text without a prompt."""
    chosen = [row["chosen"] for row in rows if row.get("chosen") is not None]
    conversations = [value for value in chosen if isinstance(value, list)]
    if "prompt" not in names:
        if names & {*INSTRUCTION_COLUMNS, "input"}:
            return "question_pairs"
        if conversations:
            return "implicit_conversational"
        # One odd row among transcripts is that row's fault, found and named when it is parsed.
        return "transcripts" if any(map(is_transcript, chosen)) else None
    if any(_repeats_prompt(value) for value in conversations):
        return "full_conversations"
    prompts = [row["prompt"] for row in rows if row.get("prompt") is not None]
    prompt_kinds = {isinstance(value, list) for value in prompts}
    kinds = prompt_kinds | {isinstance(value, list) for value in chosen}
    if kinds == {True}:
        return "explicit_conversational"
    if True in kinds:
        return "explicit_mixed"
    if prompts and all(map(is_prompt_transcript, prompts)):
        return "explicit_transcript"
    return "explicit"


def _repeats_prompt(conversation: list) -> bool:
    """True when a completion's messages start before the assistant's answer."""
    try:
        turns = require_messages(conversation, "chosen")
    except InvalidRow:
        return False  # the row is named when it is normalised
    return turns[0]["role"] != "assistant"


def is_prompt_transcript(value: object) -> bool:
    """True for a transcript that ends where the assistant is to answer."""
    return is_transcript(value) and str(value).rstrip().endswith("\n\nAssistant:")


def value_columns(names: Collection[str]) -> tuple[str, str, str] | None:
    """The columns of two completions and of their preference; None when they are not all there."""
    for first, second in PAIR_COLUMNS:
        for value in VALUE_COLUMNS:
            if first in names and second in names and value in names:
                return first, second, value
    return None


def first_column(names: Collection[str], candidates: Sequence[str]) -> str | None:
    """The first of the candidates that is among the names."""
    return next((name for name in candidates if name in names), None)
