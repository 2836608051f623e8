"""Correlation by groups of prompts: the textbook's number, and an interval that knows clusters."""

import numpy as np
import pytest

from hf_align.diagnostics.correlation import grouped_correlation
from hf_align.diagnostics.filter_plots import cut_figure
from hf_align.diagnostics.plots import save_figure


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("num_groups", [3, 60])
def test_it_is_pearsons_number_however_rows_are_grouped(shift, num_groups):
    rng = np.random.default_rng(0)
    a = rng.normal(size=500) + shift
    b = 0.6 * a + rng.normal(size=500)
    found = grouped_correlation(a, b, rng.integers(num_groups, size=500))
    assert found.value == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
    assert found.n == 500 and found.low < found.value < found.high


def test_known_ends():
    a = np.arange(100.0)
    assert grouped_correlation(a, 2 * a + 1, np.arange(100)).value == pytest.approx(1)
    assert grouped_correlation(a, -a, np.arange(100)).low == pytest.approx(-1)
    # Four rows by hand: Σab = 2, Σa² = 10, Σb² = 2 after centring.
    found = grouped_correlation([-2, -1, 1, 2], [-1, 0, 0, 1], [0, 0, 1, 1])
    assert found.value == pytest.approx(4 / np.sqrt(20))
    alone = grouped_correlation([-2, -1, 1, 2], [-1, 0, 0, 1], [0, 0, 0, 0])
    assert (alone.low, alone.high) == (None, None)


@pytest.mark.parametrize("num_groups", [25, 400])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(num_groups):
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        a = rng.normal(size=num_groups * 2)
        b = 0.5 * a + np.sqrt(0.75) * rng.normal(size=a.size)
        found = grouped_correlation(a, b, np.arange(a.size) % num_groups, seed=seed)
        covered += found.low <= 0.5 <= found.high
    assert 88 <= covered <= 99  # 95 expected; the binomial's deviation is 2.2


def test_rows_repeated_within_a_group_do_not_narrow_the_interval():
    rng = np.random.default_rng(2)
    a = rng.normal(size=200)
    b = 0.5 * a + rng.normal(size=200)
    once = grouped_correlation(a, b, np.arange(200))
    often = grouped_correlation(np.repeat(a, 9), np.repeat(b, 9), np.repeat(np.arange(200), 9))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize(
    ("a", "b", "groups"),
    [
        ([1.0, 1.0], [1.0, 2.0], [0, 1]),
        ([1.0, 2.0], [3.0, 3.0], [0, 1]),
        ([1.0, np.nan], [1.0, 2.0], [0, 1]),
        ([1.0, 2.0], [1.0, 2.0, 3.0], [0, 1]),
        ([1.0], [1.0], [0]),
    ],
)
def test_what_has_no_correlation_is_refused(a, b, groups):
    with pytest.raises(ValueError):
        grouped_correlation(a, b, groups)


@pytest.mark.parametrize("cut", [-5.0, 0.0, 1.7, 2.0])
def test_the_figure_has_every_row_on_its_side_of_the_cut(cut, tmp_path):
    scores = np.array([0.0, 0.5, 1.0, 1.7, 2.0, 2.0])
    figure = cut_figure(scores, np.arange(6.0), cut)
    left = figure.axes[0]
    below, above = 0.0, 0.0
    filled = [patch for patch in left.patches if patch.get_fill()]
    for patch in filled:
        values, edges, _ = patch.get_data()
        below += sum(values[edges[1:] <= cut + 1e-9])
        above += sum(values[edges[:-1] >= cut - 1e-9])
    assert above == pytest.approx((scores >= cut).mean())
    assert below == pytest.approx((scores < cut).mean())
    assert save_figure(figure, tmp_path / "cut.png").stat().st_size > 5000


def test_equal_scores_and_lengths_have_a_figure_too(tmp_path):
    figure = cut_figure([3.0, 3.0], [7, 7], 3.0)
    assert save_figure(figure, tmp_path / "cut.png").stat().st_size > 5000
