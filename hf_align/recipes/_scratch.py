"""A small model and a BPE tokenizer made from the training text, where no weights are at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hf_align.configs import ScratchArguments
from hf_align.types import content_of

_SPECIAL = ["<pad>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
# Each turn is marked by its role, and an assistant's turn ends with EOS; rendering a prompt with
# the generation prompt is a prefix of rendering it with its completion.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<eos>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_from_text(dataset: Any, sizes: ScratchArguments, max_length: int, seed: int) -> tuple:
    """A random Llama-architecture model and a byte-level BPE tokenizer learnt from a dataset's
    text.

    Args:
        dataset: Training split, normalised.
        sizes: Width, layers and vocabulary.
        max_length: Longest sequence that the model must take, in tokens.
        seed: Seed of the weights.

    Returns:
        `(model, tokenizer)`.
    """
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        _texts(dataset), vocab_size=sizes.scratch_vocab_size, special_tokens=_SPECIAL
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=_SPECIAL[2:],
        padding_side="left",
        model_max_length=max_length,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    width = sizes.scratch_hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=sizes.scratch_num_layers,
                num_attention_heads=max(1, width // 32),
                max_position_embeddings=max_length,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        )
    return model, tokenizer


def _texts(dataset: Any) -> Iterator[str]:
    columns = [
        name
        for name in ("text", "messages", "prompt", "completion")
        if name in dataset.column_names
    ]
    for row in dataset:
        for column in columns:
            yield content_of(row[column])
