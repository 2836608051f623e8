"""Intervals keep their coverage when completions of a prompt resemble each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.statistics import (
    clustered_difference,
    clustered_mean,
    clustered_means,
    clustered_share,
    clustered_statistics,
    normal_quantile,
    prompt_means,
    standard_error,
    t_quantile,
    wilson_interval,
)


def test_prompt_means_average_within_prompt_in_sorted_order():
    assert prompt_means([1.0, 5.0, 3.0], ["b", "a", "b"]).tolist() == [5.0, 2.0]
    assert prompt_means([1.0, 5.0, 3.0], [7, 2, 7]).tolist() == [5.0, 2.0]


def test_each_prompt_counts_once_however_many_samples_it_has():
    estimate = clustered_mean([0, 0, 0, 0, 1], [0, 0, 0, 0, 1])
    assert estimate.value == 0.5
    assert estimate.n == 2


@pytest.mark.parametrize(
    ("degrees_of_freedom", "two_sided_95", "two_sided_99"),
    [  # NIST/SEMATECH e-Handbook of Statistical Methods, table 1.3.6.7.2
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (3, 3.182, 5.841),
        (4, 2.776, 4.604),
        (5, 2.571, 4.032),
        (10, 2.228, 3.169),
        (29, 2.045, 2.756),
        (48, 2.011, 2.682),
        (100, 1.984, 2.626),
    ],
)
def test_t_quantiles_match_the_printed_table(degrees_of_freedom, two_sided_95, two_sided_99):
    assert t_quantile(0.975, degrees_of_freedom) == pytest.approx(two_sided_95, abs=6e-4)
    assert t_quantile(0.995, degrees_of_freedom) == pytest.approx(two_sided_99, abs=6e-4)
    assert t_quantile(0.025, degrees_of_freedom) == -t_quantile(0.975, degrees_of_freedom)
    assert t_quantile(0.5, degrees_of_freedom) == 0


def test_t_tends_to_the_normal():
    assert t_quantile(0.975, 100_000) == pytest.approx(normal_quantile(0.975), abs=1e-4)


def test_few_prompts_use_students_t():
    # Means 1, 2, 3: mean 2, SE 1/sqrt(3), t(.975, 2) = 4.3027.
    estimate = clustered_mean([1, 2, 3], [0, 1, 2])
    margin = 4.302653 / math.sqrt(3)
    assert estimate.low == pytest.approx(2 - margin, abs=1e-5)
    assert estimate.high == pytest.approx(2 + margin, abs=1e-5)
    assert standard_error([1, 2, 3], [0, 1, 2]) == pytest.approx(1 / math.sqrt(3))


def test_one_prompt_has_no_interval():
    estimate = clustered_mean([1.0, 3.0], [0, 0])
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (2.0, None, None, 1)
    with pytest.raises(ValueError, match="at least 2 prompts"):
        standard_error([1.0, 3.0], [0, 0])


def test_bootstrap_interval_is_near_the_normal_one_and_reproducible():
    values = np.random.default_rng(0).normal(size=400)
    prompts = np.arange(400)
    estimate = clustered_mean(values, prompts)
    margin = 1.96 * values.std(ddof=1) / 20
    assert estimate.low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert estimate.high == pytest.approx(values.mean() + margin, abs=0.1 * margin)
    assert estimate == clustered_mean(values, prompts)


def test_coverage_with_correlated_samples_is_nominal_and_naive_is_half():
    """64 prompts x 16 samples at intra-class correlation 0.5, true mean 0."""
    rng = np.random.default_rng(1)
    num_sets, num_prompts, num_samples = 1500, 64, 16
    prompts = np.repeat(np.arange(num_prompts), num_samples)
    covered = naive_covered = 0
    for seed in range(num_sets):
        shared = rng.normal(size=(num_prompts, 1))
        values = (shared + rng.normal(size=(num_prompts, num_samples))).ravel() * math.sqrt(0.5)
        estimate = clustered_mean(values, prompts, num_resamples=400, seed=seed)
        covered += estimate.low <= 0 <= estimate.high
        naive_covered += abs(values.mean()) <= 1.96 * values.std() / math.sqrt(values.size)
    assert 0.93 <= covered / num_sets <= 0.97
    assert naive_covered / num_sets == pytest.approx(0.52, abs=0.05)


def test_coverage_with_few_prompts_is_nominal():
    values = np.random.default_rng(2).normal(size=(2000, 6))
    estimates = [clustered_mean(row, np.arange(6)) for row in values]
    covered = np.mean([e.low <= 0 <= e.high for e in estimates])
    assert 0.93 <= covered <= 0.97


def test_paired_difference_removes_what_the_prompts_share():
    rng = np.random.default_rng(3)
    shared = rng.normal(scale=10, size=200)
    a, b = shared + 1 + rng.normal(scale=0.1, size=200), shared
    difference = clustered_difference(a, b, np.arange(200))
    assert difference.low < 1 < difference.high
    assert difference.high - difference.low < 0.1
    mirrored = clustered_difference(b, a, np.arange(200))
    assert mirrored.low == pytest.approx(-difference.high)


def test_nan_is_refused_with_its_count():
    with pytest.raises(ValueError, match="2 of 3 values are NaN or infinite"):
        clustered_mean([1.0, math.nan, math.inf], [0, 1, 2])


def test_mismatched_or_missing_values_are_refused():
    with pytest.raises(ValueError, match="expected"):
        clustered_mean([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="no values"):
        clustered_mean([], [])
    with pytest.raises(ValueError, match="equal shapes"):
        clustered_difference([1.0], [1.0, 2.0], [0])


def test_wilson_interval_matches_a_hand_computed_case():
    # p = .5, n = 10, z = 1.96: center .5, margin sqrt(.025 z^2 + z^4/400) / (1 + z^2/10).
    z = 1.959964
    margin = math.sqrt(0.025 * z**2 + z**4 / 400) / (1 + z**2 / 10)
    interval = wilson_interval(5, 10)
    assert interval.low == pytest.approx(0.5 - margin, abs=1e-6)
    assert interval.high == pytest.approx(0.5 + margin, abs=1e-6)
    # With no success the upper end is z^2 / (n + z^2).
    none = wilson_interval(0, 20)
    assert (none.value, none.low) == (0.0, pytest.approx(0, abs=1e-12))
    assert none.high == pytest.approx(z**2 / (20 + z**2), abs=1e-6)
    with pytest.raises(ValueError, match="expected 0 <= successes"):
        wilson_interval(3, 2)


def test_wilson_interval_is_the_published_one():
    # Newcombe (1998), table I, method 3.
    published = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605)}
    published |= {(0, 20): (0.0000, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (successes, trials), interval in published.items():
        estimate = wilson_interval(successes, trials)
        assert (estimate.low, estimate.high) == pytest.approx(interval, abs=5e-5)


def test_the_interval_of_a_share_stays_within_zero_and_one():
    share = clustered_share([1.0, 1.0, 1.0, 0.0], [0, 1, 2, 3])
    assert share.value == 0.75 and 0.0 <= share.low < 0.75 < share.high <= 1.0
    assert clustered_mean([1.0, 1.0, 1.0, 0.0], [0, 1, 2, 3]).high > 1.0


def ratio(sums):
    return sums[:, :1] / sums[:, 1:]


def test_a_ratio_of_sums_with_equal_weights_is_the_clustered_mean():
    values = np.random.default_rng(3).normal(size=30)
    mean = clustered_mean(values, np.arange(30))
    (found,) = clustered_statistics(np.column_stack([values, np.ones(30)]), ratio)
    # For a mean the jackknife's SE is the usual one, so the t interval is the same.
    assert (found.value, found.low, found.high, found.n) == pytest.approx(
        (mean.value, mean.low, mean.high, 30)
    )


def test_several_means_are_those_of_each_column():
    values = np.random.default_rng(4).normal([0, 5, -5], size=(300, 3))
    for column, estimate in zip(values.T, clustered_means(values), strict=True):
        alone = clustered_mean(column, np.arange(300))
        found = (estimate.value, estimate.low, estimate.high, estimate.n)
        assert found == pytest.approx((alone.value, alone.low, alone.high, 300), abs=0.01)
    few = clustered_means(values[:30])[0]
    assert few.low == pytest.approx(clustered_mean(values[:30, 0], np.arange(30)).low)
    with pytest.raises(ValueError, match="expected finite"):
        clustered_means([[1.0, math.nan]])


def test_very_many_prompts_have_the_interval_of_the_normal():
    values = np.random.default_rng(6).normal(size=40_001)  # the last group has one prompt
    margin = 1.96 * values.std() / math.sqrt(values.size)
    many = [clustered_mean(values, np.arange(values.size)), *clustered_means(values[:, None])]
    for estimate in many:
        assert estimate.value == pytest.approx(values.mean()) and estimate.n == 40_001
        assert estimate.high - estimate.low == pytest.approx(2 * margin, rel=0.08)
        assert (estimate.high + estimate.low) / 2 == pytest.approx(values.mean(), abs=margin / 5)


def test_equal_columns_are_resampled_together():
    values = np.random.default_rng(5).normal(size=(80, 1))
    first, second = clustered_means(np.hstack([values, values + 1]))
    assert second.low - first.low == pytest.approx(1) and second.high - first.high == pytest.approx(
        1
    )


@pytest.mark.parametrize("num_prompts", [20, 100])
def test_statistics_of_sums_cover_the_truth(num_prompts):
    rng = np.random.default_rng(num_prompts)
    runs, hits = 300, 0
    for _ in range(runs):
        weights = rng.uniform(0.5, 1.5, num_prompts)
        sums = np.column_stack([weights * rng.normal(2, 1, num_prompts), weights])
        (found,) = clustered_statistics(sums, ratio, num_resamples=500)
        hits += found.low <= 2 <= found.high
    assert hits / runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


def test_one_prompt_has_no_interval_and_bad_sums_are_refused():
    (found,) = clustered_statistics([[3.0, 2.0]], ratio)
    assert (found.value, found.low, found.high, found.n) == (1.5, None, None, 1)
    for sums in (np.empty((0, 2)), [[math.nan, 1.0]]):
        with pytest.raises(ValueError, match="expected finite sums"):
            clustered_statistics(sums, ratio)
