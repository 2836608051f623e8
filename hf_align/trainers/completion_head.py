"""A forward pass that scores completions: log-probabilities, entropies and values, nothing else.

The usual forward makes logits for every position, prompt and padding included; with a vocabulary of
32,000 that is most of the time and nearly all of the memory of a small model's update. Here the
head runs on the positions whose next token is scored. It goes through `model(...)` itself, so DDP,
FSDP, DeepSpeed and autocast see an ordinary forward.
"""

from __future__ import annotations

import functools
import types
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# Logits of one slice of positions, in elements: 128 MiB of float32 on a CPU, 1 GiB on a GPU.
_SLICE_CPU, _SLICE_GPU = 2**25, 2**28
# Without a gradient a slice costs nothing, and 16 MiB are memory that the process has already got.
_SLICE_CPU_FORWARD = 2**22

Parts = Literal["policy", "value", "both"]


def add_completion_head(model: Any, temperature: float = 1.0) -> None:
    """Teaches a causal language model to score completions.

    Afterwards `model(input_ids=ids, score_mask=mask)` returns `(logps, entropy, values)`, each (M,)
    over the M true entries of `mask` in row-major order, or None where not asked for:

    * `logps`: log softmax(logits / temperature) of that token given what precedes it, in nats;
    * `entropy` (with `with_entropy=True`): of that distribution, in nats, with gradient;
    * `values` (with `parts="value"` or `"both"`): the value of the state before that token, from
      `model.value_head` on the trunk, or from `model.value_model`.

    Sequences are padded on the right, so causal attention needs no mask, positions count from 0,
    and flash kernels apply; `mask` (B, T) is boolean and false in the first column. Called without
    `score_mask` the model is unchanged, `generate` included. Add the head before anything wraps the
    model, or to `get_base_model()` of a PEFT model.

    Args:
        model: A causal language model.
        temperature: Divides the logits.
    """
    original = model.forward
    plain = _head_is_plain(model)

    # Generation checks its arguments against the forward's signature.
    @functools.wraps(type(model).forward)
    def forward(self, *args, score_mask=None, parts="policy", with_entropy=False, **kwargs):
        if score_mask is None:
            return original(*args, **kwargs)
        input_ids = kwargs["input_ids"]
        logps = entropy = values = None
        chosen = score_mask[:, 1:].nonzero(as_tuple=True)  # a mask would be counted at each use
        if parts != "value" or hasattr(self, "value_head"):
            hidden = logits = None
            if plain:
                backbone = self.base_model(input_ids=input_ids, use_cache=False)
                hidden = backbone.last_hidden_state[:, :-1][chosen]
            else:
                output = original(input_ids=input_ids, use_cache=False, output_hidden_states=True)
                hidden = output.hidden_states[-1][:, :-1][chosen]
                logits = output.logits[:, :-1][chosen]
            if parts != "value":
                targets = input_ids[:, 1:][chosen]
                logps, entropy = _score(self, hidden, logits, targets, temperature, with_entropy)
            if parts != "policy" and hasattr(self, "value_head"):
                values = self.value_head(hidden).squeeze(-1).float()
        if parts != "policy" and values is None:
            values = self.value_model(input_ids, chosen)
        return logps, entropy, values

    model.forward = types.MethodType(forward, model)


def _score(
    model: Any,
    hidden: torch.Tensor,
    logits: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float,
    with_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities (M,) of the targets, and entropies; in slices where M·V is large.

    Slices are recomputed in the backward pass, so no more than one of them is ever in memory.
    """

    def from_hidden(part: torch.Tensor, target: torch.Tensor):
        return _logps(_head_logits(model, part), target, temperature, with_entropy)

    if logits is not None:
        return _logps(logits, targets, temperature, with_entropy)
    budget = _SLICE_CPU if torch.is_grad_enabled() else _SLICE_CPU_FORWARD
    budget = _SLICE_GPU if hidden.is_cuda else budget
    rows = max(1, budget // model.config.get_text_config().vocab_size)
    if len(hidden) <= rows:
        return from_hidden(hidden, targets)
    parts = [
        checkpoint(from_hidden, part, target, use_reentrant=False)
        for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    logps = torch.cat([part[0] for part in parts])
    return logps, torch.cat([part[1] for part in parts]) if with_entropy else None


def _logps(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, with_entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    if not with_entropy:
        return -F.cross_entropy(logits, targets, reduction="none"), None
    every = logits.log_softmax(dim=-1)
    entropy = -(every.exp() * every).sum(dim=-1)
    return every.gather(1, targets.unsqueeze(1)).squeeze(1), entropy


def _head_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The logits that the model's own forward would make of its last hidden states."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden)
    scale = _logit_scale(config)
    if scale != 1.0:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _logit_scale(config: Any) -> float:
    """What families multiply their logits by, under the names they give it."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale = getattr(config, name, None)
        if scale is not None:
            return float(scale)
    divisor = getattr(config, "logits_scaling", None)
    return 1.0 if divisor is None else 1.0 / float(divisor)


@torch.no_grad()
def _head_is_plain(model: Any) -> bool:
    """Whether backbone plus head gives the model's own logits, tried on a few tokens.

    Families differ in what they do between the two, and new ones appear; one that does something
    else is scored through its whole forward instead, which is slower and always right.
    """
    if model.get_output_embeddings() is None or model.base_model is model:
        return False
    if any(parameter.numel() == 0 or parameter.is_meta for parameter in model.parameters()):
        return True  # sharded: nothing can be tried here
    config = model.config.get_text_config()
    ids = torch.arange(6, device=model.device).remainder(config.vocab_size).view(2, 3)
    in_training = model.training
    model.eval()
    try:
        # The class's forward: another head may already be bound to the instance.
        expected = type(model).forward(model, input_ids=ids, use_cache=False).logits.float()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        found = _head_logits(model, hidden).float()
    finally:
        model.train(in_training)
    if not torch.isfinite(expected).all():
        return True  # a broken model is told by its first loss
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
    )
