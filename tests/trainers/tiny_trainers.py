"""Tiny policies, reward models and prompts for the on-policy trainers, and trainers of them.

Plain functions in a module of their own name, so that a test's subprocess can import them too.
"""

import zlib
from collections import Counter

import numpy as np

HIDDEN, WIDTH = 32, 8
"""Hidden size of every model, and the longest completion in tokens."""
NUM_PROMPTS = 32


def word_tokenizer(vocabulary=None):
    """The testbed's word-level tokenizer: 33 words, padding on the left, a chat template."""
    from hf_align.testbed import models

    return models.tokenizer(vocabulary) if vocabulary else models.tokenizer()


def _config(tokenizer, **changes):
    from transformers import LlamaConfig

    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    return LlamaConfig(**settings | changes)


def build(kind, tokenizer, seed, **changes):
    """A random model of a class, from a seed; the global random state stays."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(_config(tokenizer, **changes)).eval()


def build_policy(tokenizer, seed=0, **changes):
    """A random causal Llama in float32."""
    from transformers import LlamaForCausalLM

    return build(LlamaForCausalLM, tokenizer, seed, **changes)


def build_reward(tokenizer, seed=1, **changes):
    """A random Llama that gives a sequence one score."""
    from transformers import LlamaForSequenceClassification

    return build(LlamaForSequenceClassification, tokenizer, seed, num_labels=1, **changes)


def build_prompts(count=NUM_PROMPTS):
    """Distinct prompts of 3 to 6 words."""
    from hf_align.testbed.world import TOPICS

    rng = np.random.default_rng(0)
    found = []
    while len(found) < count:
        topics = rng.choice(TOPICS, size=1 + len(found) % 4, replace=False)
        prompt = f"mention {' '.join(topics)} :"
        if prompt not in found:
            found.append(prompt)
    return found


def fixed_completion(prompt, copy, tokenizer):
    """Ids of a prompt's n-th completion, which depend on nothing else; 1 to 8, most ended."""
    rng = np.random.default_rng([zlib.crc32(str(prompt).encode()), copy])
    ids = rng.integers(8, len(tokenizer), size=rng.integers(1, WIDTH)).tolist()
    return [*ids, tokenizer.eos_token_id] if rng.random() < 0.8 else [*ids, 8][:WIDTH]


def draw_fixed(trainer):
    """Makes a trainer draw `fixed_completion` instead of sampling."""

    def draw(prompts, mode, index):
        tokenizer, seen, ids = trainer._tokenizer, Counter(), []
        for prompt in map(str, prompts):
            ids.append(fixed_completion(prompt, seen[prompt], tokenizer))
            seen[prompt] += 1
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return trainer._tokenized(prompts), ids, texts, None, None

    trainer._draw = draw


def count_topics(prompts, completions, **columns):
    """A reward function: how many of the prompt's words the completion has, minus its length."""
    return [
        len(set(prompt.split()) & set(completion.split())) - 0.1 * len(completion.split())
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def build_trainer(kind, folder, tokenizer, *, policy=None, rewards=None, data=None, **options):
    """A trainer of a few steps; `kind` is "ppo" or "reinforce", options are its configuration's.

    `trainer_options` go to the trainer itself.
    """
    from datasets import Dataset

    from hf_align.trainers.on_policy_config import PPOConfig, ReinforceConfig
    from hf_align.trainers.ppo import PPOTrainer
    from hf_align.trainers.reinforce import ReinforceTrainer

    config, trainer = {
        "ppo": (PPOConfig, PPOTrainer),
        "reinforce": (ReinforceConfig, ReinforceTrainer),
    }[kind]
    named = options.pop("trainer_options", {})
    settings = {
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "max_completion_length": WIDTH,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    made = trainer(
        policy if policy is not None else build_policy(tokenizer),
        rewards if rewards is not None else count_topics,
        config(str(folder), **settings | options),
        data if data is not None else Dataset.from_dict({"prompt": build_prompts()}),
        processing_class=tokenizer,
        **named,
    )
    silence(made)
    return made


def silence(trainer):
    """Takes the callback away that prints each log."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
