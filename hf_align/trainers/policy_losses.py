"""The arithmetic of on-policy training: token rewards, advantages, baselines, clipped losses.

Pure functions of tensors. Completions are rows of `(B, T)`, right-padded, with a `completion_mask`
that is 1 on tokens that count; log-probabilities are in nats.
"""

from __future__ import annotations

from typing import Literal

import torch

KlEstimator = Literal["k1", "k2", "k3"]
Baseline = Literal["none", "constant", "mean", "leave_one_out"]


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of `values` where `mask` is 1, a scalar; 0 where nothing is kept."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def token_kl(
    logps: torch.Tensor, ref_logps: torch.Tensor, estimator: KlEstimator = "k1"
) -> torch.Tensor:
    """One-sample estimates of KL(π‖π_ref) at each token, in nats, in the shape of `logps`.

    With d = log π − log π_ref of the sampled token: k1 = d, unbiased and signed; k2 = d²/2, biased;
    k3 = e^(−d) − 1 + d, unbiased and never negative, with a variance that explodes far from the
    reference (http://joschu.net/blog/kl-approx.html).
    """
    difference = logps - ref_logps
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    return torch.expm1(-difference) + difference


def token_rewards(
    shaped_scores: torch.Tensor,
    kl: torch.Tensor,
    completion_mask: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """The reward of each token, (B, T): −β·KL_t, and the shaped score on the last kept token.

    The last token is the end token where it was reached
    (https://huggingface.co/papers/1909.08593, section 2.1). Rows without a kept token get no score.

    Args:
        shaped_scores: (B,).
        kl: (B, T) one-sample KL per token.
        completion_mask: (B, T), 1 = keep, contiguous from the first column.
        beta: Coefficient of the penalty.
    """
    rewards = -beta * kl * completion_mask
    lengths = completion_mask.sum(dim=1).long()
    rows = torch.arange(len(lengths), device=kl.device)[lengths > 0]
    rewards[rows, lengths[rows] - 1] += shaped_scores.to(rewards.dtype)[rows]
    return rewards


def generalized_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor,
    completion_mask: torch.Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages by GAE(γ, λ), and the returns that the value model is fitted to, both (B, T).

    δ_t = r_t + γ·V_{t+1} − V_t and A_t = δ_t + γλ·A_{t+1}, with V = 0 after the last kept token;
    returns are A + V (https://huggingface.co/papers/1506.02438). `values[:, t]` is the value of the
    state before token t.
    """
    mask = completion_mask.to(values.dtype)
    values = values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = (rewards + gamma * following - values) * mask
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages * mask, (advantages + values) * mask


def whiten(
    values: torch.Tensor, mean: torch.Tensor | float, variance: torch.Tensor | float
) -> torch.Tensor:
    """(values − mean) / sd; the moments are given, because several processes share them."""
    return (values - mean) * torch.rsqrt(torch.as_tensor(variance, dtype=values.dtype) + 1e-8)


def group_advantages(
    rewards: torch.Tensor,
    num_generations: int,
    baseline: Baseline,
    constant: float = 0.0,
) -> torch.Tensor:
    """The reward of each completion over a baseline, (N,); completions of a prompt are consecutive.

    `none` keeps the reward; `constant` subtracts one number; `mean` the mean of the prompt's G
    completions, which shrinks the expected gradient by (G − 1)/G; `leave_one_out` the mean of the
    prompt's other completions, which leaves it unbiased
    (https://huggingface.co/papers/2402.14740).
    """
    if baseline == "none":
        return rewards
    if baseline == "constant":
        return rewards - constant
    groups = rewards.view(-1, num_generations)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if baseline == "leave_one_out":
        advantages = advantages * (num_generations / (num_generations - 1))
    return advantages.reshape(-1)


def clipped_policy_loss(
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> torch.Tensor:
    """PPO's objective at each entry, negated: −min(ρA, clip(ρ, 1 − low, 1 + high)·A), ρ = e^ratio.

    At ρ = 1 its gradient is the policy gradient −A·∇log π
    (https://huggingface.co/papers/1707.06347).
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def is_clipped(
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> torch.Tensor:
    """Where the clipped objective has no gradient: the ratio has left the range on A's side."""
    ratio = log_ratio.exp()
    low = (ratio < 1.0 - clip_low) & (advantages < 0)
    return low | ((ratio > 1.0 + clip_high) & (advantages > 0))


def clipped_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    value_clip: float | None = 0.2,
) -> torch.Tensor:
    """½·max((V − R)², (clip(V, V_old ± c) − R)²) at each entry; without `value_clip` ½(V − R)².

    The clip is in units of the return, so it presumes rewards of unit scale.
    """
    squared = (values - returns).square()
    if value_clip is not None:
        near = old_values + (values - old_values).clamp(-value_clip, value_clip)
        squared = torch.maximum(squared, (near - returns).square())
    return 0.5 * squared


def explained_variance(returns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """1 − Var(R − V) / Var(R) over 1-D inputs; 1 is a perfect value model, below 0 a harmful one.

    NaN where the returns do not vary.
    """
    variance = returns.var(unbiased=False)
    unexplained = (returns - values).var(unbiased=False)
    # Equal returns differ by rounding, and their computed variance is not quite 0 either.
    largest = torch.maximum(returns.abs().max(), values.abs().max())
    varies = returns.max() - returns.min() > 8 * torch.finfo(returns.dtype).eps * largest
    return torch.where(varies, 1.0 - unexplained / variance, torch.nan)
