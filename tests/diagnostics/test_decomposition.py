"""Decompositions add up, vanish where they must, and recover worlds with known parts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.diagnostics.decomposition import (
    goodhart_decomposition,
    length_decomposition,
    proxy_gold_association,
)
from hf_align.diagnostics.features import within_prompt_correlation

RESAMPLES = {"num_resamples": 300}


def within(estimate, truth, margin=1.0):
    """The truth lies inside the interval, widened to about 4 SE."""
    width = margin * (estimate.high - estimate.low)
    return estimate.value - width <= truth <= estimate.value + width


def gaussian_best_of(n, num_prompts, num_samples, seed):
    """Base completions, and for each prompt as many winners of n: gold X, proxy X + Z."""
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(num_prompts, num_samples, n + 1))
    proxy = gold + rng.normal(size=gold.shape)
    winners = proxy[:, :, 1:].argmax(axis=2)[:, :, None] + 1
    chosen = [np.take_along_axis(a, winners, axis=2).ravel() for a in (proxy, gold)]
    prompts = np.repeat(np.arange(num_prompts), num_samples)
    return proxy[:, :, 0].ravel(), gold[:, :, 0].ravel(), prompts, *chosen, prompts


@pytest.mark.parametrize("calibration", ["isotonic", "linear"])
def test_best_of_n_loses_by_regression_alone(calibration):
    """E[max of 16] = 1.766: proxy gain 1.766 gold SDs, of which 1/sqrt(2) is gold."""
    sides = gaussian_best_of(16, 800, 8, 0)
    parts = goodhart_decomposition(*sides, calibration=calibration, **RESAMPLES)
    assert within(parts.proxy_gain, 1.766)
    assert within(parts.gold_gain, 1.766 / math.sqrt(2))
    assert within(parts.regressional_loss, 1.766 * (1 - 1 / math.sqrt(2)))
    assert within(parts.shift_loss, 0)
    assert parts.gold_gain.n == 800


@pytest.mark.parametrize("calibration", ["isotonic", "linear"])
def test_gold_lost_at_equal_scores_is_shift(calibration):
    base_proxy, base_gold, prompts, proxy, gold, _ = gaussian_best_of(4, 500, 8, 1)
    sides = (base_proxy, base_gold, prompts, proxy)
    honest = goodhart_decomposition(*sides, gold, prompts, calibration=calibration, **RESAMPLES)
    gamed = goodhart_decomposition(
        *sides, gold - 0.7, prompts, calibration=calibration, **RESAMPLES
    )
    assert gamed.shift_loss.value == pytest.approx(honest.shift_loss.value + 0.7)
    assert gamed.regressional_loss == honest.regressional_loss
    assert gamed.shift_loss.low > 0.5


@pytest.mark.parametrize("calibration", ["isotonic", "linear"])
def test_parts_add_up_and_a_policy_equal_to_its_base_loses_nothing(calibration):
    sides = gaussian_best_of(4, 60, 5, 2)
    parts = goodhart_decomposition(*sides, calibration=calibration, **RESAMPLES)
    total = parts.gold_gain.value + parts.regressional_loss.value + parts.shift_loss.value
    assert parts.proxy_gain.value == pytest.approx(total, abs=1e-12)
    same = goodhart_decomposition(*sides[:3], *sides[:3], calibration=calibration, **RESAMPLES)
    for part in (same.proxy_gain, same.gold_gain, same.regressional_loss, same.shift_loss):
        assert part.value == pytest.approx(0, abs=1e-12)
    assert same.outside.value == 0


def test_the_proxys_scale_does_not_matter_unless_it_is_given():
    base_proxy, base_gold, prompts, proxy, gold, _ = gaussian_best_of(4, 60, 5, 3)
    plain = goodhart_decomposition(base_proxy, base_gold, prompts, proxy, gold, prompts)
    scaled = goodhart_decomposition(
        5 * base_proxy - 2, base_gold, prompts, 5 * proxy - 2, gold, prompts
    )
    assert scaled.proxy_gain.value == pytest.approx(plain.proxy_gain.value)
    assert scaled.shift_loss.value == pytest.approx(plain.shift_loss.value)
    given = goodhart_decomposition(
        base_proxy, base_gold, prompts, proxy, gold, prompts, proxy_unit=1.0
    )
    assert given.proxy_gain.value == pytest.approx(proxy.mean() - base_proxy.mean())


def test_scores_above_the_base_are_counted():
    base = np.linspace(0, 1, 40)
    prompts = np.repeat(np.arange(10), 4)
    policy = np.where(np.arange(40) % 4 == 0, 2.0, 0.5)
    parts = goodhart_decomposition(base, base, prompts, policy, policy, prompts)
    assert parts.outside.value == pytest.approx(0.25)


def test_isotonic_calibration_is_the_least_squares_fit():
    """Pool-adjacent-violators by hand: gold 1, 3, 2, 2, 5 of ascending scores -> 1, 7/3 x 3, 5."""
    scores, gold = np.arange(5.0), np.array([1.0, 3.0, 2.0, 2.0, 5.0])
    prompts = np.arange(5)
    for score, expected in ((0.2, 1), (1.0, 7 / 3), (2.7, 7 / 3), (4.0, 5), (9.0, 5)):
        policy = np.full(5, score)
        parts = goodhart_decomposition(scores, gold, prompts, policy, np.zeros(5), prompts)
        assert parts.shift_loss.value == pytest.approx(expected)  # E[c] - 0


@pytest.mark.parametrize(("calibration", "num_prompts"), [("isotonic", 500), ("linear", 60)])
def test_intervals_of_the_parts_cover_the_truth(calibration, num_prompts):
    """n = 4: E[max] 1.02938, r = 1/sqrt(2), and .3 taken from the policy's gold."""
    runs, hits = 150, np.zeros(2)
    for seed in range(runs):
        sides = gaussian_best_of(4, num_prompts, 8, seed + 50)
        base_proxy, base_gold, prompts, proxy, gold, _ = sides
        parts = goodhart_decomposition(
            *(base_proxy, base_gold, prompts, proxy, gold - 0.3, prompts),
            calibration=calibration,
            proxy_unit=1 / math.sqrt(2),
            num_resamples=200,
            seed=seed,
        )
        truth = (1.02938 * (1 - 1 / math.sqrt(2)), 0.3)
        found = (parts.regressional_loss, parts.shift_loss)
        hits += [e.low <= value <= e.high for e, value in zip(found, truth, strict=True)]
    assert (hits / runs >= 0.88).all(), hits / runs


