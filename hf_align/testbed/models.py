"""The tokenizer of "Brief", its tiny Llama policies, and how they are trained and sampled.

The tokenizer is word-level, so a token is a word one can read; the models have the standard Llama
architecture, so everything made for Llama runs on them. torch and transformers are imported inside
the functions: importing this module stays cheap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_align.testbed.world import (
    EOS,
    FILLERS,
    MAX_NEW_TOKENS,
    PAD,
    POLITE,
    PROMPT_WORDS,
    ROLE_MARKERS,
    TOPICS,
    UNK,
    WORD_PATTERN,
    WorldSpec,
)
from hf_align.types import InputError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from hf_align.testbed.translation import TranslationSpec

MAX_LENGTH = 128
VOCABULARY = (PAD, EOS, UNK, *ROLE_MARKERS, *PROMPT_WORDS, *TOPICS, *FILLERS, POLITE)

SIZES = {
    "small": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2},
    "medium": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3},
}
"""0.10 and 0.34 million parameters."""

# Llama's 0.02 suits widths in the thousands. At these widths copying is then learnt only after
# hundreds of steps: gold after 300 steps of 256 was 0.83, against 1.67 with 0.1 (and 0.15 was too
# much); 0.07 was the best of the values tried.
INITIALIZER_RANGE = 0.07

# No space around the markers, so that a rendered prompt is a prefix of the rendered conversation as
# text and as tokens, and the assistant mask starts on a word.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<assistant>' -}}"
    "{%- generation -%}{{- message['content'] | trim + eos_token -}}{%- endgeneration -%}"
    "{%- elif message['role'] in ['system', 'user'] -%}"
    "{{- '<' + message['role'] + '>' + message['content'] | trim -}}"
    "{%- else -%}"
    "{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}"
)


def tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> PreTrainedTokenizerFast:
    """A word-level tokenizer, built in memory: one token per word, 33 of them in "Brief".

    Text splits at spaces and around each sign, so `prompt + completion` and
    `prompt + " " + completion` give the same tokens. Decoding joins by spaces, which restores any
    text of the world. Role markers are ordinary words: a policy that writes one is seen to. Padding
    goes to the left, as generation needs.

    Args:
        vocabulary: The words in the order of their ids; the special words and role markers first,
            as in `VOCABULARY`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(vocabulary)}
    backend = Tokenizer(WordLevel(words, unk_token=UNK))
    # Signs stand alone: a completion that starts with ":" must not merge with the prompt's last.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
        ]
    )
    backend.add_tokens([AddedToken(marker, normalized=False) for marker in ROLE_MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llama(
    tokenizer: PreTrainedTokenizerFast, size: str = "small", seed: int = 0
) -> LlamaForCausalLM:
    """An untrained Llama over the tokenizer's vocabulary, in float32, without dropout.

    Embeddings are tied: what attention copies from the prompt is then already an output word.
    `generate` samples from the model's own distribution (no top-k, no top-p) up to 26 tokens.
    PyTorch's random state is left as it was.

    Args:
        size: "small" (d = 64, 2 layers) or "medium" (d = 96, 3 layers); both have 4 heads.
        seed: Seeds the initial weights.

    Raises:
        InputError: There is no such size.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    if size not in SIZES:
        raise InputError(f"size is {size!r}; choose one of {', '.join(SIZES)}")
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        **SIZES[size],
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=MAX_NEW_TOKENS, **special
    )
    return model


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread: more are slower at these sizes, and may sum in another order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train_policy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    completions: Sequence[str],
    spec: WorldSpec | TranslationSpec,
    advance: Callable[[], None],
) -> None:
    """Fine-tune `model` in place on demonstrations: mean NLL per completion token, EOS included.

    AdamW without weight decay, 5 % linear warm-up, then cosine to zero; gradients clipped at norm
    1. Each batch is cut by length into two, so that short rows are not padded to the longest, and
    stepped once: the update is that of the whole batch.

    Args:
        prompts: (num_demonstrations,)
        completions: Without EOS, (num_demonstrations,).
        spec: Steps, batch size, learning rate, share in chat format and seed.
        advance: Called after each step.
    """
    import torch

    ids, labels, lengths = _encode(tokenizer, prompts, completions, spec.chat_every)
    rng = np.random.default_rng([spec.seed, 1])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    warmup = max(1, round(0.05 * spec.train_steps))
    model.train()
    order = np.empty(0, dtype=int)
    for step in range(spec.train_steps):
        while len(order) < spec.batch_size:
            order = np.concatenate([order, rng.permutation(len(ids))])
        batch, order = order[: spec.batch_size], order[spec.batch_size :]
        batch = batch[np.argsort(lengths[batch], kind="stable")]
        num_tokens = (labels[batch] != -100).sum()
        for rows in np.array_split(batch, 2):
            width = lengths[rows].max(initial=2)
            logits = model(input_ids=ids[rows, :width], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[rows, 1:width].flatten(), reduction="sum"
            )
            (loss / num_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * step / spec.train_steps))
        optimizer.param_groups[0]["lr"] = spec.learning_rate * min(1, (step + 1) / warmup) * cosine
        optimizer.step()
        optimizer.zero_grad()
        advance()
    model.eval()


def save_policy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer so that plain `from_pretrained(folder)` loads them."""
    with _no_progress_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_policy(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model and the tokenizer saved in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(folder)
    return model, AutoTokenizer.from_pretrained(folder)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers' own bars, one per file, out of the testbed's bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _encode(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    completions: Sequence[str],
    chat_every: int,
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Token ids and labels (−100 outside the completion), padded right, (N, T); lengths (N,)."""
    import torch

    contexts, texts = [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        context = f"<user>{prompt}<assistant>" if row % chat_every == 0 else prompt
        contexts.append(context)
        texts.append(context + completion + EOS)
    starts = [len(row) for row in tokenizer(contexts)["input_ids"]]
    rows = tokenizer(texts)["input_ids"]
    lengths = np.array([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, start : len(row)] = ids[index, start : len(row)]
    return ids, labels, lengths


def sample_completions(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    seed: int,
    batch_size: int = 512,
    advance: Callable[[], None] = lambda: None,
) -> list[str]:
    """One completion per plain-text prompt, sampled at temperature 1 from the full distribution.

    At most 26 tokens, EOS included and not shown. PyTorch's random state is left as it was.

    Args:
        prompts: (B,)
        seed: Seeds the samples; the same seed, prompts and batch size give the same completions.
        advance: Called after each batch.
    """
    import torch

    completions = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            batch = tokenizer(
                list(prompts[start : start + batch_size]), padding=True, return_tensors="pt"
            )
            output = model.generate(
                **batch.to(model.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_NEW_TOKENS,
            )
            new_tokens = output[:, batch["input_ids"].shape[1] :]
            completions += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
            advance()
    return completions
