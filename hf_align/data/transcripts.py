"""Turns of a "Human: … Assistant: …" transcript, the format of hh-rlhf (Bai et al. 2022).

Pairs are cut at whole turns. A cut at the longest common character prefix would fall inside the
answers wherever both happen to begin alike.
https://github.com/anthropics/hh-rlhf
"""

from __future__ import annotations

import re

from hf_align.data.texts import InvalidRow, require_string
from hf_align.types import Message

_MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: object) -> bool:
    """True for a string that opens with a `Human:` turn and holds an `Assistant:` marker."""
    return (
        isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value
    )


def parse_transcript(text: object, column: str) -> list[Message]:
    """The turns of a transcript, each stripped of surrounding whitespace; empty turns are kept.

    Raises:
        InvalidRow: `not_transcript` when the text does not open with a turn marker, else as
            `require_string`.
    """
    transcript = require_string(text, column)
    parts = _MARKER.split(transcript)
    if len(parts) < 3 or parts[0].strip():
        raise InvalidRow("not_transcript", column, "not a 'Human: … Assistant: …' transcript")
    return [
        {"role": _ROLE[speaker], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def split_transcript(text: object, column: str) -> tuple[list[Message], Message]:
    """The context and the final assistant turn of a transcript.

    Raises:
        InvalidRow: `not_transcript` when it does not end with the assistant, `empty` for a turn
            without words, else as `parse_transcript`.
    """
    turns = parse_transcript(text, column)
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise InvalidRow("not_transcript", column, "does not end with an 'Assistant:' turn")
    _refuse_empty_turns(turns, column)
    return turns[:-1], turns[-1]


def prompt_transcript(text: object, column: str) -> list[Message]:
    """The turns of a prompt transcript; its closing, empty `Assistant:` marker is left out.

    Raises:
        InvalidRow: As `split_transcript`.
    """
    turns = parse_transcript(text, column)
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns = turns[:-1]
    _refuse_empty_turns(turns, column)
    return merge_same_role(turns)


def merge_same_role(turns: list[Message]) -> list[Message]:
    """Joins neighbouring turns of one speaker by a blank line: many chat templates refuse them."""
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            content = f"{merged[-1]['content']}\n\n{turn['content']}"
            merged[-1] = {"role": turn["role"], "content": content}
        else:
            merged.append(turn)
    return merged


def _refuse_empty_turns(turns: list[Message], column: str) -> None:
    for position, turn in enumerate(turns, start=1):
        if not turn["content"]:
            speaker = "Human" if turn["role"] == "user" else "Assistant"
            where = "the final answer" if position == len(turns) else f"turn {position} ({speaker})"
            raise InvalidRow("empty", column, f"empty text in {where}")