def two_bins():
    """Shares .8/.2 -> .2/.8 and means .10/.60 -> .15/.65 on every one of 20 prompts."""
    lengths = np.concatenate([np.repeat([10, 30], [80, 20]), np.repeat([10, 30], [20, 80])])
    values = np.concatenate([np.repeat([0.10, 0.60], [80, 20]), np.repeat([0.15, 0.65], [20, 80])])
    prompts = np.tile(np.arange(20), 10)
    return (values[:100], lengths[:100], prompts[:100], values[100:], lengths[100:], prompts[100:])


def test_kitagawa_in_two_bins():
    parts = length_decomposition(*two_bins())
    assert parts.gain.value == pytest.approx(0.35)
    assert parts.within.value == pytest.approx(0.05)
    assert parts.between.value == pytest.approx(0.30)
    assert parts.unmatched.value == pytest.approx(0, abs=1e-12)
    assert parts.length_only.value == pytest.approx(0.30)
    assert parts.overlap == pytest.approx(1)
    assert parts.shares == pytest.approx(np.array([[0.8, 0.2], [0.2, 0.8]]))
    assert parts.edges.tolist() == [0, 20, 40]


def test_bins_without_a_counterpart_are_kept_apart():
    base_values, base_lengths, prompts, values, lengths, _ = two_bins()
    lengths = np.where(lengths == 30, 50, lengths)  # nothing of the base is that long
    parts = length_decomposition(base_values, base_lengths, prompts, values, lengths, prompts)
    assert parts.overlap == pytest.approx((0.8 + 0.2) / 2)
    total = parts.within.value + parts.between.value + parts.unmatched.value
    assert parts.gain.value == pytest.approx(total, abs=1e-12)
    assert parts.within.value == pytest.approx(0.5 * 0.05)
    raised = length_decomposition(
        base_values + 9, base_lengths, prompts, values + 9, lengths, prompts
    )
    for name in ("gain", "within", "between", "unmatched", "length_only"):
        assert getattr(raised, name).value == pytest.approx(getattr(parts, name).value)


