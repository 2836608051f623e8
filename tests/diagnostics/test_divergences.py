"""Chi-square with its refusal, the certificate, entropy and reference NLL, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.diagnostics.best_of_n import best_of_n_chi_square
from hf_align.diagnostics.divergences import (
    chi_square,
    chi_square_certificate,
    reference_nll,
    token_entropy,
)
from hf_align.diagnostics.kl import k1, rao_blackwell


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_a_discrete_policy_has_its_chi_square():
    """pi = (.75, .25) against (.5, .5), sampled in exact proportion: .75^2/.5 + .25^2/.5 - 1."""
    log_ratios = np.log([1.5, 1.5, 1.5, 0.5] * 50)
    result = chi_square(log_ratios, np.arange(200) // 4)
    assert result.meaningful
    assert result.value.value == pytest.approx(0.25)
    assert result.effective_share.value == pytest.approx(0.8)
    assert result.largest_weight == pytest.approx(1.5 / 250)


def test_best_of_n_by_its_own_ratio():
    """The winner's quantile F has density n F^(n-1): its mean less 1 is n^2/(2n-1) - 1."""
    n, rng = 4, np.random.default_rng(0)
    quantile = rng.random(200_000) ** (1 / n)
    log_ratios = math.log(n) + (n - 1) * np.log(quantile)
    result = chi_square(log_ratios, np.arange(200_000) // 4)
    assert result.value.value == pytest.approx(best_of_n_chi_square(n), abs=0.02)
    assert result.value.low < best_of_n_chi_square(n) < result.value.high
    assert result.effective_share.low < 7 / 16 < result.effective_share.high


def test_equal_policies_have_none():
    result = chi_square(np.zeros(100), np.arange(100))
    assert result.value.value == 0 and result.effective_share.value == 1


def test_one_weight_over_a_fifth_of_the_sum_is_refused():
    """Weights 1 x 99 and w: w / (99 + w) passes .2 at w = 24.75."""
    for weight, meaningful in ((24.7, True), (24.8, False)):
        log_ratios = np.append(np.zeros(99), math.log(weight))
        result = chi_square(log_ratios, np.arange(100))
        assert result.meaningful is meaningful
        assert result.largest_weight == pytest.approx(weight / (99 + weight))
    assert result.value is None and result.effective_share is None
    assert "not meaningful" in result.text and "20%" in result.text


def test_prompts_weigh_the_same_in_the_refusal():
    """One prompt with a single completion of weight 1 and one with ten: half of the sum each."""
    result = chi_square(np.zeros(11), np.array([0] + [1] * 10))
    assert result.largest_weight == pytest.approx(0.5)


def test_far_policies_are_refused_without_overflow():
    result = chi_square(np.full(50, 900.0), np.arange(50))
    assert not result.meaningful and "900 nats" in result.text
    assert not chi_square(np.linspace(0, 900, 50), np.arange(50)).meaningful


def test_gaussian_tilt_is_accurate_near_and_refused_far():
    """N(mu, 1) against N(0, 1): chi2 = e^(mu^2) - 1, heavy-tailed in mu."""
    x = np.random.default_rng(1).normal(size=4000)
    near = chi_square(0.5 * (x + 0.5) - 0.125, np.arange(4000))
    assert near.value.low < math.exp(0.25) - 1 < near.value.high
    assert not chi_square(4 * (x + 4) - 8, np.arange(4000)).meaningful


def test_certificate_of_best_of_n_under_a_uniform_proxy():
    """Proxy gain n/(n+1) - 1/2 in SDs of 1/sqrt(12), r = .9: it holds, then becomes vacuous."""
    n = np.array([4, 16, 64])
    gain = (n / (n + 1) - 0.5) * math.sqrt(12)
    bound = chi_square_certificate(gain, best_of_n_chi_square(n), 0.9)
    assert bound == pytest.approx([0.606, 0.393, -0.842], abs=5e-4)


def test_certificate_of_a_perfect_proxy_is_its_gain_and_it_never_exceeds_the_truth():
    assert chi_square_certificate(1.3, 5.0, 1.0) == pytest.approx(1.3)
    rng = np.random.default_rng(2)
    for _ in range(200):  # any policy on 30 outcomes
        reference, policy = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(30))
        gold = rng.normal(size=30)
        proxy = gold + rng.normal(size=30)
        gold, proxy = ((x - reference @ x) for x in (gold, proxy))
        gold, proxy = (x / math.sqrt(reference @ x**2) for x in (gold, proxy))
        r = reference @ (gold * proxy)
        if r > 0:
            chi2 = policy @ (policy / reference) - 1
            assert chi_square_certificate(policy @ proxy, chi2, r) <= policy @ gold + 1e-12


def test_entropy_of_a_uniform_policy_is_log_v():
    log_probs = np.full((2, 3, 7), -math.log(7))
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    log_probs[1, 1:] = np.nan  # masked
    assert token_entropy(log_probs, mask) == pytest.approx(math.log(7))
    with np.errstate(divide="ignore"):
        certain = np.log([[[1.0, 0.0, 0.0]]])
    assert token_entropy(certain, [[1]])[0] == 0


def test_reference_nll_less_entropy_is_the_kl_per_token():
    rng = np.random.default_rng(3)
    policy, reference = (log_softmax(rng.normal(size=5)) for _ in range(2))
    mask = np.ones((5, 1))  # every one-token completion, weighted by its probability
    cross = np.exp(policy) @ reference_nll(reference[:, None], mask)
    entropy = token_entropy(policy[None, None], [[1]])[0]
    kl = rao_blackwell(policy[None, None], reference[None, None], [[1]])[0]
    assert cross - entropy == pytest.approx(kl, abs=1e-12)
    assert np.exp(policy) @ k1(policy[:, None], reference[:, None], mask) == pytest.approx(kl)


def test_reference_nll_ignores_masked_positions():
    assert reference_nll([[-1.0, -3.0, -np.inf]], [[1, 1, 0]])[0] == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chi_square([0.0, np.nan], [0, 1]), "1 of 2 values"),
        (lambda: chi_square_certificate(1.0, 1.0, 0.0), "correlation"),
        (lambda: chi_square_certificate(1.0, -1.0, 0.5), "chi_square"),
        (lambda: token_entropy(np.zeros((1, 2, 3)), [[1]]), "expected"),
        (lambda: reference_nll([[-1.0], [-1.0]], [[1], [0]]), "row 1"),
    ],
)
def test_unusable_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
