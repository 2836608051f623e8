"""Ensemble disagreement recovers a known error variance and sees what has shifted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.diagnostics.disagreement import compare_disagreement, disagreement


def members(rng, k, n, error, shift=0.0):
    """A common score of SD 1 plus errors of each member's own, and each member's own zero."""
    return rng.normal(size=n) + rng.normal(0, error, (k, n)) + shift


@pytest.mark.parametrize("k", [2, 5])
def test_mean_variance_is_the_members_error_variance(k):
    n, error = 40_000, 0.5
    scores = members(np.random.default_rng(0), k, n, error)
    sd = disagreement(scores)
    assert sd.shape == (n,)
    # Var of the sample variance is 2 sigma^4 / (k - 1).
    tolerance = 4 * error**2 * math.sqrt(2 / (k - 1) / n)
    assert (sd**2).mean() == pytest.approx(error**2, abs=tolerance)


def test_by_hand_and_blind_to_each_members_zero():
    scores = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    assert disagreement(scores) == pytest.approx([math.sqrt(2), math.sqrt(2), 0])
    assert disagreement(scores + np.array([[7.0], [-3.0]])) == pytest.approx(disagreement(scores))
    assert disagreement(np.tile(scores[0], (4, 1))) == pytest.approx(np.zeros(3))


def test_alike_sets_disagree_alike_and_one_in_a_hundred_lies_beyond():
    rng = np.random.default_rng(1)
    scores = members(rng, 4, 20_000, 0.5)
    compared = compare_disagreement(
        scores[:, ::2], np.arange(10_000), scores[:, 1::2], np.arange(10_000)
    )
    assert compared.inside.value == pytest.approx(compared.outside.value, abs=0.01)
    assert compared.outlying.value == pytest.approx(0.01, abs=4 * math.sqrt(2 * 0.01 / 10_000))


def test_units_are_sds_of_the_mean_score():
    rng = np.random.default_rng(2)
    inside, outside = members(rng, 3, 500, 0.5), members(rng, 3, 400, 1.0)
    one = compare_disagreement(inside, np.arange(500), outside, np.arange(400))
    ten = compare_disagreement(10 * inside, np.arange(500), 10 * outside, np.arange(400))
    assert one.outside.value == pytest.approx(ten.outside.value)
    assert one.outside.value / one.inside.value == pytest.approx(2, rel=0.15)
    assert one.outlying.value > 0.1


def test_a_shift_that_one_member_sees_is_disagreement():
    rng = np.random.default_rng(3)
    inside = members(rng, 3, 1000, 0.1)
    outside = members(rng, 3, 1000, 0.1, shift=np.array([[0.0], [0.0], [3.0]]))
    compared = compare_disagreement(inside, np.arange(1000), outside, np.arange(1000))
    # (0, 0, 3) has SD sqrt(3); the mean score's SD inside is about 1.
    assert compared.outside.value == pytest.approx(math.sqrt(3), rel=0.1)
    assert compared.outlying.value == 1.0


def test_unusable_scores_are_refused():
    with pytest.raises(ValueError, match="k >= 2"):
        disagreement(np.ones((1, 4)))
    with pytest.raises(ValueError, match="1 of 4 member scores are NaN"):
        disagreement([[1.0, math.nan], [1.0, 2.0]])
    with pytest.raises(ValueError, match="expected the same members"):
        compare_disagreement(np.eye(3), np.arange(3), np.eye(2), np.arange(2))
    with pytest.raises(ValueError, match="same score"):
        compare_disagreement(np.ones((2, 3)), np.arange(3), np.ones((2, 3)), np.arange(3))
    with pytest.raises(ValueError, match="offsets"):
        disagreement(np.eye(2), offsets=[0.0])
