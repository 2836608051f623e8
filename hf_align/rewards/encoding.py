"""Turns prompts and completions into the tokens that a reward model reads, as TRL's RewardTrainer
does in training.

Text is `prompt + completion + EOS` with the tokenizer's own special tokens around it; a
conversation is rendered by the chat template, which ends it as it likes. Scoring and training use
this one function, so a completion is the same tokens in both.
"""

from __future__ import annotations

from typing import Any

from hf_align.types import InputError, Message, Text


def encode(
    tokenizer: Any, prompts: list[Text], completions: list[Text], max_length: int | None = None
) -> tuple[list[list[int]], int]:
    """Token ids of each prompt with its completion, unpadded, and how many had to be cut.

    A pair of which one part is a conversation is a conversation: the other part becomes one turn.
    Text that already ends with the EOS token gets no second one.

    Args:
        tokenizer: The reward model's.
        prompts: (N,) texts or conversations.
        completions: (N,) texts or lists of messages.
        max_length: Longest sequence in tokens; longer ones are cut on the tokenizer's
            `truncation_side`. None cuts nothing.

    Returns:
        `(ids, num_truncated)`.

    Raises:
        InputError: Unequal numbers of prompts and completions, or a conversation where the
            tokenizer has no chat template.
    """
    if len(prompts) != len(completions):
        raise InputError(f"got {len(completions)} completions for {len(prompts)} prompts")
    inputs = [
        _joined(tokenizer, prompt, completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    texts = [index for index, joined in enumerate(inputs) if isinstance(joined, str)]
    ids: list[list[int]] = [[] for _ in inputs]
    if texts:
        encoded = tokenizer([inputs[index] for index in texts], verbose=False)["input_ids"]
        for index, row in zip(texts, encoded, strict=True):
            ids[index] = row
    for index, joined in enumerate(inputs):
        if not isinstance(joined, str):
            ids[index] = _rendered(tokenizer, joined)
    if max_length is None:
        return ids, 0
    too_long = [index for index, row in enumerate(ids) if len(row) > max_length]
    for index in too_long:
        ids[index] = _cut(tokenizer, inputs[index], max_length)
    return ids, len(too_long)


def _joined(tokenizer: Any, prompt: Text, completion: Text) -> str | list[Message]:
    if isinstance(prompt, str) and isinstance(completion, str):
        eos = tokenizer.eos_token or ""
        return prompt + completion + ("" if completion.endswith(eos) else eos)
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return prompt + completion


def _rendered(
    tokenizer: Any, conversation: list[Message], max_length: int | None = None
) -> list[int]:
    if tokenizer.chat_template is None:
        raise InputError(
            "the reward model's tokenizer has no chat template, and a prompt is a conversation; "
            "give text, or a reward model trained on conversations"
        )
    encoded = tokenizer.apply_chat_template(
        conversation,
        tokenize=True,
        return_dict=True,
        truncation=max_length is not None,
        max_length=max_length,
    )
    return encoded["input_ids"]


def _cut(tokenizer: Any, joined: str | list[Message], max_length: int) -> list[int]:
    # By the tokenizer, which knows the special tokens that must stay on either end.
    if isinstance(joined, str):
        return tokenizer(joined, truncation=True, max_length=max_length)["input_ids"]
    return _rendered(tokenizer, joined, max_length)