def test_a_policy_that_learned_only_length_gains_only_between():
    """Value = length / 10 exactly: all gain is length, within bins of width 1."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(50), 20)
    base_lengths, lengths = rng.integers(1, 30, 1000), rng.integers(5, 30, 1000)
    parts = length_decomposition(
        base_lengths / 10, base_lengths, prompts, lengths / 10, lengths, prompts, bin_width=1
    )
    assert parts.within.value == pytest.approx(0, abs=1e-12)
    assert parts.between.value + parts.unmatched.value == pytest.approx(parts.gain.value)
    assert parts.between.value == pytest.approx(parts.length_only.value)


@pytest.mark.parametrize("num_prompts", [20, 80])
def test_intervals_of_the_length_parts_cover_the_truth(num_prompts):
    """Shares .5 -> .8 of the longer, which is worth 1 more; .2 for the policy: .2 and .3."""
    runs, hits = 200, np.zeros(2)
    prompts = np.repeat(np.arange(num_prompts), 6)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        difficulty = rng.normal(size=num_prompts)[prompts]
        long, own_long = rng.random(prompts.size) < 0.5, rng.random(prompts.size) < 0.8
        noise = rng.normal(size=(2, prompts.size))
        parts = length_decomposition(
            *(long + difficulty + noise[0], 10 + 20 * long, prompts),
            *(own_long + 0.2 + difficulty + noise[1], 10 + 20 * own_long, prompts),
            num_resamples=300,
            seed=seed,
        )
        found = ((parts.within, 0.2), (parts.between, 0.3))
        hits += [e.low <= truth <= e.high for e, truth in found]
    assert (hits / runs >= 0.89).all(), hits / runs


def test_association_of_bivariate_normal_pairs():
    rho, N, rng = 0.6, 8, np.random.default_rng(4)
    shared = rng.normal(size=(6000, N))
    proxy = shared + 10 * rng.normal(size=(6000, 1))
    own = rng.normal(size=(6000, N))
    gold = 2 * (rho * shared + math.sqrt(1 - rho**2) * own) - 5 * rng.normal(size=(6000, 1))
    found = proxy_gold_association(proxy, gold, **RESAMPLES)
    spearman = 6 / (math.pi * (N + 1)) * (math.asin(rho) + (N - 2) * math.asin(rho / 2))
    assert within(found.pearson, rho)
    assert within(found.spearman, spearman)
    assert within(found.slope, 2 * rho)
    prompts = np.repeat(np.arange(6000), N)
    same = within_prompt_correlation(proxy.ravel(), gold.ravel(), prompts)
    assert found.pearson.value == pytest.approx(same.value)


def test_spearman_sees_order_only_and_shares_ties():
    rng = np.random.default_rng(5)
    proxy, gold = rng.normal(size=(2, 30, 6))
    plain = proxy_gold_association(proxy, gold, **RESAMPLES)
    bent = proxy_gold_association(np.exp(2 * proxy), gold, **RESAMPLES)
    assert bent.spearman == plain.spearman
    assert bent.pearson.value != pytest.approx(plain.pearson.value, abs=1e-3)
    # Ranks 1.5, 1.5, 3 against 1, 2, 3: covariance .75 over sqrt(.75 * 1).
    tied = proxy_gold_association([[0.0, 0.0, 1.0]] * 2, [[1.0, 2.0, 3.0]] * 2)
    assert tied.spearman.value == pytest.approx(math.sqrt(0.75))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: goodhart_decomposition(*s[:5], s[5] + 1), "same prompts"),
        (lambda s: goodhart_decomposition(0 * s[0], *s[1:]), "constant"),
        (lambda s: goodhart_decomposition(*s, calibration="spline"), "expected 'isotonic'"),
        (lambda s: goodhart_decomposition(s[0][:-1], *s[1:]), "expected"),
        (lambda s: goodhart_decomposition(*s[:4], s[4] * np.nan, s[5]), "NaN or infinite"),
        (lambda s: length_decomposition(*s, bin_width=0), "positive width"),
        (lambda s: proxy_gold_association(np.zeros((3, 1)), np.zeros((3, 1))), "N >= 2"),
        (lambda s: proxy_gold_association(np.zeros((3, 2)), np.zeros((3, 2))), "does not vary"),
    ],
)
def test_unusable_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(gaussian_best_of(2, 10, 3, 0))
