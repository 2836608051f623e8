"""Draws completions from softmax(logits / temperature), with the log-probability of every token.

The plain loop that on-policy training needs, without processors, beams or settings: prompts that
repeat are read once, keys and values are written in place, and a row leaves the batch with its end
token. Whatever the loop cannot do exactly (`can_draw`), `generate` of `transformers` can.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, LoraModel, PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hf_align.sampling.picking import pick
from hf_align.sampling.reading import Reader
from hf_align.types import InputError

UNIFORMS = 64
"""Steps whose random numbers are drawn at once."""
SYNC_STEPS = 8
"""Steps between looks at which rows have ended, on an accelerator, which each look waits for."""


@dataclass(frozen=True)
class Drawn:
    """N completions, and what the model said of them while they were drawn.

    Attributes:
        completion_ids: Token ids of each, the end token included where it was reached.
        logps: Per completion the log-probabilities of its tokens under softmax(logits /
            temperature), in nats, float32, on the model's device; None unless asked for.
        values: Per completion the value head's outputs, each at the state before its token was
            drawn, float32, on the model's device; None without a value head.
    """

    completion_ids: list[list[int]]
    logps: list[Tensor] | None
    values: list[Tensor] | None


def can_draw(model: nn.Module, max_length: int | None = None) -> bool:
    """Whether `draw` samples from this model's own distribution; where not, use `generate`.

    It does for decoders of `transformers` whose layers all keep one key and one value per token,
    under the `sdpa` and `eager` attention, bare or with LoRA. It does not for recurrent, hybrid and
    multimodal models, encoders, ALiBi, other adapters, or models that some engine wraps. A sliding
    window does no harm where nothing leaves it.

    Args:
        model: Any model.
        max_length: Longest prompt plus `max_new_tokens`; without it, a model with a sliding window
            is refused.
    """
    if isinstance(model, PeftModel):
        # aLoRA looks for the words that invoke it, in whole prompts.
        invoked = any(a.alora_invocation_tokens for a in _lora_configs(model))
        if invoked or not isinstance(model.base_model, LoraModel):
            return False
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel) or not model.can_generate() or model._is_stateful:
        return False
    config = model.config
    needed = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
    # BERT and its kin look ahead unless told to decode (GPT-NeoX has the flag and never asks it).
    looks_ahead = not getattr(config, "is_decoder", True) and "add_cross_attention" in vars(config)
    # ALiBi takes its biases from a flat mask, whatever the positions.
    if (
        config.is_encoder_decoder
        or config.sub_configs
        or looks_ahead
        or config._attn_implementation not in ("sdpa", "eager")
        or not needed <= inspect.signature(model.forward).parameters.keys()
        or getattr(config, "alibi", False)
        or getattr(config, "cross_attention_layers", None)
    ):
        return False
    layers = DynamicCache(config=config).layers
    # Fewer where layers share what they keep.
    if len(layers) != config.get_text_config(decoder=True).num_hidden_layers:
        return False
    windows = [layer.sliding_window for layer in layers if type(layer) is DynamicSlidingWindowLayer]
    plain = sum(type(layer) is DynamicLayer for layer in layers)
    if plain + len(windows) < len(layers):
        return False
    return not windows or (max_length is not None and max_length <= min(windows))


def draw(
    model: nn.Module,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    end_ids: list[int],
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    num_samples: int = 1,
    with_logps: bool = True,
    value_head: nn.Module | None = None,
) -> Drawn:
    """Draws `num_samples` completions per prompt; those of one prompt are neighbours.

    The model runs in evaluation mode and without gradients; its training mode, its generation
    settings and the global random state are as before on return. Equal generators give equal
    completions for an equal `batch_size`.

    Args:
        model: One that `can_draw` accepts.
        prompt_ids: Tokens of G prompts.
        max_new_tokens: Longest completion in tokens, the end token included.
        temperature: Divides the logits; above 0.
        end_ids: Tokens that end a completion.
        generator: Source of randomness; a fresh one, randomly seeded, where None.
        batch_size: Completions drawn at a time; all at once where None.
        num_samples: Completions per prompt.
        with_logps: Whether to return log-probabilities.
        value_head: Maps the states that the model's head sees, (T, H), to values (T, 1).

    Returns:
        N = G · num_samples completions.

    Raises:
        InputError: On a prompt without tokens or a number out of range.
        FloatingPointError: Where the model's logits were not finite.
    """
    _check(prompt_ids, max_new_tokens, temperature, batch_size, num_samples)
    # What a PEFT model adds to the call of the model inside it is what `can_draw` refuses.
    core = model.get_base_model() if isinstance(model, PeftModel) else model
    if generator is None:
        generator = torch.Generator(core.device)
        generator.seed()
    settings = _Settings(max_new_tokens, temperature, frozenset(end_ids), generator)
    prompts = [ids for ids in prompt_ids for _ in range(num_samples)]
    # Equal prompts end up side by side, to be read once.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
    size = batch_size or max(1, len(order))
    columns: tuple[list, ...] = tuple([None] * len(prompts) for _ in range(3))
    with torch.no_grad(), _evaluation(core), _head_inputs(core, value_head is not None) as seen:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            # A tenth of a small model's time goes into what only gradients need.
            with torch.inference_mode():
                record = _decode(core, [prompts[i] for i in batch], settings, seen)
            for column, part in zip(columns, record.by_row(value_head), strict=True):
                for i, row in zip(batch, part, strict=True):
                    column[i] = row
    ids, logps, values = columns
    return Drawn(ids, logps if with_logps else None, values if value_head is not None else None)


@dataclass(frozen=True)
class _Settings:
    max_new_tokens: int
    temperature: float
    end_ids: frozenset[int]
    generator: torch.Generator


def _check(
    prompt_ids: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    batch_size: int | None,
    num_samples: int,
) -> None:
    for i, ids in enumerate(prompt_ids):
        if not ids:
            raise InputError(f"prompt {i} has no tokens; give a non-empty prompt")
    counts = {
        "max_new_tokens": max_new_tokens,
        "num_samples": num_samples,
        "batch_size": batch_size,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; give at least 1")
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; give a number above 0")


def _lora_configs(model: PeftModel) -> list:
    return [config for config in model.peft_config.values() if isinstance(config, LoraConfig)]


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: no dropout, and no checkpointing, which turns the cache off."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _head_inputs(model: nn.Module, wanted: bool) -> Iterator[list[Tensor] | None]:
    """A list to which each call of the model adds the states (B, 1, H) that its head saw."""
    if not wanted:
        yield None
        return
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    try:
        yield seen
    finally:
        hook.remove()


class _Record:
    """What was drawn, step by step, and how long each of the B rows got."""

    def __init__(self, num_rows: int, settings: _Settings) -> None:
        self.lengths = np.full(num_rows, settings.max_new_tokens)
        self.end_ids = settings.end_ids
        self.rows: list[list[int]] = []
        self.tokens: list[Tensor] = []
        self.logps: list[Tensor] = []
        self.states: list[Tensor] = []
        self.looked = 0

    def add(self, rows: list[int], tokens: Tensor, logps: Tensor, states: Tensor | None) -> None:
        """One step: of K rows the tokens (K, 1), log-probabilities (K,) and states (K, H)."""
        self.rows.append(rows)
        self.tokens.append(tokens)
        self.logps.append(logps)
        if states is not None:
            self.states.append(states)

    def alive(self) -> list[int]:
        """Slots of the last step's rows that have not ended, from the steps not yet looked at."""
        drawn = torch.cat(self.tokens[self.looked :], 1).tolist()
        alive = [slot for slot, tokens in enumerate(drawn) if self.end_ids.isdisjoint(tokens)]
        for slot in set(range(len(drawn))).difference(alive):
            steps = next(n for n, token in enumerate(drawn[slot], 1) if token in self.end_ids)
            self.lengths[self.rows[-1][slot]] = self.looked + steps
        self.looked = len(self.tokens)
        return alive

    def by_row(self, value_head: nn.Module | None) -> tuple[list, list, list]:
        """Tokens, log-probabilities and values of each row, without what followed its end."""
        rows = np.concatenate(self.rows)
        steps = np.repeat(np.arange(len(self.rows)), [len(rows) for rows in self.rows])
        kept = np.flatnonzero(steps < self.lengths[rows])
        order = torch.from_numpy(kept[np.argsort(rows[kept], kind="stable")])
        order, counts = order.to(self.tokens[0].device), self.lengths.tolist()
        logps = torch.cat(self.logps)[order]
        if not torch.isfinite(logps).all():
            raise FloatingPointError("the model's logits are not finite: nothing to sample from")
        flat, ends = torch.cat(self.tokens)[order, 0].tolist(), np.cumsum(counts).tolist()
        ids = [flat[end - count : end] for count, end in zip(counts, ends, strict=True)]
        values: list = [None] * len(ids)
        if value_head is not None:
            values = list(value_head(torch.cat(self.states)[order])[:, 0].float().split(counts))
        return ids, list(logps.split(counts)), values


