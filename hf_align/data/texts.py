"""Checks on one row's texts, and the conversation arithmetic that every layout shares.

A text is a string or a list of messages. `InvalidRow` names the column and the fault; the loader
adds the file and the row and either stops or drops the row, as the user asked.
"""

from __future__ import annotations

import json

from hf_align.types import Message, Text

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Role names in the wild (OpenAI's, ShareGPT's) and the role that chat templates know."""


class InvalidRow(ValueError):
    """A row that cannot be used as it is.

    Attributes:
        reason: Short name, the key under which dropped rows are counted (`empty`, `missing`, …).
        column: The column at fault.
        detail: What is wrong with it, in a few words.
    """

    def __init__(self, reason: str, column: str, detail: str):
        super().__init__(f"column '{column}': {detail}")
        self.reason = reason
        self.column = column
        self.detail = detail


def is_missing(value: object) -> bool:
    """True for None and for NaN, which is how tables spell a missing number."""
    return value is None or (isinstance(value, float) and value != value)


def require_string(value: object, column: str) -> str:
    """The value if it is a string with something in it.

    Raises:
        InvalidRow: `missing`, `not_text`, `empty` or `bad_unicode`.
    """
    if is_missing(value):
        raise InvalidRow("missing", column, "no value (null)")
    if not isinstance(value, str):
        raise InvalidRow("not_text", column, f"expected text, got {type(value).__name__}")
    if not value.strip():
        raise InvalidRow("empty", column, "empty text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRow(
            "bad_unicode", column, f"not valid Unicode (lone surrogate at {error.start})"
        ) from error
    return value


def require_messages(value: object, column: str) -> list[Message]:
    """The conversation as role/content messages; ShareGPT's from/value is translated.

    Keys other than role and content are left out, and so are system messages without content.

    Raises:
        InvalidRow: `bad_messages` for a wrong structure or role, else as `require_string`.
    """
    if is_missing(value):
        raise InvalidRow("missing", column, "no value (null)")
    if isinstance(value, str) or not isinstance(value, list):
        raise InvalidRow("not_text", column, f"expected messages, got {type(value).__name__}")
    messages = []
    for position, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            detail = f"message {position} is {type(message).__name__}, expected role and content"
            raise InvalidRow("bad_messages", column, detail)
        role, content = _role_and_content(message)
        if role not in ROLES:
            detail = f"message {position} has role {role!r}, expected one of {sorted(set(ROLES))}"
            raise InvalidRow("bad_messages", column, detail)
        if ROLES[role] == "system" and (content is None or content == ""):
            continue
        messages.append({"role": ROLES[role], "content": require_string(content, column)})
    if not messages:
        raise InvalidRow("empty", column, "empty conversation")
    return messages


def _role_and_content(message: dict) -> tuple[object, object]:
    # Arrow fills absent struct fields with null, so presence of the key alone says nothing.
    if message.get("role") is None and message.get("from") is not None:
        return message["from"], message.get("value")
    return message.get("role"), message.get("content")


def require_text(value: object, column: str) -> Text:
    """A string or a conversation, checked.

    Raises:
        InvalidRow: As `require_string` and `require_messages`.
    """
    if isinstance(value, list):
        return require_messages(value, column)
    return require_string(value, column)


def require_completion(value: object, column: str) -> Text:
    """A string, or messages that start with the assistant and hold no user turn.

    Raises:
        InvalidRow: As `require_text`; `bad_messages` when a turn is not the assistant's.
    """
    text = require_text(value, column)
    if isinstance(text, list):
        if text[0]["role"] != "assistant":
            detail = f"a completion starts with the assistant, got {text[0]['role']!r}"
            raise InvalidRow("bad_messages", column, detail)
        if not is_answer(text):
            raise InvalidRow("bad_messages", column, "a completion holds no user or system turn")
    return text


def is_answer(turns: list[Message]) -> bool:
    """True when the turns are one answer: the assistant starts, and only tools interrupt."""
    return (
        bool(turns)
        and turns[0]["role"] == "assistant"
        and all(turn["role"] in ("assistant", "tool") for turn in turns)
    )


def as_prompt(text: Text) -> list[Message]:
    """A plain prompt as one user message; a conversation unchanged."""
    return [{"role": "user", "content": text}] if isinstance(text, str) else text


def as_completion(text: Text) -> list[Message]:
    """A plain completion as one assistant message; a conversation unchanged."""
    return [{"role": "assistant", "content": text}] if isinstance(text, str) else text


def split_last_answer(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """Cuts a conversation before its final answer: (prompt, answer).

    The answer is empty when the conversation ends with the user.
    """
    cut = len(turns)
    while cut and turns[cut - 1]["role"] in ("assistant", "tool"):
        cut -= 1
    return turns[:cut], turns[cut:]


def split_shared_turns(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]] | None:
    """Cuts two conversations after the whole turns that they share: (prompt, chosen, rejected).

    None when there is no such cut: nothing is shared, or what remains holds a user's turn, so the
    two answers reply to different conversations.
    """
    limit = min(len(chosen), len(rejected)) - 1
    cut = 0
    while cut < limit and chosen[cut] == rejected[cut]:
        cut += 1
    # A shared assistant turn right before the cut belongs to the answers: a prompt ends with the
    # user (or a tool), or chat templates would have to continue a message.
    while cut and chosen[cut - 1]["role"] == "assistant":
        cut -= 1
    if cut == 0 or not is_answer(chosen[cut:]) or not is_answer(rejected[cut:]):
        return None
    return chosen[:cut], chosen[cut:], rejected[cut:]


def canonical(text: Text) -> bytes:
    """Bytes that identify a text; a plain string and the same words as one user message agree.

    So a prompt lands on the same side of a split whether or not its dataset was wrapped into
    conversations.
    """
    turns = [[turn["role"], turn["content"]] for turn in as_prompt(text)]
    return json.dumps(turns, ensure_ascii=False).encode()
