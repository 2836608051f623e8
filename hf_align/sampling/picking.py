"""Draws one token per row from softmax(logits), at the cost of little more than the softmax."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
"""Vocabularies of more than 8 blocks are searched block by block."""


def pick(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one token per row from softmax(logits) by inverting its distribution function.

    Needs no random number per token of the vocabulary, as `torch.multinomial` and Gumbel noise do.
    A large vocabulary is searched in two stages, a block by the blocks' sums and a token within it,
    so that only the softmax and the sums go through all of it. The cumulative sums are in float64,
    and u · total < total: no token of probability 0 is drawn, and none out of range.

    Args:
        logits: (B, V).
        uniforms: (B, 2) float64 in [0, 1), one per stage.

    Returns:
        Tokens (B, 1), and their log-probabilities (B,) in nats, float32.
    """
    probabilities = torch.softmax(logits, -1, dtype=torch.float32)
    size = probabilities.shape[1]
    if size <= 8 * BLOCK:
        tokens = _inverted(probabilities, uniforms[:, :1])
    else:
        whole = size - size % BLOCK
        sums = probabilities[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
        if whole < size:
            sums = torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True)], 1)
        first = _inverted(sums, uniforms[:, :1]) * BLOCK
        columns = first + torch.arange(BLOCK, device=logits.device)
        block = probabilities.gather(1, columns.clamp(max=size - 1))
        tokens = first + _inverted(block.masked_fill_(columns >= size, 0.0), uniforms[:, 1:])
    return tokens, probabilities.gather(1, tokens).log_()[:, 0]


def _inverted(weights: Tensor, uniforms: Tensor) -> Tensor:
    """(B, 1) index of the first cumulative weight above u · total, of weights (B, K)."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    index = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # Out of range only where weights are no numbers, which `_Record.by_row` refuses.
    return index.clamp_(max=weights.shape[1] - 1)
