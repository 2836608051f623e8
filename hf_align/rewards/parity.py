"""Names what differs between a policy's tokenizer and a reward model's, where it matters in
practice: padding, end token, chat template, vocabulary, length.
"""

from __future__ import annotations

from typing import Any

_PROBE = [
    {"role": "user", "content": "Which one?"},
    {"role": "assistant", "content": "This one."},
]


def tokenization_differences(policy: Any, reward: Any, max_length: int, name: str) -> list[str]:
    """One sentence per difference between two tokenizers; none where they tokenise alike.

    Args:
        policy: The policy's tokenizer.
        reward: The reward model's tokenizer.
        max_length: Tokens that the reward model reads.
        name: What the sentences call the reward model.
    """
    sentences = []
    if policy.get_vocab() != reward.get_vocab():
        shared = len(policy.get_vocab().keys() & reward.get_vocab().keys())
        sentences.append(
            f"the vocabularies differ: {len(policy)} tokens in the policy, {len(reward)} in "
            f"{name}, {shared} in common; text is tokenised anew for scoring, and no weights can "
            "be shared"
        )
    elif policy("a b")["input_ids"] != reward("a b")["input_ids"]:
        sentences.append(
            f"the tokens around text differ: the policy makes {policy('a b')['input_ids']} of "
            f"'a b', {name} {reward('a b')['input_ids']}"
        )
    if policy.pad_token != reward.pad_token:
        sentences.append(
            f"the pad tokens differ: {policy.pad_token!r} in the policy, {reward.pad_token!r} in "
            f"{name}"
        )
    if reward.pad_token_id == reward.eos_token_id:
        sentences.append(
            f"{name} pads with its end token {reward.eos_token!r}, so its head reads the token "
            "before the end, in training and in scoring alike"
        )
    if policy.eos_token != reward.eos_token:
        sentences.append(
            f"the end tokens differ: {policy.eos_token!r} in the policy, {reward.eos_token!r} in "
            f"{name}, which appends its own to text"
        )
    sentences += _template_differences(policy, reward, name)
    if max_length < policy.model_max_length:
        side = "end" if reward.truncation_side == "right" else "beginning"
        sentences.append(
            f"{name} reads {max_length} tokens and the policy may write more; what is longer loses "
            f"its {side} before it is scored (truncation_side is {reward.truncation_side!r})"
        )
    return sentences


def _template_differences(policy: Any, reward: Any, name: str) -> list[str]:
    if policy.chat_template is None and reward.chat_template is None:
        return []
    if reward.chat_template is None:
        return [f"the policy has a chat template and {name} has none: it scores text alone"]
    if policy.chat_template is None:
        return [f"{name} has a chat template and the policy has none"]
    # By what they make of a conversation: two templates can be written differently and agree.
    theirs, ours = (
        tokenizer.apply_chat_template(_PROBE, tokenize=False) for tokenizer in (policy, reward)
    )
    if theirs == ours:
        return []
    return [f"the chat templates differ: {theirs!r} in the policy, {ours!r} in {name}"]
