"""A pair as a question to a language model: a prompt, two completions, and which is better.

    <prompt>

    A: <completion>

    B: <completion>

    Better: A

The question is put together from tokens, so that what does not fit is cut where it hurts least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_align.types import InputError, Text, content_of

LABELS = ("A", "B")
_SPARE_LABELS = ("<A>", "<B>")
_HOLE = "⟨question⟩"
_PROMPT_SHARE = 3
"""A prompt that does not fit is cut to a third of the room, its end kept."""


@dataclass(frozen=True)
class Questions:
    """How pairs are asked about with one tokenizer.

    Attributes:
        tokenizer: A copy that knows the labels as tokens.
        labels: What the two completions are called.
        answers: The token ids of the two labels as answers.
        opening: What precedes the question, where a chat template adds anything.
        closing: What follows it, up to the answer.
        max_length: Longest question in tokens, its answer included.
    """

    tokenizer: Any
    labels: tuple[str, str]
    answers: tuple[int, int]
    opening: str
    closing: str
    max_length: int

    def ask(self, prompt: Text, first: Text, second: Text) -> tuple[list[int], bool]:
        """Token ids of the question up to its answer, and whether anything had to be cut.

        Raises:
            InputError: `max_length` leaves no room for the completions.
        """
        head = self._ids(self.opening) if self.opening else self._start()
        asked = self._ids(shown_prompt(prompt))
        marks = [self._ids(f"\n\n{label}: ") for label in self.labels]
        texts = [self._ids(content_of(text)) for text in (first, second)]
        tail = self._ids(f"\n\nBetter:{self.closing}")
        room = self.max_length - 1 - sum(map(len, (head, *marks, tail)))
        if room < 3:
            raise InputError(
                f"generative_classifier: {self.max_length} tokens have no room for two "
                "completions; raise --max_length or choose a model with more positions"
            )
        cut = len(asked) + sum(map(len, texts)) > room
        if cut:
            share = max(1, room // _PROMPT_SHARE, room - sum(map(len, texts)))
            asked = asked[-share:]
            texts = shortened(texts, room - len(asked))
        return [*head, *asked, *marks[0], *texts[0], *marks[1], *texts[1], *tail], cut

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _start(self) -> list[int]:
        """What the tokenizer puts before any text, such as a token for its beginning."""
        return self.tokenizer("")["input_ids"]


def make_questions(tokenizer: Any, conversational: bool, max_length: int) -> Questions:
    """How to ask with this tokenizer, which must be one of its own: it may get two more tokens.

    The answers are "A" and "B" where these are one known token each, else two new tokens.
    Conversations are asked about in one user turn of the chat template.
    """
    opening = closing = ""
    if conversational:
        turn = [{"role": "user", "content": _HOLE}]
        whole = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        opening, _, closing = whole.partition(_HOLE)
    # After a colon a word begins with its space, after a turn's mark without.
    for space in ("", " ") if conversational else (" ", ""):
        found = [
            tokenizer(space + label, add_special_tokens=False)["input_ids"] for label in LABELS
        ]
        answers = tuple(ids[0] for ids in found if len(ids) == 1)
        if len(set(answers)) == 2 and tokenizer.unk_token_id not in answers:
            return Questions(tokenizer, LABELS, answers, opening, closing, max_length)
    tokenizer.add_tokens(list(_SPARE_LABELS))
    answers = tuple(tokenizer.convert_tokens_to_ids(list(_SPARE_LABELS)))
    return Questions(tokenizer, _SPARE_LABELS, answers, opening, closing, max_length)


def shown_prompt(prompt: Text) -> str:
    """A prompt as text; of a conversation each turn with its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def shortened(texts: list[list[int]], room: int) -> list[list[int]]:
    """Two texts cut at their ends to `room` tokens together; the shorter gives what it leaves."""
    short = min(map(len, texts))
    least = min(short, room // 2)
    return [text[: room - least if len(text) > short else least] for text in texts]
