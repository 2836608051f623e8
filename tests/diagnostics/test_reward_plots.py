"""The reward report's figures show the numbers they were given, with units, 800 pixels wide."""

from __future__ import annotations

import numpy as np
import pytest

from hf_align.diagnostics.accuracy import accuracy_by_group, accuracy_by_value
from hf_align.diagnostics.calibration import fitted_temperature, reliability
from hf_align.diagnostics.plots import DPI, save_figure
from hf_align.diagnostics.reward_plots import (
    SCATTER_LIMIT,
    AccuracyPanel,
    accuracy_figure,
    learning_curve_figure,
    length_figure,
    reliability_figure,
    score_figure,
)
from hf_align.types import Estimate

N = 400
PROMPTS = np.arange(N) // 2


@pytest.fixture(scope="module")
def margins():
    return np.random.default_rng(0).normal(0.8, 1.5, N)


def legend(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def drawn(axis) -> list[np.ndarray]:
    return [np.asarray(line.get_xydata(), float) for line in axis.lines]


def shows(axis, x, y) -> bool:
    points = np.column_stack([x, y]).astype(float)
    return any(d.shape == points.shape and np.allclose(d, points) for d in drawn(axis))


def test_reliability_shows_bins_diagonal_and_temperature(margins):
    bins = reliability(margins, PROMPTS)
    temperature = fitted_temperature(margins, PROMPTS)
    error = Estimate(0.03, -0.01, 0.07, 200)
    axis = reliability_figure(bins, temperature=temperature, calibration_error=error).axes[0]
    assert shows(axis, [b.predicted for b in bins], [b.observed.value for b in bins])
    assert shows(axis, [0.5, 1], [0.5, 1])
    curve = next(d for d in drawn(axis) if len(d) > 100)
    # On the curve log odds are divided by T.
    x, y = curve[200]
    assert np.log(y / (1 - y)) == pytest.approx(np.log(x / (1 - x)) / temperature.value)
    assert any(f"temperature {temperature.value:.2f}" in text for text in legend(axis))
    assert "0.03 [−0.01, 0.07]" in axis.get_legend().get_title().get_text()
    low, high = axis.get_ylim()
    assert all(low < b.observed.low and b.observed.high < high for b in bins)


def test_scores_show_shares_and_how_many_are_ordered_right():
    chosen, rejected = np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 1.0, 1.0, 2.0])
    left, right = score_figure(chosen, rejected).axes
    assert {text.get_text() for text in right.texts} == {"75 % right", "25 % wrong"}
    assert sum(p.get_height() for p in left.patches if hasattr(p, "get_height")) == pytest.approx(2)
    assert legend(left) == ["rejected", "chosen"]


def test_accuracy_panels_show_groups_and_comparisons(margins):
    correct = (np.sign(margins) + 1) / 2
    lengths = np.random.default_rng(1).integers(-9, 10, N)
    model = accuracy_by_value(correct, lengths, PROMPTS, symmetric=True)
    longer = accuracy_by_value((np.sign(lengths) + 1) / 2, lengths, PROMPTS, symmetric=True)
    label = "Length of chosen minus rejected, tokens"
    figure = accuracy_figure(
        [AccuracyPanel(model, label, longer, "always the longer"), AccuracyPanel(model, label)]
    )
    first, second = figure.axes
    for groups in (model, longer):
        assert shows(first, [g.center for g in groups], [g.accuracy.value for g in groups])
    assert first.get_xlabel() == label
    assert "always the longer" in legend(first)
    assert len(legend(second)) == 1
    with pytest.raises(ValueError, match="no panels"):
        accuracy_figure([])


def test_named_groups_are_rows_with_their_sizes(margins):
    groups = accuracy_by_group(margins > 0, np.array(["base", "online"])[PROMPTS % 2], PROMPTS)
    axis = accuracy_figure([AccuracyPanel(groups, "subset", groups, "always the longer")]).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["base (200)", "online (200)"]
    assert shows(axis, [g.accuracy.value for g in groups], [1, 0])


@pytest.mark.parametrize("n", [200, SCATTER_LIMIT + 1])
def test_length_figure_shows_the_mean_score_by_length(n, tmp_path):
    lengths = np.arange(n) % 20 + 1
    scores = 0.5 * lengths
    figure = length_figure(scores, lengths, correlation=Estimate(1.0, 0.9, 1.0, n))
    axis = figure.axes[0]
    line = next(d for d in drawn(axis) if len(d) > 5)
    assert line[:, 1] == pytest.approx(0.5 * line[:, 0])
    assert "1.00 [0.90, 1.00]" in axis.get_title(loc="left")
    assert axis.get_xlabel() == "Completion length, tokens"
    save_figure(figure, tmp_path / "x.png")


def test_learning_curve_goes_through_the_mean_over_seeds():
    sizes = [250, 250, 1000, 1000]
    estimates = [Estimate(x, x - 0.03, x + 0.03, 200) for x in (0.58, 0.60, 0.66, 0.70)]
    figure = learning_curve_figure(
        sizes,
        {"gold order": estimates},
        ceiling=Estimate(0.72, None, None, 200),
        longest_wins=Estimate(0.55, 0.5, 0.6, 200),
    )
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    assert shows(axis, [250, 1000], [0.59, 0.68])
    assert [t.get_text() for t in axis.get_xticklabels()] == ["250", "1,000"]
    assert "gold order" in legend(axis)
    assert "noise ceiling of labels, 0.72" in legend(axis)
    levels = {d[0, 1] for d in drawn(axis) if len(d) == 2 and d[0, 1] == d[1, 1]}
    assert {0.72, 0.55} <= levels
    with pytest.raises(ValueError, match="has 1 estimates, expected 4"):
        learning_curve_figure(sizes, {"gold order": estimates[:1]})
    with pytest.raises(ValueError, match="positive numbers"):
        learning_curve_figure([0], {"gold order": estimates[:1]})


def test_smallest_data_still_draw_800_pixels_wide(tmp_path):
    one = Estimate(0.5, None, None, 1)
    groups = accuracy_by_value([1.0], [2.0], [0])
    figures = [
        reliability_figure(reliability([0.0], [0])),
        score_figure([1.0], [1.0]),
        accuracy_figure([AccuracyPanel(groups, "margin")]),
        length_figure([1.0], [5]),
        length_figure(np.ones(SCATTER_LIMIT + 1), np.full(SCATTER_LIMIT + 1, 7)),
        learning_curve_figure([100], {"labels": [one]}),
    ]
    for i, figure in enumerate(figures):
        assert save_figure(figure, tmp_path / f"{i}.png").stat().st_size > 0
        assert figure.get_figwidth() * DPI == 800