def _decode(
    model: PreTrainedModel,
    prompts: list[list[int]],
    settings: _Settings,
    seen: list[Tensor] | None,
) -> _Record:
    """Draws a completion for each of B prompts, sorted by length, equal ones side by side."""
    device, last, temperature = model.device, settings.max_new_tokens, settings.temperature
    look_every = _look_every(device)
    record, rows = _Record(len(prompts), settings), list(range(len(prompts)))
    reader = Reader(model, prompts, last, seen)
    logits = reader.read_prompts()
    for step in range(last):
        if step % UNIFORMS == 0:
            # For all rows: what one draws does not depend on which others have ended.
            shape = (min(UNIFORMS, last - step), len(prompts), 2)
            uniforms = _uniforms(shape, settings.generator)[:, rows].to(device)
        logits = logits if temperature == 1.0 else logits.float() / temperature
        tokens, logps = pick(logits, uniforms[step % UNIFORMS])
        record.add(rows, tokens, logps, reader.states)
        if step + 1 == last or (step + 1) % look_every == 0:
            alive = record.alive()
            if step + 1 == last or not alive:
                break
            if len(alive) < len(rows):
                slots = reader.keep(alive)
                index = torch.tensor(slots, device=device)
                rows = [rows[slot] for slot in slots]
                tokens, uniforms = tokens[index], uniforms[:, index]
        logits = reader.read(tokens)
    return record


def _look_every(device: torch.device) -> int:
    return 1 if device.type == "cpu" else SYNC_STEPS


def _uniforms(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, device=generator.device, generator=generator)
