"""Batches for a language-modelling loss mixed into the policy's update (PPO-ptx)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_align.types import InputError


class LanguageLoss:
    """Texts whose likelihood is kept up while a reward is optimised.

    The loss joins the policy's gradient before the optimizer steps
    (https://huggingface.co/papers/2203.02155, equation 2); a step of its own would be another
    algorithm, because Adam divides by another scale. Rows are drawn without replacement in passes
    whose order depends on the seed and the pass alone, so a resumed run sees the same batches.

    Args:
        rows: `text`, `prompt`/`completion` or `messages` rows.
        tokenizer: The policy's tokenizer.
        batch_size: Rows per slice and process.
        max_length: Tokens that a row is cut to, its end first.
        seed: Seed of the order.
        process: This process, and how many there are.

    Raises:
        InputError: No rows, or columns that hold no text.
    """

    def __init__(
        self,
        rows: Any,
        tokenizer: Any,
        batch_size: int,
        max_length: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
    ):
        self.pairs = [pair for row in rows if (pair := tokens_of(row, tokenizer, max_length))[1]]
        if not self.pairs:
            raise InputError(
                "the ptx data have no row with a token to learn; give texts, or leave out "
                "ptx_coefficient"
            )
        self.batch_size, self.seed, self.process = batch_size, seed, process

    def batch(self, slice_index: int) -> list[tuple[list[int], list[int]]]:
        """The `(context ids, target ids)` of one slice; slices are counted from the run's start."""
        rank, world = self.process
        first = (slice_index * world + rank) * self.batch_size
        size = len(self.pairs)
        picked = []
        for index in range(first, first + self.batch_size):
            lap, place = divmod(index, size)
            picked.append(self.pairs[self._order(lap)[place]])
        return picked

    def _order(self, lap: int) -> np.ndarray:
        if getattr(self, "_lap", None) != lap:
            self._lap = lap
            self._permutation = np.random.default_rng([self.seed, lap]).permutation(len(self.pairs))
        return self._permutation


def tokens_of(row: dict[str, Any], tokenizer: Any, max_length: int) -> tuple[list[int], list[int]]:
    """A row as context (not scored) and targets, together at most `max_length` tokens.

    Plain text, or an answer to an empty prompt, is all target but for its first token, which
    nothing precedes; answers end with the end token.

    Raises:
        InputError: The row has none of the columns, or its messages do not end with an answer.
    """
    if "text" in row:
        ids = tokenizer(row["text"])["input_ids"]
        ids = _ended(ids, tokenizer)[:max_length]
        return ids[:1], ids[1:]
    if "messages" in row:
        prompt, completion = row["messages"][:-1], row["messages"][-1:]
        if not prompt or completion[0]["role"] != "assistant":
            roles = ", ".join(message["role"] for message in row["messages"]) or "no one"
            raise InputError(
                f"`messages` must end with an answer of the assistant; a row's are by {roles}"
            )
    elif "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
    else:
        raise InputError(
            f"a row has columns {', '.join(row)}; give `text`, `prompt` and `completion`, or "
            "`messages`"
        )
    context = prompt_tokens(prompt, tokenizer)
    targets = answer_tokens(prompt, completion, context, tokenizer)
    if not context:
        context, targets = targets[:1], targets[1:]
    return context, targets[: max(0, max_length - len(context))]


def prompt_tokens(prompt: Any, tokenizer: Any) -> list[int]:
    """A text's ids, or a conversation's with the generation prompt."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    encoded = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def answer_tokens(prompt: Any, answer: Any, context: Sequence[int], tokenizer: Any) -> list[int]:
    """The ids of an answer as they follow the prompt's, with the end token.

    Raises:
        InputError: One is text and the other a conversation.
    """
    if isinstance(prompt, str) != isinstance(answer, str):
        raise InputError(
            "of a row's prompt and completion one is text and the other messages; give both alike"
        )
    if isinstance(prompt, str):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return _ended(ids, tokenizer)
    whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=True, return_dict=True)
    ids = list(whole["input_ids"])
    # A template may write the prompt differently once it is answered.
    if ids[: len(context)] == list(context):
        return _ended(ids[len(context) :], tokenizer)
    text = answer[-1]["content"]
    return _ended(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer)


def _ended(ids: Sequence[int], tokenizer: Any) -> list[int]:
    ids = list(ids)
    end = tokenizer.eos_token_id
    return ids if end is None or end in ids[-2:] else [*ids, end]
