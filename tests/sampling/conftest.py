"""A world of 40 words: a word-level tokenizer and random Llamas, built in memory."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    words = ["<pad>", "<eos>", "<user>", "<assistant>", *(f"w{i}" for i in range(36))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    built = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="right"
    )
    built.chat_template = TEMPLATE
    return built


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """Builds a random model from a seed; a larger `scale` makes its distributions sharper."""

    def build(seed: int, *, scale: float = 0.3, hidden_size: int = 32, num_layers: int = 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=4,
                max_position_embeddings=128,
                initializer_range=scale,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
            )
            return LlamaForCausalLM(config).eval()

    return build
