"""Accuracy by group and by ranges of a number, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.diagnostics.accuracy import accuracy_by_group, accuracy_by_value, equal_mass_bins


def test_accuracy_by_group_by_hand():
    groups = accuracy_by_group([1, 0, 1, 0.5], ["b", "b", "a", "b"], [0, 1, 2, 3])
    assert [(g.label, g.accuracy.value, g.count) for g in groups] == [("a", 1.0, 1), ("b", 0.5, 3)]
    assert all(g.center is None for g in groups)


def test_accuracy_by_value_with_edges_and_equal_mass():
    correct, values, prompts = [0, 0, 1, 1, 1], [-3.0, -1.0, 0.0, 2.0, 9.0], np.arange(5)
    groups = accuracy_by_value(correct, values, prompts, edges=[0, 5, 100])
    assert [(g.center, g.accuracy.value, g.count) for g in groups] == [
        (-2.0, 0.0, 2),
        (1.0, 1.0, 2),
        (9.0, 1.0, 1),
    ]
    assert [g.label for g in groups] == ["−3 to −1", "0 to 2", "9"]
    halves = accuracy_by_value(np.ones(100), np.arange(100.0), np.arange(100), num_bins=4)
    assert [g.count for g in halves] == [25] * 4


def test_symmetric_ranges_do_not_mix_signs():
    rng = np.random.default_rng(9)
    differences = rng.integers(-12, 13, 500)
    longer = (np.sign(differences) + 1) / 2
    groups = accuracy_by_value(longer, differences, np.arange(500), symmetric=True)
    assert sum(g.count for g in groups) == 500
    centers = [g.center for g in groups]
    assert centers == sorted(centers)
    for group in groups:
        assert group.accuracy.value == (np.sign(group.center) + 1) / 2


def test_unusable_groups_are_refused():
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        accuracy_by_group([2.0], ["a"], [0])
    with pytest.raises(ValueError, match="expected"):
        accuracy_by_group([1.0], ["a", "b"], [0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        accuracy_by_value([1.0], [math.nan], [0])


def test_bins_are_ascending_none_is_empty_and_equal_values_stay_together():
    rng = np.random.default_rng(10)
    for values in (rng.normal(size=97), rng.integers(0, 3, 50), np.zeros(5), np.array([4.0])):
        bins = equal_mass_bins(values, 10)
        assert set(bins) == set(range(bins.max() + 1))
        assert bins.max() < 10
        order = np.argsort(values)
        assert (np.diff(bins[order]) >= 0).all()
        assert all(len(set(bins[values == value])) == 1 for value in values)
    with pytest.raises(ValueError, match="num_bins 0"):
        equal_mass_bins([1.0], 0)
