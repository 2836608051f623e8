"""On-policy arithmetic against plain loops in float64, exact enumeration and analytic cases."""

import itertools
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_align.trainers.policy_losses import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    group_advantages,
    is_clipped,
    masked_mean,
    token_kl,
    token_rewards,
    whiten,
)

SEEDS = [0, 1, 2, 3]
seeded = pytest.mark.parametrize("seed", SEEDS)


def normal(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def ragged(seed, rows=9, width=7):
    """Lengths with an empty row, rows of one token and a full one, and their completion mask."""
    rng = random.Random(seed)
    lengths = [0, 1, width, *(rng.randint(0, width) for _ in range(rows - 3))]
    rng.shuffle(lengths)
    mask = torch.tensor([[float(t < length) for t in range(width)] for length in lengths])
    return lengths, mask.double()


def discounted(rewards, values, gamma, lam):
    """One completion's advantages by the definition: sums of discounted TD errors."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    errors = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, n)) for t in range(n)]


@seeded
def test_masked_mean_averages_what_is_kept_and_is_zero_where_nothing_is(seed):
    values = normal(seed, 4, 6)
    mask = (normal(seed + 100, 4, 6) > 0).double()
    kept = [
        values[i, j].item() for i, j in itertools.product(range(4), range(6)) if mask[i, j].item()
    ]
    assert masked_mean(values, mask).item() == pytest.approx(sum(kept) / len(kept), abs=1e-14)
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0


@seeded
def test_kl_estimators_by_their_formulas(seed):
    logps, ref_logps = normal(seed, 5, 4), normal(seed + 1, 5, 4)
    formulas = {
        "k1": lambda d: d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(-d) - 1 + d,
    }
    for name, formula in formulas.items():
        found = token_kl(logps, ref_logps, name)
        for i, j in itertools.product(range(5), range(4)):
            expected = formula(logps[i, j].item() - ref_logps[i, j].item())
            assert found[i, j].item() == pytest.approx(expected, abs=1e-12)
        assert torch.equal(token_kl(logps, logps, name), torch.zeros_like(logps))
    assert (token_kl(logps, ref_logps, "k3") > 0).all()


@seeded
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_of_an_unbiased_estimator_over_every_outcome_is_the_kl(seed, estimator):
    logps = normal(seed, 6).log_softmax(0)
    ref_logps = normal(seed + 50, 6, scale=2.0).log_softmax(0)
    p, q = logps.exp().tolist(), ref_logps.exp().tolist()
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    mean = (logps.exp() * token_kl(logps, ref_logps, estimator)).sum().item()
    assert mean == pytest.approx(kl, abs=1e-12)


def test_k3_keeps_its_precision_where_policies_nearly_agree():
    logps = torch.tensor([-2.0])
    difference = 2.0**-12  # exact in float32 beside 2; exp(-d) - 1 + d would lose every digit
    found = token_kl(logps, logps - difference, "k3").item()
    assert found == pytest.approx(difference**2 / 2, rel=0.02)
    assert found >= 0


@seeded
def test_token_rewards_put_the_penalty_on_tokens_and_the_score_on_the_last(seed):
    lengths, mask = ragged(seed)
    scores, kl = normal(seed, len(lengths)), normal(seed + 1, *mask.shape)
    found = token_rewards(scores, kl, mask, beta=0.3)
    for i, length in enumerate(lengths):
        for t in range(mask.shape[1]):
            expected = -0.3 * kl[i, t].item() if t < length else 0.0
            if t == length - 1:
                expected += scores[i].item()
            assert found[i, t].item() == pytest.approx(expected, abs=1e-14)
    # The sum over a completion is what is optimised: score minus beta times sequence KL.
    whole = [i for i, length in enumerate(lengths) if length]
    expected = scores - 0.3 * (kl * mask).sum(1)
    torch.testing.assert_close(found.sum(1)[whole], expected[whole])


@seeded
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_discounted_sums_of_td_errors(seed, gamma, lam):
    lengths, mask = ragged(seed)
    # What lies behind the mask is noise, and must not be seen.
    rewards, values = normal(seed, *mask.shape), normal(seed + 1, *mask.shape)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam)
    for i, length in enumerate(lengths):
        own = values[i, :length].tolist()
        expected = discounted(rewards[i, :length].tolist(), own, gamma, lam)
        assert advantages[i, :length].tolist() == pytest.approx(expected, abs=1e-12)
        targets = [a + v for a, v in zip(expected, own, strict=True)]
        assert returns[i, :length].tolist() == pytest.approx(targets, abs=1e-12)
        assert advantages[i, length:].abs().sum() == returns[i, length:].abs().sum() == 0


@seeded
def test_with_lambda_one_the_advantage_is_what_is_still_to_come_minus_the_value(seed):
    lengths, mask = ragged(seed)
    rewards, values = normal(seed, *mask.shape), normal(seed + 1, *mask.shape)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    for i, length in enumerate(lengths):
        for t in range(length):
            to_come = rewards[i, t:length].sum().item()
            assert returns[i, t].item() == pytest.approx(to_come, abs=1e-12)
            assert advantages[i, t].item() == pytest.approx(
                to_come - values[i, t].item(), abs=1e-12
            )


@seeded
def test_with_lambda_zero_the_advantage_is_the_td_error(seed):
    lengths, mask = ragged(seed)
    rewards, values = normal(seed, *mask.shape), normal(seed + 1, *mask.shape)
    advantages, _ = generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.0)
    for i, length in enumerate(lengths):
        for t in range(length):
            after = values[i, t + 1].item() if t + 1 < length else 0.0
            expected = rewards[i, t].item() + 0.9 * after - values[i, t].item()
            assert advantages[i, t].item() == pytest.approx(expected, abs=1e-12)


def test_exact_values_leave_no_advantage():
    rewards = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    values = torch.tensor([[1.5, 1.0, 2.0]], dtype=torch.float64)
    for lam in (0.0, 0.5, 1.0):
        advantages, returns = generalized_advantages(rewards, values, torch.ones(1, 3), 1.0, lam)
        torch.testing.assert_close(advantages, torch.zeros_like(values))
        torch.testing.assert_close(returns, values)


@seeded
def test_whitening_gives_mean_zero_and_variance_one(seed):
    values = normal(seed, 40, scale=3.0) + 5
    listed = values.tolist()
    mean = sum(listed) / 40
    variance = sum((v - mean) ** 2 for v in listed) / 40
    found = whiten(values, mean, variance)
    expected = [(v - mean) / math.sqrt(variance + 1e-8) for v in listed]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(whiten(values, torch.tensor(mean), torch.tensor(variance)), found)
    assert found.mean().item() == pytest.approx(0, abs=1e-12)
    assert found.square().mean().item() == pytest.approx(1, abs=1e-8)
    assert torch.equal(whiten(torch.full((3,), 2.0), 2.0, 0.0), torch.zeros(3))


@seeded
def test_group_baselines_by_hand(seed):
    generations, rewards = 4, normal(seed, 12)
    found = {
        name: group_advantages(rewards, generations, name, constant=0.7).tolist()
        for name in ("none", "constant", "mean", "leave_one_out")
    }
    for i, reward in enumerate(rewards.tolist()):
        first = i // generations * generations
        group = rewards[first : first + generations].tolist()
        others = [r for j, r in enumerate(group) if first + j != i]
        assert found["none"][i] == reward
        assert found["constant"][i] == pytest.approx(reward - 0.7)
        assert found["mean"][i] == pytest.approx(reward - sum(group) / 4)
        assert found["leave_one_out"][i] == pytest.approx(reward - sum(others) / 3)
    groups = torch.tensor(found["leave_one_out"]).view(-1, generations)
    assert groups.sum(1).tolist() == pytest.approx([0.0] * 3, abs=1e-6)


@seeded
@pytest.mark.parametrize("generations", [2, 3])
def test_expected_gradients_over_every_group_are_exact_and_the_mean_baselines_shrunk(
    seed, generations
):
    rewards = normal(seed + 9, 3)
    logits = normal(seed, 3).requires_grad_()
    logps = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logps.exp() * rewards).sum(), logits, retain_graph=True)
    shares = {"none": 1, "constant": 1, "leave_one_out": 1, "mean": (generations - 1) / generations}
    for baseline, share in shares.items():
        expected_gradient = torch.zeros(3, dtype=torch.float64)
        for drawn in itertools.product(range(3), repeat=generations):
            drawn = torch.tensor(drawn)
            chance = logps[drawn].sum().exp().detach()
            advantages = group_advantages(rewards[drawn], generations, baseline, constant=0.4)
            loss = clipped_policy_loss(logps[drawn] - logps[drawn].detach(), advantages).mean()
            (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
            expected_gradient -= chance * gradient
        torch.testing.assert_close(expected_gradient, share * exact, rtol=1e-10, atol=1e-12)


@seeded
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.3)])
def test_the_clipped_loss_by_hand(seed, low, high):
    log_ratio, advantages = normal(seed, 200, scale=0.4), normal(seed + 1, 200)
    found = clipped_policy_loss(log_ratio, advantages, low, high).tolist()
    flags = is_clipped(log_ratio, advantages, low, high).tolist()
    for value, flag, d, a in zip(
        found, flags, log_ratio.tolist(), advantages.tolist(), strict=True
    ):
        ratio = math.exp(d)
        nearest = min(max(ratio, 1 - low), 1 + high)
        assert value == pytest.approx(max(-ratio * a, -nearest * a), abs=1e-12)
        assert flag == ((a > 0 and ratio > 1 + high) or (a < 0 and ratio < 1 - low))


@seeded
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.05, 0.4)])
def test_gradients_vanish_exactly_where_clipped_and_are_whole_elsewhere(seed, low, high):
    log_ratio = normal(seed, 500, scale=0.4).requires_grad_()
    advantages = normal(seed + 1, 500)
    (gradient,) = torch.autograd.grad(
        clipped_policy_loss(log_ratio, advantages, low, high).sum(), log_ratio
    )
    flags = is_clipped(log_ratio.detach(), advantages, low, high)
    assert 50 < flags.sum() < 450
    assert torch.equal(gradient == 0, flags)
    whole = -advantages * log_ratio.detach().exp()
    torch.testing.assert_close(gradient[~flags], whole[~flags])


@seeded
def test_at_ratio_one_the_gradient_is_the_policy_gradient(seed):
    logits = normal(seed, 12, 5).requires_grad_()
    drawn = torch.randint(5, (12, 1), generator=torch.Generator().manual_seed(seed))
    advantages = normal(seed + 1, 12)
    logps = logits.log_softmax(-1).gather(1, drawn).squeeze(1)
    loss = clipped_policy_loss(logps - logps.detach(), advantages).sum()
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(advantages * logps).sum(), logits)
    torch.testing.assert_close(found, expected)


@seeded
def test_the_clipped_value_loss_by_hand(seed):
    values, old, returns = normal(seed, 200), normal(seed + 1, 200), normal(seed + 2, 200)
    clipped = clipped_value_loss(values, old, returns, 0.3).tolist()
    plain = clipped_value_loss(values, old, returns, None).tolist()
    for i, (v, o, r) in enumerate(
        zip(values.tolist(), old.tolist(), returns.tolist(), strict=True)
    ):
        near = min(max(v, o - 0.3), o + 0.3)
        assert clipped[i] == pytest.approx(0.5 * max((v - r) ** 2, (near - r) ** 2), abs=1e-12)
        assert plain[i] == pytest.approx(0.5 * (v - r) ** 2, abs=1e-12)


@seeded
@pytest.mark.parametrize("moved", [0.0, 0.19])
def test_the_value_clip_does_nothing_at_the_old_values_or_near_them(seed, moved):
    values, returns = normal(seed, 50).requires_grad_(), normal(seed + 1, 50)
    old = values.detach() - moved * normal(seed + 2, 50).sign()
    losses = [clipped_value_loss(values, old, returns, clip) for clip in (0.2, None)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), values)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[1], (values - returns).detach())


@seeded
def test_explained_variance_by_hand_and_at_its_landmarks(seed):
    returns, values = normal(seed, 30), normal(seed + 1, 30)

    def variance(numbers):
        mean = sum(numbers) / len(numbers)
        return sum((x - mean) ** 2 for x in numbers) / len(numbers)

    left = [r - v for r, v in zip(returns.tolist(), values.tolist(), strict=True)]
    expected = 1 - variance(left) / variance(returns.tolist())
    assert explained_variance(returns, values).item() == pytest.approx(expected, abs=1e-12)
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(returns, torch.full_like(returns, 3.0)).item() == pytest.approx(0.0)
    assert explained_variance(returns, -returns).item() == pytest.approx(-3.0)


@pytest.mark.parametrize("size", [1, 2, 7, 97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_explained_variance_of_returns_that_do_not_vary_is_nan(size, dtype):
    values = torch.arange(size, dtype=dtype)
    for constant in (0.0, 0.1, -300.0):
        returns = torch.full((size,), constant, dtype=dtype)
        assert torch.isnan(explained_variance(returns, values))
    # Advantages plus values of a constant return, as they round.
    returns = (0.1 - values / 7) + values / 7
    assert torch.isnan(explained_variance(returns, values))
    if size > 1:
        varying = torch.full((size,), 0.1, dtype=dtype)
        varying[0] += 1e-3
        assert torch.isfinite(explained_variance(varying, values))


@pytest.mark.slow
def test_parity_with_an_update_of_trls_last_ppo():
    peer = os.environ.get("HF_ALIGN_TRL112_PYTHON")
    if not peer:
        pytest.skip("HF_ALIGN_TRL112_PYTHON does not name an interpreter with trl 1.12")
    script = Path(__file__).parents[1] / "benchmarks" / "ppo_parity.py"
    command = [sys.executable, str(script), "--peer", peer]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
