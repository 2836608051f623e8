"""Losses of reward models on comparisons and rankings, as pure functions of the scores.

All use the Bradley–Terry view of a score, P(a ≻ b) = σ(s_a − s_b), so each is unchanged when all
scores of a prompt move by a constant. Ranks are integers, 1 = best, equal for a tie.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pairwise_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """Bradley–Terry negative log-likelihood: mean over pairs of −log σ(s_chosen − s_rejected − m).

    The margin m asks for a larger difference where the preference is stronger (Llama 2, eq. 2,
    https://arxiv.org/abs/2307.09288); without it this is the loss of Stiennon et al. 2020,
    https://arxiv.org/abs/2009.01325.

    Args:
        chosen: Scores of the preferred completions, (B,).
        rejected: Scores of the others, (B,).
        margin: (B,), in units of the score.

    Returns:
        Scalar, in nats.
    """
    difference = chosen - rejected
    if margin is not None:
        difference = difference - margin
    return functional.softplus(-difference).mean()


def kwise_loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """All pairs of a prompt's ranking at once, each completion scored once (InstructGPT, eq. 1).

    For a prompt with K completions, with i ≻ j where rank_i < rank_j,

        loss = 1 / C(K, 2) · Σ_{i ≻ j} −log σ(s_i − s_j),

    averaged over the B prompts of the batch. Ties are skipped and the weight stays 1 / C(K, 2), so
    a prompt counts by the share of its pairs that were decided; one whose completions are all tied
    contributes 0. K = 2 is `pairwise_loss`. Ouyang et al. 2022, https://arxiv.org/abs/2203.02155

    Args:
        scores: (B, K); what stands where the mask is 0 has no effect.
        ranks: (B, K) integers, 1 = best.
        mask: (B, K), 1 = a completion, 0 = padding.

    Returns:
        Scalar, in nats.
    """
    better = strict_pairs(ranks, mask)
    losses = functional.softplus(_differences(scores, mask).neg()) * better
    return (losses.sum(dim=(1, 2)) / num_pairs(mask)).mean()


def plackett_luce_loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of a ranking as successive choices of the best of those left.

        loss = −1 / (K − 1) · Σ_i log( e^{s_i} / (e^{s_i} + Σ_{j: rank_j > rank_i} e^{s_j}) ),

    averaged over the B prompts. Without ties this is the Plackett–Luce likelihood; the last choice,
    of one out of one, is free, so the weight makes it a mean over the K − 1 real ones, and K = 2 is
    `pairwise_loss`. Tied completions do not compete with each other: each is chosen against what
    ranks strictly below it, so the loss says nothing of their order, and a prompt whose completions
    are all tied contributes 0. Plackett 1975, https://doi.org/10.2307/2346567; for preferences
    Rafailov et al. 2023, appendix A.3, https://arxiv.org/abs/2305.18290

    Args:
        scores: (B, K); what stands where the mask is 0 has no effect.
        ranks: (B, K) integers, 1 = best.
        mask: (B, K), 1 = a completion, 0 = padding.

    Returns:
        Scalar, in nats.
    """
    # log of the ratio is −logsumexp over the rivals and i itself of (s_j − s_i), which is at 0.
    rivals = strict_pairs(ranks, mask) | torch.eye(
        mask.shape[1], dtype=torch.bool, device=mask.device
    )
    behind = _differences(scores, mask).neg().masked_fill(~rivals, float("-inf"))
    losses = torch.logsumexp(behind, dim=2).sum(dim=1)
    choices = (mask.sum(dim=1) - 1).clamp(min=1)
    return (losses / choices).mean()


def centering_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """Mean over a prompt's pairs of (s_i + s_j)², then over prompts: pulls scores towards 0.

    On pairs this is what TRL multiplies by `center_rewards_coefficient`. Eisenstein et al. 2023,
    eq. 2, https://arxiv.org/abs/2312.09244

    Args:
        scores: (B, K); what stands where the mask is 0 has no effect.
        mask: (B, K), 1 = a completion, 0 = padding.

    Returns:
        Scalar, in squared units of the score.
    """
    kept = mask.bool()
    scores = scores.masked_fill(~kept, 0.0)
    both = (kept[:, :, None] & kept[:, None, :]).triu(diagonal=1)
    sums = (scores[:, :, None] + scores[:, None, :]) ** 2 * both
    return (sums.sum(dim=(1, 2)) / num_pairs(mask)).mean()


def strict_pairs(ranks: Tensor, mask: Tensor) -> Tensor:
    """Whether completion i ranks strictly above completion j, both real: (B, K, K), boolean."""
    kept = mask.bool()
    above = ranks[:, :, None] < ranks[:, None, :]
    return above & kept[:, :, None] & kept[:, None, :]


def num_pairs(mask: Tensor) -> Tensor:
    """C(K, 2) of each prompt, ties included, (B,); 1 where there is no pair, for division."""
    count = mask.sum(dim=1)
    return (count * (count - 1) // 2).clamp(min=1)


def _differences(scores: Tensor, mask: Tensor) -> Tensor:
    """s_i − s_j, (B, K, K); padding counts as score 0, so that no garbage in it becomes NaN."""
    scores = scores.masked_fill(~mask.bool(), 0.0)
    return scores[:, :, None] - scores[:, None, :]
