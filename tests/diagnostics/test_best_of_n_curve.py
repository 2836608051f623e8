"""Best-of-n: KL against closed forms, the unbiased curve against every subset, ties included."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hf_align.diagnostics.best_of_n import (
    best_of_n_chi_square,
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_kl_estimates,
    best_of_n_kl_exact,
    best_of_n_values,
    best_of_n_win_rates,
    win_rate_bound,
)
from hf_align.diagnostics.kl import check_consistency
from hf_align.diagnostics.overoptimization import OVER_OPTIMISED, Curve, verdict

CONSISTENT = check_consistency(np.zeros(10), np.zeros(10), np.arange(10))


def test_uniform_over_sixteen_outcomes():
    assert best_of_n_kl_exact(np.full(16, 1 / 16), np.arange(16), 64) == pytest.approx(
        2.6892, abs=5e-5
    )
    assert best_of_n_kl(64) == pytest.approx(3.1745, abs=5e-5)


def test_two_outcomes_have_at_most_minus_log_of_the_better_ones_probability():
    exact = best_of_n_kl_exact([0.9, 0.1], [0.0, 1.0], 1024)
    assert exact == pytest.approx(-math.log(0.1), abs=1e-12)
    assert best_of_n_kl(1024) == pytest.approx(5.93, abs=5e-3)
    assert best_of_n_kl_estimates([math.log(0.1)], 1024)[0] == pytest.approx(exact, abs=1e-12)


def test_exact_kl_is_that_of_the_enumerated_best():
    """Every draw of 3 out of 4 outcomes, two of which tie and share the win evenly."""
    p, scores = np.array([0.1, 0.4, 0.2, 0.3]), np.array([2.0, 1.0, 2.0, 0.0])
    chosen = np.zeros(4)
    for draw in itertools.product(range(4), repeat=3):
        best = [i for i in draw if scores[i] == scores[list(draw)].max()]
        for i in best:
            chosen[i] += p[list(draw)].prod() / len(best)
    expected = chosen @ np.log(chosen / p)
    assert best_of_n_kl_exact(p, scores, 3) == pytest.approx(expected, abs=1e-12)


def test_many_equally_likely_outcomes_approach_the_nominal_kl_from_below():
    gaps = [
        best_of_n_kl(8) - best_of_n_kl_exact(np.full(k, 1 / k), np.arange(k), 8)
        for k in (100, 10_000)
    ]
    assert 0 < gaps[1] < gaps[0] / 50


def test_beirami_estimate_of_geometric_probabilities():
    """The rarest outcome is the best: .622 for a true .579."""
    p = 0.5 ** np.arange(1, 61)
    p /= p.sum()
    up_to = np.cumsum(p)
    chosen = up_to**4 - (up_to - p) ** 4
    assert chosen @ best_of_n_kl_estimates(np.log(p), 4) == pytest.approx(0.622, abs=5e-4)
    assert best_of_n_kl_exact(p, np.arange(60), 4) == pytest.approx(0.579, abs=5e-4)


def test_beirami_estimate_lies_between_zero_and_nominal_and_tends_to_minus_log_e():
    estimates = best_of_n_kl_estimates([0.0, -0.5, -5.0, -50.0, -2000.0], 16)
    assert estimates[0] == 0
    assert (np.diff(estimates) >= 0).all()
    assert estimates[-2:] == pytest.approx([best_of_n_kl(16)] * 2, abs=1e-12)
    assert best_of_n_kl_estimates([-3.0], 100_000)[0] == pytest.approx(3.0, abs=1e-9)


def enumerated(proxy, values, n):
    """Mean over all subsets of n; within a subset those tied for best share evenly."""
    means = []
    for subset in itertools.combinations(range(len(proxy)), n):
        chosen = list(subset)
        best = proxy[chosen] == proxy[chosen].max()
        means.append(values[chosen][best].mean())
    return np.mean(means)


@pytest.mark.parametrize("levels", [1000, 4, 2, 1])
def test_the_curve_equals_enumeration_over_all_subsets(levels):
    rng = np.random.default_rng(levels)
    proxy = rng.integers(levels, size=(3, 9)).astype(float)
    gold = rng.normal(size=(3, 9))
    expected = [
        [enumerated(p, g, n) for n in range(1, 10)] for p, g in zip(proxy, gold, strict=True)
    ]
    assert best_of_n_values(proxy, gold) == pytest.approx(np.array(expected), abs=1e-12)
    assert best_of_n_values(proxy, proxy) == pytest.approx(best_of_n_values(proxy), abs=0)


def test_ends_of_the_curve_are_the_mean_and_the_best():
    proxy = np.random.default_rng(0).normal(size=(20, 7))
    values = best_of_n_values(proxy, None, [1, 7])
    assert values[:, 0] == pytest.approx(proxy.mean(axis=1))
    assert values[:, 1] == pytest.approx(proxy.max(axis=1))


def test_large_pools_do_not_overflow():
    """Evenly spaced scores: the best of n out of N has mean rank n (N + 1) / (n + 1)."""
    N = 12_600
    values = best_of_n_values(np.arange(1.0, N + 1)[None], None, [1, 64, 6144, N])[0]
    n = np.array([1, 64, 6144, N])
    assert values == pytest.approx(n * (N + 1) / (n + 1), rel=1e-10)


def test_the_quantile_world_peaks_at_ten():
    """Gold u - u^100 of a proxy u: E_n = n/(n+1) - n/(n+100)."""
    u = (np.arange(1, 40_001) - 0.5) / 40_000
    ns = np.array([1, 9, 10, 11, 256])
    curve = best_of_n_values(u[None], (u - u**100)[None], ns)[0]
    assert ns[curve.argmax()] == 10
    assert curve == pytest.approx(ns / (ns + 1) - ns / (ns + 100), abs=1e-3)
    assert curve[2] == pytest.approx(0.8182, abs=1e-3)
    assert curve[-1] - curve[0] == pytest.approx(-0.213, abs=1e-3)
    every = best_of_n_values(u[None], (u - u**100)[None], np.arange(1, 40))[0]
    assert every.argmax() == 10 - 1


def test_the_pool_estimate_varies_less_than_blocks():
    """Best of 64 out of 512: all subsets against 8 blocks of 64, and against one block."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(1500, 512))
    proxy = gold + rng.normal(size=gold.shape)
    pooled = best_of_n_values(proxy, gold, [64])[:, 0]
    best = proxy.reshape(1500, 8, 64).argmax(axis=2)
    blocks = np.take_along_axis(gold.reshape(1500, 8, 64), best[:, :, None], axis=2)
    assert pooled.mean() == pytest.approx(blocks.mean(), abs=4 * 0.3 / math.sqrt(1500))
    assert pooled.std() < blocks.mean(axis=(1, 2)).std() < 0.6 * blocks[:, 0].std()


