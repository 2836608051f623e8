"""Text that comes from people and models, checked before it is stored and made safe to show.

Names are plain ASCII, so that none can climb out of a folder or look like another. Longer texts are
stored as written; characters that reorder or hide what is on the screen are spelled out on display,
and a cell that a spreadsheet would run as a formula gets a leading apostrophe.
"""

from __future__ import annotations

import hashlib
import json
import re

from hf_align.types import InputError, Text

MAX_NAME = 64
MAX_NOTE = 10_000
MAX_TEXT = 200_000
"""Characters of a name, of a note, and of a prompt, a completion or the guidelines."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What stays invisible or turns the reading direction: bidirectional controls, zero-width
# characters, line separators, and control characters other than tab, newline and carriage return.
_JOINED = "[^\u0000-\u02ff\u2000-\u206f\ufeff]"  # scripts and emoji that joiners belong to
_HIDDEN = re.compile(
    "[\u202a-\u202e\u2066-\u2069\u200b\u200e\u200f\u061c\u2028\u2029\ufeff\u00ad"
    "\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]"
    f"|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})"
)
_FORMULA = re.compile(r"[\s\x00]*[=+\-@＝＋－＠|%]|^[\t\r\n]")


def check_name(what: str, name: object) -> str:
    """A name that is safe as a folder and on a page: ASCII letters, digits, `.`, `_` and `-`.

    Raises:
        InputError: It is not; the line names what it was meant for.
    """
    if isinstance(name, str) and len(name) <= MAX_NAME and _NAME.fullmatch(name):
        return name
    shown = visible_text(repr(name))[:80]
    raise InputError(
        f"{what} {shown}: use 1 to {MAX_NAME} ASCII letters, digits, '.', '_' or '-', the first a "
        "letter or digit"
    )


def check_text(what: str, text: object, limit: int = MAX_NOTE) -> str:
    """Text as it may be stored: a string of at most `limit` characters that UTF-8 can hold.

    Raises:
        InputError: It is no string, too long, or holds a NUL or half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise InputError(f"{what}: expected text, got {type(text).__name__}")
    if len(text) > limit:
        raise InputError(f"{what}: {len(text)} characters, at most {limit}; shorten it")
    if "\x00" in text or re.search("[\ud800-\udfff]", text):
        raise InputError(f"{what}: holds a character that is no text (NUL or a lone surrogate)")
    return text


def check_prompt(prompt: object) -> Text:
    """A prompt: text, or messages of known roles.

    Raises:
        InputError: Neither, empty, or too long.
    """
    if isinstance(prompt, list):
        if not prompt:
            raise InputError("prompt: no messages")
        for message in prompt:
            if not isinstance(message, dict) or set(message) != {"role", "content"}:
                raise InputError("prompt: every message needs exactly 'role' and 'content'")
            if message["role"] not in ("system", "user", "assistant"):
                raise InputError(
                    f"prompt: role {visible_text(repr(message['role']))[:40]}, expected 'system', "
                    "'user' or 'assistant'"
                )
            check_text("prompt", message["content"], MAX_TEXT)
        return prompt
    return check_text("prompt", prompt, MAX_TEXT)


def visible_text(text: str) -> str:
    """The text with every hidden or direction-turning character spelled out, as in ⟦U+202E⟧.

    Joiners stay where they belong, between letters that are written joined and within emoji.
    """
    return _HIDDEN.sub(lambda match: f"⟦U+{ord(match[0]):04X}⟧", text)


def spreadsheet_cell(value: object) -> str:
    """A value as a CSV cell that no spreadsheet runs: a formula gets an apostrophe in front.

    Numbers stay numbers; lists and objects become JSON.
    https://owasp.org/www-community/attacks/CSV_Injection
    """
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"'{text}" if _FORMULA.match(text) else text


def digest(value: object) -> str:
    """SHA-256 of a text, or of an object's canonical JSON, in hexadecimal."""
    text = value if isinstance(value, str) else canonical(value)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: equal objects give equal text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
