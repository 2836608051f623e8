"""KL estimators against analytic values, enumeration and a broken sampler."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from hf_align.diagnostics.kl import check_consistency, consistency_z, k1, k2, k3, rao_blackwell


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Chain:
    """Two steps over three tokens: a first distribution and one per first token."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.first = log_softmax(scale * rng.normal(size=3))
        self.second = log_softmax(scale * rng.normal(size=(3, 3)))

    def sample(self, rng, n: int) -> np.ndarray:
        first = rng.choice(3, size=n, p=np.exp(self.first))
        second = [rng.choice(3, p=np.exp(self.second[token])) for token in first]
        return np.stack([first, second], axis=1)

    def log_probs(self, tokens: np.ndarray) -> np.ndarray:
        """(B, T, V) of each step's full distribution on the sampled prefixes."""
        first = np.broadcast_to(self.first, (len(tokens), 3))
        return np.stack([first, self.second[tokens[:, 0]]], axis=1)

    def logps(self, tokens: np.ndarray) -> np.ndarray:
        return np.take_along_axis(self.log_probs(tokens), tokens[:, :, None], axis=2)[:, :, 0]


ALL_SEQUENCES = np.array(list(itertools.product(range(3), range(3))))


def exact_kl(policy: Chain, reference: Chain) -> float:
    logp = policy.logps(ALL_SEQUENCES).sum(1)
    return float((np.exp(logp) * (logp - reference.logps(ALL_SEQUENCES).sum(1))).sum())


def test_gaussian_mean_shift_has_the_analytic_means():
    """N(1, 1) against N(0, 1): KL 0.5; E k1 = .5, E k2 = mu^2/2 + mu^4/8 = .625, E k3 = .5."""
    x = np.random.default_rng(0).normal(1, 1, size=(1_000_000, 1))
    logps, ref_logps, mask = -((x - 1) ** 2) / 2, -(x**2) / 2, np.ones_like(x)
    assert k1(logps, ref_logps, mask).mean() == pytest.approx(0.5, abs=0.005)
    assert k1(logps, ref_logps, mask).var() == pytest.approx(1.0, abs=0.01)
    assert k2(logps, ref_logps, mask).mean() == pytest.approx(0.625, abs=0.006)
    assert k3(logps, ref_logps, mask).mean() == pytest.approx(0.5, abs=0.005)


def test_hand_computed_two_token_row():
    logps, ref_logps = np.log([[0.5, 0.2]]), np.log([[0.25, 0.4]])
    mask = [[1, 1]]
    ln2 = math.log(2)
    assert k1(logps, ref_logps, mask)[0] == pytest.approx(0)
    assert k2(logps, ref_logps, mask)[0] == pytest.approx(ln2**2)
    assert k3(logps, ref_logps, mask)[0] == pytest.approx((0.5 - 1 + ln2) + (2 - 1 - ln2))


def test_masked_positions_are_ignored_whatever_they_hold():
    logps, ref_logps = np.array([[-1.0, -np.inf]]), np.array([[-2.0, np.nan]])
    mask = np.array([[1, 0]])
    assert k1(logps, ref_logps, mask)[0] == 1
    assert k2(logps, ref_logps, mask)[0] == 0.5
    full = log_softmax(np.zeros((1, 2, 4)))
    broken = full.copy()
    broken[:, 1] = np.nan
    assert rao_blackwell(full, broken, mask)[0] == 0


@pytest.mark.parametrize("seed", range(5))
def test_rao_blackwell_expectation_equals_the_enumerated_kl(seed):
    policy, reference = Chain(seed), Chain(seed + 100)
    weights = np.exp(policy.logps(ALL_SEQUENCES).sum(1))
    mask = np.ones(ALL_SEQUENCES.shape)
    estimates = rao_blackwell(
        policy.log_probs(ALL_SEQUENCES), reference.log_probs(ALL_SEQUENCES), mask
    )
    crosscheck = k1(policy.logps(ALL_SEQUENCES), reference.logps(ALL_SEQUENCES), mask)
    exact = exact_kl(policy, reference)
    assert weights @ estimates == pytest.approx(exact, abs=1e-12)
    assert weights @ crosscheck == pytest.approx(exact, abs=1e-12)
    # Conditioning on the prefix cannot add variance; exact, so no sampling tolerance.
    assert weights @ (estimates - exact) ** 2 <= weights @ (crosscheck - exact) ** 2
    assert (estimates >= 0).all()