def gaussian_pool(num_prompts, num_samples, seed):
    """Gold X, proxy X + Z: E[X of best of n] = E[max of n] / sqrt(1 + var Z), which never falls."""
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(num_prompts, num_samples))
    return gold + rng.normal(size=gold.shape), gold


def test_gaussian_error_costs_the_known_share_and_has_no_peak():
    proxy, gold = gaussian_pool(1500, 256, 0)
    curve = best_of_n_curve(proxy, gold, [1, 2, 4, 16, 64], num_resamples=300)
    # Expected maxima of n standard normals.
    maxima = np.array([0, 0.56419, 1.02938, 1.76599, 2.34373])
    for estimate, maximum in zip(curve.gold, maxima, strict=True):
        error = (estimate.high - estimate.low) / 4
        assert abs(estimate.value - maximum / math.sqrt(2)) < 4 * error
    for estimate, maximum in zip(curve.proxy, maxima, strict=True):
        error = (estimate.high - estimate.low) / 4
        assert abs(estimate.value - maximum * math.sqrt(2)) < 4 * error
    assert np.array_equal(curve.kl, best_of_n_kl([1, 2, 4, 16, 64]))
    assert curve.gold[0].n == 1500


def judged(proxy, gold, ns):
    curve = Curve(
        steps=ns, sqrt_kl=np.sqrt(best_of_n_kl(ns)), gold=best_of_n_values(proxy, gold, ns).T
    )
    return verdict(curve, CONSISTENT, num_splits=10, num_resamples=200)


