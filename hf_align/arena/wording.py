"""Turns a prompt into the tokens that a contestant expects, and its tokens into text as they come.

Torch-free.
"""

from __future__ import annotations

from typing import Any

from hf_align.sampling.completions import prompt_tokens
from hf_align.types import InputError, Text, content_of

MOST_PROMPT_BYTES = 32_768
"""Longest prompt: a visitor's, of whom there are several at a time."""

_PART = "\ufffd"
"""What decoding gives for bytes that are no whole character."""


def check_prompt(prompt: Text) -> None:
    """Refuses what nobody could answer.

    Raises:
        InputError: It is empty, no text or conversation, or longer than `MOST_PROMPT_BYTES`.
    """
    fine = isinstance(prompt, str) or (
        isinstance(prompt, list)
        and all(isinstance(m, dict) and m.keys() == {"role", "content"} for m in prompt)
        and all(isinstance(value, str) for m in prompt for value in m.values())
    )
    if not fine:
        raise InputError("prompt: give a text, or a list of messages with role and content")
    words = content_of(prompt)
    if not words.strip():
        raise InputError("prompt: it is empty; write something to answer")
    size = len(words.encode("utf-8", "surrogatepass"))
    if size > MOST_PROMPT_BYTES:
        raise InputError(
            f"prompt: it has {size:,} bytes, and {MOST_PROMPT_BYTES:,} is the limit; shorten it"
        )


def prompt_ids(tokenizer: Any, prompt: Text, chat: bool) -> list[int]:
    """The tokens after which a contestant answers.

    Args:
        tokenizer: The contestant's.
        prompt: Text, or a conversation.
        chat: Whether it was trained on conversations: then text is a user's message.

    Raises:
        InputError: It has no chat template, its template refuses, or nothing is left of the prompt.
    """
    from jinja2 import TemplateError

    if chat and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, str) and tokenizer.chat_template is None:
        raise InputError("it has no chat template, and the prompt is a conversation; give text")
    if isinstance(prompt, str) and not tokenizer(prompt, verbose=False)["input_ids"]:
        raise InputError("its vocabulary has nothing of this prompt; use other words")
    try:
        return prompt_tokens(tokenizer, [prompt])[0]
    except TemplateError as error:
        raise InputError(f"its chat template refuses the prompt ({error})") from error


class Wording:
    """The text of an answer that grows by tokens, without halves of characters.

    Attributes:
        text: What can be shown so far.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.text = tokenizer, ""
        self.ids: list[int] = []
        self.tokens: list[str] = []
        # Tokens whose text is shown end at `read`; those from `start` on are decoded with what
        # follows, because some tokenizers write a token differently at the beginning.
        self.start = self.read = 0

    def add(self, token: int) -> None:
        """One more token."""
        self.ids.append(token)
        before = self._decoded(self.start, self.read)
        after = self._decoded(self.start, len(self.ids))
        added = "" if after.endswith(_PART) else after[len(before) :]
        self.tokens.append(added)
        if added:
            self.text += added
            self.start, self.read = self.read, len(self.ids)

    def finish(self) -> tuple[str, tuple[str, ...]]:
        """The text of all tokens, and what each adds to it; joined they are the text.

        Where the answer was cut within a character, that is left out.
        """
        text = self._decoded(0, len(self.ids)).rstrip(_PART)
        if self.text != text:
            # A tokenizer that rewrites what is before: each token by how far the text then agrees.
            ends = [
                _agreeing(text, self._decoded(0, count)) for count in range(1, len(self.ids) + 1)
            ]
            ends = [max(ends[: place + 1]) for place in range(len(ends))]
            ends[-1:] = [len(text)] if ends else []
            self.tokens = [text[i:j] for i, j in zip([0, *ends], ends, strict=False)]
            self.text = text
        return text, tuple(self.tokens)

    def _decoded(self, start: int, end: int) -> str:
        return self.tokenizer.decode(self.ids[start:end], skip_special_tokens=True)


def _agreeing(one: str, two: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(two)))