def test_tokens_nobody_can_emit_contribute_nothing():
    with np.errstate(divide="ignore"):
        log_probs, ref_log_probs = np.log([[[0.5, 0.5, 0.0]]]), np.log([[[0.25, 0.75, 0.0]]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert rao_blackwell(log_probs, ref_log_probs, [[1]])[0] == pytest.approx(expected)


def test_consistency_holds_for_the_samplers_own_distribution():
    policy, reference, rng = Chain(1), Chain(2), np.random.default_rng(0)
    zs = []
    for _ in range(60):
        tokens = policy.sample(rng, 400)
        mask = np.ones(tokens.shape)
        estimates = (
            k1(policy.logps(tokens), reference.logps(tokens), mask),
            rao_blackwell(policy.log_probs(tokens), reference.log_probs(tokens), mask),
        )
        zs.append(consistency_z(*estimates, np.arange(400) // 4))
        assert check_consistency(*estimates, np.arange(400) // 4).consistent
    # N(0, 1): the mean of 60 has SE .13, their SD about .09.
    assert abs(np.mean(zs)) < 0.5
    assert 0.7 < np.std(zs) < 1.3


def test_consistency_diverges_when_sampling_masks_a_token_that_scoring_does_not():
    policy, reference, rng = Chain(1), Chain(2), np.random.default_rng(0)
    sampler = Chain(1)
    sampler.first = log_softmax(np.where(np.arange(3) == 0, -np.inf, policy.first))
    zs = []
    for n in (400, 6400):
        tokens = sampler.sample(rng, n)
        mask = np.ones(tokens.shape)
        scored_k1 = k1(policy.logps(tokens), reference.logps(tokens), mask)
        scored_rb = rao_blackwell(policy.log_probs(tokens), reference.log_probs(tokens), mask)
        zs.append(abs(consistency_z(scored_k1, scored_rb, np.arange(n))))
    assert zs[1] > 4
    assert zs[1] > 2 * zs[0]
    assert not check_consistency(scored_k1, scored_rb, np.arange(n)).consistent


def test_equal_estimates_are_consistent_and_a_constant_offset_is_not():
    prompts = np.arange(10)
    assert consistency_z(np.zeros(10), np.zeros(10), prompts) == 0.0
    assert consistency_z(np.full(10, 1e-9), np.zeros(10), prompts) == 0.0
    assert consistency_z(np.zeros(10), np.ones(10), prompts) == -math.inf


def test_clearly_negative_k1_is_inconsistent():
    rng = np.random.default_rng(0)
    negative = rng.normal(-1, 0.1, 100)
    # The Rao-Blackwell value is made to agree, so only the sign can fail.
    assert not check_consistency(negative, negative, np.arange(100)).consistent


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"expected \(B, T\)"):
        k1(np.zeros((2, 3)), np.zeros((2, 4)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"expected \(B, T, V\)"):
        rao_blackwell(np.zeros((2, 3, 4)), np.zeros((2, 3, 5)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="at least 2 prompts"):
        consistency_z([1.0, 2.0], [0.0, 0.0], [0, 0])


def test_importing_diagnostics_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, hf_align.diagnostics, hf_align.diagnostics.kl, hf_align.diagnostics.logps\n"
        "import hf_align.diagnostics.report, hf_align.diagnostics.plots\n"
        "import hf_align.evaluation, hf_align.sampling\n"
        "loaded = {'torch', 'matplotlib', 'transformers', 'peft'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