def test_gaussian_error_is_never_flagged_and_the_quantile_world_is():
    ns = np.array([1, 2, 4, 8, 16, 32])
    labels = [judged(*gaussian_pool(96, 128, seed), ns).label for seed in range(60)]
    assert OVER_OPTIMISED not in labels
    u = np.random.default_rng(0).random((96, 1024))
    answer = judged(u, u - u**100, np.array([1, 4, 10, 64, 256]))
    assert answer.label == OVER_OPTIMISED
    assert answer.peak_index == 2


def test_without_ties_best_of_n_wins_n_out_of_n_plus_one():
    proxy = np.random.default_rng(1).normal(size=(5, 12))
    wins = best_of_n_win_rates(proxy)
    assert wins == pytest.approx(np.tile(win_rate_bound(np.arange(1, 12)), (5, 1)), abs=1e-12)
    assert win_rate_bound(2) == pytest.approx(2 / 3)


def test_win_rates_with_ties_equal_enumeration_and_stay_below_the_bound():
    proxy = np.array([[0.0, 1.0, 1.0, 2.0, 1.0, 0.0, 2.0]])
    wins = best_of_n_win_rates(proxy)[0]
    for n in range(1, 7):
        outcomes = []
        for other in range(7):
            rest = [i for i in range(7) if i != other]
            for subset in itertools.combinations(rest, n):
                best = proxy[0, list(subset)].max()
                outcomes.append((np.sign(best - proxy[0, other]) + 1) / 2)
        assert wins[n - 1] == pytest.approx(np.mean(outcomes), abs=1e-12)
        assert wins[n - 1] <= win_rate_bound(n) + 1e-12
    assert best_of_n_win_rates(np.ones((2, 4))) == pytest.approx(0.5, abs=0)


def test_chi_square_of_best_of_64():
    assert best_of_n_chi_square(64) == pytest.approx(31.252, abs=5e-4)
    assert best_of_n_chi_square(1) == 0


def test_the_interval_of_the_curve_covers_the_truth():
    """Prompts with their own difficulty, 60 prompts x 16: E_4 of Uniform(0, 1) + difficulty."""
    rng, hits, runs = np.random.default_rng(3), 0, 300
    for seed in range(runs):
        scores = rng.random((60, 16)) + rng.normal(size=(60, 1))
        (estimate,) = best_of_n_curve(scores, None, [4], num_resamples=400, seed=seed).proxy
        hits += estimate.low <= 0.8 <= estimate.high
    assert 0.91 <= hits / runs <= 0.985


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_of_n_kl(0), "at least 1"),
        (lambda: best_of_n_kl_exact([0.5, 0.4], [0, 1], 2), "expected 1"),
        (lambda: best_of_n_kl_estimates([0.1], 4), "at most 0"),
        (lambda: best_of_n_values(np.zeros(3)), "num_prompts, num_samples"),
        (lambda: best_of_n_values(np.zeros((2, 3)), np.zeros((3, 2))), "expected the same"),
        (lambda: best_of_n_values([[0.0, np.nan]]), "1 of 2 proxy scores"),
        (lambda: best_of_n_values(np.zeros((2, 3)), None, [4]), "from 1 to 3"),
        (lambda: best_of_n_values(np.zeros((2, 3)), None, [1.5]), "whole numbers"),
        (lambda: best_of_n_win_rates(np.zeros((2, 3)), [3]), "from 1 to 2"),
    ],
)
def test_unusable_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
