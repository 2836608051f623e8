"""Ceilings, likelihood and calibration against integrals, closed forms and known simulations."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from hf_align.diagnostics.calibration import (
    debiased_calibration_error,
    expected_calibration_error,
    fitted_temperature,
    negative_log_likelihood,
    noise_ceiling,
    reliability,
)

Z = np.linspace(-10, 10, 200_001)
DENSITY = np.exp(-(Z**2) / 2) / math.sqrt(2 * math.pi) * (Z[1] - Z[0])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normal_quantiles(n, sd):
    """n values that follow N(0, sd^2) as closely as n values can."""
    ranks = (np.arange(n) + 0.5) / n
    return sd * np.interp(ranks, np.cumsum(DENSITY), Z)


def simulated_pairs(rng, n, temperature, sd=1.5):
    """Margins chosen - rejected, N(0, sd^2) before labelling with P(first) = sigmoid(m / T)."""
    margins = rng.normal(0, sd, n)
    first = rng.random(n) < sigmoid(margins / temperature)
    return np.where(first, margins, -margins)


# ------------------------------------------------------------------------------------ noise ceiling


@pytest.mark.parametrize(
    ("temperature", "flip_rate", "ceiling"), [(1.0, 0, 0.725), (0.5, 0, 0.828), (0.5, 0.25, 0.664)]
)
def test_noise_ceiling_is_the_published_integral(temperature, flip_rate, ceiling):
    # Gold of SD 1 per response, so the difference of two has SD sqrt(2).
    agreement = sigmoid(np.abs(math.sqrt(2) * Z) / temperature)
    integral = (DENSITY * (agreement + flip_rate * (1 - 2 * agreement))).sum()
    assert integral == pytest.approx(ceiling, abs=5e-4)
    differences = normal_quantiles(20_000, math.sqrt(2))
    estimate = noise_ceiling(
        differences, np.arange(20_000), temperature=temperature, flip_rate=flip_rate
    )
    assert estimate.value == pytest.approx(integral, abs=1e-4)
    assert estimate.low < integral < estimate.high


def test_a_judge_who_orders_by_gold_reaches_the_ceiling_and_no_coin_does():
    rng = np.random.default_rng(0)
    n, temperature, flip_rate = 40_000, np.array([0.5, 0.9] * 20_000), 0.1
    gold = rng.normal(0, 1.4, n)
    correct = rng.random(n) < sigmoid(np.abs(gold) / temperature)
    correct ^= rng.random(n) < flip_rate
    prompts = np.arange(n) // 100
    ceiling = noise_ceiling(gold, prompts, temperature=temperature, flip_rate=flip_rate).value
    assert correct.mean() == pytest.approx(ceiling, abs=4 * 0.5 / math.sqrt(n))


def test_the_ceiling_of_coins_is_one_half_and_of_certainty_one():
    prompts = np.arange(4)
    assert noise_ceiling(np.zeros(4), prompts, temperature=1).value == 0.5
    assert noise_ceiling([1, -2, 3, -4], prompts, temperature=1, flip_rate=0.5).value == 0.5
    assert noise_ceiling([1, -2, 3, -4], prompts, temperature=1e-3).value == pytest.approx(1)
    sure = noise_ceiling([1, -2, 3, -4], prompts, temperature=1e-3, flip_rate=0.1)
    assert sure.value == pytest.approx(0.9)


@pytest.mark.parametrize(("temperature", "flip_rate"), [(0, 0), (-1, 0), (1, 0.6), (1, -0.1)])
def test_impossible_annotators_are_refused(temperature, flip_rate):
    with pytest.raises(ValueError, match="expected temperature > 0"):
        noise_ceiling([1.0], [0], temperature=temperature, flip_rate=flip_rate)


# --------------------------------------------------------------------------------------- likelihood


def test_likelihood_by_hand():
    assert negative_log_likelihood(np.zeros(3), [0, 1, 2]).value == pytest.approx(math.log(2))
    odds = [math.log(3), math.log(9)]  # P = 3/4 and 9/10
    expected = -(math.log(0.75) + math.log(0.1)) / 2
    assert negative_log_likelihood(odds, [0, 1], [1, 0]).value == pytest.approx(expected)
    halves = negative_log_likelihood([math.log(3)], [0], [0.5]).value
    assert halves == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert negative_log_likelihood([1e4, -1e4], [0, 1]).value == pytest.approx(5000)


def test_prompts_weigh_the_same_however_many_pairs_they_have():
    margins, prompts = [0.0, *[math.log(3)] * 9], [0, *[1] * 9]
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert negative_log_likelihood(margins, prompts).value == pytest.approx(expected)


@pytest.mark.parametrize(
    "estimator",
    [
        negative_log_likelihood,
        fitted_temperature,
        expected_calibration_error,
        debiased_calibration_error,
        lambda margins, prompts, labels=None: reliability(margins, prompts, labels)[3].observed,
    ],
)
def test_the_order_within_a_pair_does_not_matter(estimator):
    rng = np.random.default_rng(1)
    chosen_first = simulated_pairs(rng, 200, 1.0)
    labels = rng.random(200) < 0.5
    shuffled = np.where(labels, chosen_first, -chosen_first)
    prompts = np.arange(200) // 2
    ordered, mixed = estimator(chosen_first, prompts), estimator(shuffled, prompts, labels)
    assert mixed.n == ordered.n
    numbers = [(e.value, e.low or 0, e.high or 0) for e in (ordered, mixed)]
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-9)


@pytest.mark.parametrize(
    ("margins", "labels", "message"),
    [
        ([1.0, math.nan], None, "1 of 2 margins are NaN"),
        ([1.0, 2.0], [1, 2], r"\[0, 1\]"),
        ([1.0, 2.0], [1, math.nan], r"\[0, 1\]"),
        ([1.0, 2.0], [1], "expected"),
    ],
)
def test_unusable_pairs_are_refused(margins, labels, message):
    for estimator in (negative_log_likelihood, fitted_temperature, reliability):
        with pytest.raises(ValueError, match=message):
            estimator(margins, [0, 1], labels)


# -------------------------------------------------------------------------------------- temperature


def test_temperature_of_equal_margins_is_margin_over_log_odds():
    # With |m| = 2 everywhere and 3 of 4 pairs right, T solves sigmoid(2 / T) = 3/4.
    estimate = fitted_temperature([2.0, 2.0, 2.0, -2.0], np.arange(4))
    assert estimate.value == pytest.approx(2 / math.log(3), rel=1e-9)


def test_temperature_is_the_minimum_of_the_likelihood():
    margins = simulated_pairs(np.random.default_rng(2), 300, 0.7)
    prompts = np.arange(300) // 3
    best = fitted_temperature(margins, prompts).value

    def loss(temperature):
        return negative_log_likelihood(margins / temperature, prompts).value

    assert loss(best) <= min(loss(best * (1 + step)) for step in (-0.05, -0.001, 0.001, 0.05))


def test_temperature_scales_with_the_margins():
    margins = simulated_pairs(np.random.default_rng(3), 200, 1.0)
    one = fitted_temperature(margins, np.arange(200))
    thousand = fitted_temperature(1000 * margins, np.arange(200))
    assert thousand.value == pytest.approx(1000 * one.value, rel=1e-9)
    assert thousand.low == pytest.approx(1000 * one.low, rel=1e-9)


@pytest.mark.parametrize(("num_prompts", "per_prompt"), [(200, 1), (100, 4), (30, 4)])
def test_temperature_interval_covers_the_truth(num_prompts, per_prompt):
    rng = np.random.default_rng(4)
    prompts = np.repeat(np.arange(num_prompts), per_prompt)
    runs, hits = 40, 0
    for _ in range(runs):
        # The same pair returned per_prompt times: only the prompts are independent.
        margins = np.repeat(simulated_pairs(rng, num_prompts, 2.0, sd=4.0), per_prompt)
        estimate = fitted_temperature(margins, prompts)
        hits += estimate.low <= 2.0 <= estimate.high
        assert estimate.low <= estimate.value <= estimate.high
    assert hits / runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


def test_temperature_ends_where_no_best_one_exists():
    prompts, margins = np.arange(60), np.linspace(1, 2, 60)
    scale = math.sqrt(np.mean(margins**2))
    assert fitted_temperature(margins, prompts).value == pytest.approx(0.01 * scale)
    assert fitted_temperature(-margins, prompts).value == pytest.approx(100 * scale)
    with pytest.raises(ValueError, match="all margins are 0"):
        fitted_temperature(np.zeros(3), [0, 1, 2])


# -------------------------------------------------------------------------------------- calibration


def test_overconfident_margins_have_the_published_error_and_temperature():
    # Margins N(0, 1.5^2) whose labels follow T = 2: ECE .096, fitted T about 2 (1.99 once).
    integral = (DENSITY * np.abs(sigmoid(np.abs(1.5 * Z)) - sigmoid(np.abs(0.75 * Z)))).sum()
    assert integral == pytest.approx(0.096, abs=5e-4)
    margins = simulated_pairs(np.random.default_rng(5), 100_000, 2.0)
    prompts = np.arange(100_000) // 200
    for estimator in (expected_calibration_error, debiased_calibration_error):
        assert estimator(margins, prompts).value == pytest.approx(integral, abs=0.006)
    assert fitted_temperature(margins, prompts).value == pytest.approx(2.0, abs=0.06)


@pytest.mark.parametrize(("n", "plug_in", "runs"), [(100, 0.10, 200), (1000, 0.034, 100)])
def test_noise_fills_the_plug_in_error_and_not_the_debiased_one(n, plug_in, runs):
    rng = np.random.default_rng(n)
    prompts = np.arange(n)
    naive, debiased, hits = [], [], 0
    for _ in range(runs):
        margins = simulated_pairs(rng, n, 1.0)
        naive.append(expected_calibration_error(margins, prompts).value)
        estimate = debiased_calibration_error(margins, prompts)
        debiased.append(estimate.value)
        hits += estimate.low <= 0 <= estimate.high
    assert np.mean(naive) == pytest.approx(plug_in, rel=0.08)
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / math.sqrt(runs)
    assert abs(np.mean(debiased)) < 0.1 * np.mean(naive)
    assert hits / runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


def test_a_real_error_is_found_and_not_exaggerated():
    rng = np.random.default_rng(6)
    results = [
        debiased_calibration_error(simulated_pairs(rng, 1000, 2.0), np.arange(1000))
        for _ in range(40)
    ]
    mean = np.mean([estimate.value for estimate in results])
    assert 0.07 < mean < 0.096
    assert np.mean([estimate.low > 0 for estimate in results]) > 0.9


def test_repeating_every_pair_adds_no_certainty():
    margins = simulated_pairs(np.random.default_rng(7), 100, 1.0)
    once = debiased_calibration_error(margins, np.arange(100))
    often = debiased_calibration_error(np.repeat(margins, 8), np.repeat(np.arange(100), 8))
    assert often.value == pytest.approx(once.value, abs=1e-12)
    assert (often.low, often.high, often.n) == pytest.approx((once.low, once.high, 100), abs=1e-12)


def test_calibration_error_by_hand():
    # Two bins: confidence 3/4 with 1 of 2 right, 9/10 with 2 of 2: (1/4 + 1/10) / 2.
    margins = [math.log(3), -math.log(3), math.log(9), math.log(9)]
    error = expected_calibration_error(margins, np.arange(4), num_bins=2)
    assert error.value == pytest.approx(0.175)
    assert (error.low, error.high, error.n) == (None, None, 4)
    low, high = reliability(margins, np.arange(4), num_bins=2)
    assert (low.count, high.count) == (2, 2)
    assert (low.predicted, low.observed.value) == pytest.approx((0.75, 0.5))
    assert (high.predicted, high.observed.value) == pytest.approx((0.9, 1.0))


def test_one_prompt_cannot_be_halved():
    with pytest.raises(ValueError, match="at least 2 prompts"):
        debiased_calibration_error([1.0, 2.0], [0, 0])


def test_reliability_bins_have_equal_mass_and_cover_their_truth():
    rng = np.random.default_rng(8)
    n, hits, bins = 2000, 0, []
    for _ in range(10):
        found = reliability(simulated_pairs(rng, n, 1.0), np.arange(n))
        assert [b.count for b in found] == [n // 10] * 10
        hits += sum(b.observed.low <= b.predicted <= b.observed.high for b in found)
        bins = found
    assert hits >= 100 * 0.95 - 4 * math.sqrt(100 * 0.95 * 0.05)
    assert all(b.low <= b.predicted <= b.high for b in bins)
    assert all(a.high < b.low for a, b in pairwise(bins))
    assert bins[0].low >= 0.5


def test_equal_margins_share_a_bin_and_ties_count_half():
    (only,) = reliability(np.zeros(20), np.arange(20))
    assert (only.predicted, only.observed.value, only.count) == (0.5, 0.5, 20)
    assert expected_calibration_error(np.zeros(20), np.arange(20)).value == 0
    few = reliability([0.5, 0.5, 2.0], np.arange(3))
    assert [b.count for b in few] == [2, 1]


def test_a_bin_that_is_always_right_keeps_an_interval():
    top = reliability(np.linspace(1, 5, 50), np.arange(50), num_bins=1)[0].observed
    assert top.value == 1.0
    assert top.low < 1.0 == top.high
