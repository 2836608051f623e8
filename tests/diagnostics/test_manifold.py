"""Precision, recall, density, coverage: equal, disjoint and dropped modes, same distribution."""

from __future__ import annotations

import numpy as np
import pytest

from hf_align.diagnostics.manifold import compare_manifolds


def compare(points, others, **options):
    return compare_manifolds(
        points, np.arange(len(points)), others, np.arange(len(others)), **options
    )


def test_equal_sets_have_precision_and_recall_one():
    points = np.random.default_rng(0).normal(size=(200, 5))
    found = compare(points, points.copy())
    assert found.precision.value == found.recall.value == found.coverage.value == 1
    # Each point lies in its own ball and in as many others' as it has them for neighbours: k + 1.
    assert found.density.value == pytest.approx((4 + 1) / 4)


def test_copies_of_few_points_and_a_far_origin_lose_nothing_to_rounding():
    points = np.repeat(np.random.default_rng(1).normal(size=(10, 8)), 6, axis=0) + 1000.0
    found = compare(points, points.copy())
    assert found.precision.value == found.recall.value == 1


def test_disjoint_sets_have_none():
    points = np.random.default_rng(2).normal(size=(200, 5))
    found = compare(points, points + 1000)
    values = (found.precision, found.recall, found.density, found.coverage)
    assert [value.value for value in values] == [0, 0, 0, 0]


def test_coverage_and_density_of_the_same_distribution():
    """1 - prod (N - i)/(2N - i), i = 1..4, about 15/16, and density 1, in any dimension."""
    rng, N = np.random.default_rng(3), 400
    pairs = [rng.normal(size=(2, N, dimension)) for dimension in (1, 2, 8) for _ in range(10)]
    found = [compare(points, others) for points, others in pairs]
    i = np.arange(1, 5)
    expected = 1 - np.prod((N - i) / (2 * N - i))
    assert np.mean([f.coverage.value for f in found]) == pytest.approx(expected, abs=0.01)
    assert np.mean([f.density.value for f in found]) == pytest.approx(1, abs=0.03)


def test_a_dropped_mode_costs_recall_and_an_invented_one_precision():
    rng = np.random.default_rng(4)
    one = rng.normal(size=(400, 3))
    two = rng.normal(size=(400, 3)) + np.where(np.arange(400) < 200, 0, 100)[:, None]
    dropped, invented = compare(one, two), compare(two, one)
    assert dropped.precision.value > 0.9 and 0.4 < dropped.recall.value <= 0.5
    assert invented.recall.value > 0.9 and 0.4 < invented.precision.value <= 0.5
    assert dropped.precision.value == invented.recall.value


def test_neither_shift_nor_scale_nor_rotation_matters():
    rng = np.random.default_rng(5)
    points, others = rng.normal(size=(2, 100, 4))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    moved = compare(3 * points @ rotation + 2, 3 * others @ rotation + 2, num_neighbors=2)
    assert moved == compare(points, others, num_neighbors=2)


def test_unusable_input_is_refused():
    points = np.zeros((6, 2))
    with pytest.raises(ValueError, match="as many of one as of the other"):
        compare(points, points[:5])
    with pytest.raises(ValueError, match="expected 1 to 5"):
        compare(points, points, num_neighbors=6)
    with pytest.raises(ValueError, match="expected finite"):
        compare(points * np.nan, points)
