"""Outliers and tails: nominal rates for what did not change, known values for what did."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.diagnostics.outliers import mahalanobis_distances, outlier_share, tail_index


def test_distances_are_in_standard_deviations_whatever_the_axes():
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(3, 3))
    reference = rng.normal(size=(50_000, 3)) @ axes
    points = np.array([[0.0, 0, 0], [1, 0, 0], [3, 4, 0]])
    found = mahalanobis_distances(points @ axes, reference, shrinkage=0)
    assert found == pytest.approx([0, 1, 5], abs=0.06)


def test_an_unchanged_policy_has_one_percent_of_outliers_and_a_shifted_one_its_chi_square_tail():
    """Two dimensions: P(d^2 > x) = e^(-x/2), so the 99 % distance is 2 log 100."""
    rng = np.random.default_rng(1)
    reference, held_out, same = rng.normal(size=(3, 20_000, 2))
    found = outlier_share(same, np.arange(20_000), reference, held_out)
    assert found.value == pytest.approx(0.01, abs=0.004)
    # Scaled by s the tail is e^(-x / 2 s^2): .01^(1 / s^2), .1 at s^2 = 2.
    wider = outlier_share(math.sqrt(2) * same, np.arange(20_000), reference, held_out)
    assert wider.value == pytest.approx(0.1, abs=0.02)
    assert outlier_share(same + 20, np.arange(20_000), reference, held_out).value == 1


def test_a_mean_shift_has_the_noncentral_tail():
    """One dimension, shift 2: P(|N(2, 1)| > 2.576) = .2823 + .0000."""
    rng = np.random.default_rng(2)
    reference, held_out, same = rng.normal(size=(3, 40_000, 1))
    found = outlier_share(same + 2, np.arange(40_000), reference, held_out)
    assert found.value == pytest.approx(0.2823, abs=0.02)


def test_more_dimensions_than_completions_are_shrunk_not_inverted():
    rng = np.random.default_rng(3)
    reference, held_out, same = rng.normal(size=(3, 300, 400))
    found = outlier_share(same, np.arange(300), reference, held_out, shrinkage=0.2)
    assert found.value < 0.05
    assert outlier_share(same + 3, np.arange(300), reference, held_out, shrinkage=0.2).value > 0.9


def test_tail_index_of_a_pareto():
    """Exponent 1.5, k = 2000: SE 1.5 / sqrt(2000) = .034."""
    values = np.random.default_rng(4).random((30, 100_000)) ** (-1 / 1.5)
    found = [tail_index(row, 2000) for row in values]
    assert np.mean(found) == pytest.approx(1.5, abs=4 * 0.034 / math.sqrt(30))
    assert np.std(found) == pytest.approx(0.034, abs=0.013)


def test_tail_index_by_hand_and_its_scale():
    values = np.array([1.0, 2.0, 4.0, 8.0, -5.0])
    assert tail_index(values, 2) == pytest.approx(2 / math.log(8))  # log 4/2 + log 8/2
    assert tail_index(7 * values, 2) == pytest.approx(2 / math.log(8))


def test_a_lognormal_has_no_index():
    """1 / E[Z - z | Z > z] of a standard normal: 3.61, 2.95, 2.11 at the tops .001, .01, .1."""
    values = np.exp(np.random.default_rng(5).normal(size=200_000))
    for k, expected in ((200, 3.61), (2000, 2.95), (20_000, 2.11)):
        assert tail_index(values, k) == pytest.approx(expected, rel=4 / math.sqrt(k))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mahalanobis_distances(np.zeros((2, 3)), np.zeros((2, 4))), "expected"),
        (lambda: mahalanobis_distances(np.zeros((2, 3)), np.ones((2, 3))), "all equal"),
        (lambda: mahalanobis_distances(np.ones((2, 3)), np.eye(3), shrinkage=2), "0 to 1"),
        (lambda: tail_index([1.0, 2.0], 2), "1 to N - 1"),
        (lambda: tail_index([-1.0, 1.0, 2.0], 2), "lower k"),
    ],
)
def test_unusable_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
