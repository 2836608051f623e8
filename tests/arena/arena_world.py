"""Tiny models for arenas, and the way to the loopback Hub, which this module opens."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

from small_models import save_adapter


def seeded_adapter(folder, base, name, revision=None, seed=0, targets=None):
    """As `save_adapter`, the same one each time; on other layers where they are named."""
    import peft
    import torch

    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patched:
        torch.manual_seed(seed)
        if targets is not None:
            make = peft.LoraConfig
            patched.setattr(
                peft, "LoraConfig", lambda **own: make(**own | {"target_modules": targets})
            )
        return save_adapter(folder, base, name, revision)


def save_reward(folder, tokenizer):
    """A tiny random reward model."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
            pad_token_id=0,
            initializer_range=0.5,
        )
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
