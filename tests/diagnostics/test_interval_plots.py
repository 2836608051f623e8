"""Rows of intervals show the numbers they were given, in their order, 800 pixels wide."""

import numpy as np
import pytest

from hf_align.diagnostics.interval_plots import (
    GOLD,
    Series,
    bias_figure,
    disagreement_figure,
    ranking_figure,
)
from hf_align.diagnostics.plots import DPI, save_figure
from hf_align.types import Estimate

NAMES = ["this reward model", "always the longer", "imitation: log-likelihood per token"]
HALF, MOST = Estimate(0.5, 0.4, 0.6, 90), Estimate(0.8, 0.7, 0.9, 90)


def points(axis):
    """(x, y) of every drawn marker, from the top down."""
    markers = [line for line in axis.lines if line.get_marker() in ("o", "s", "^")]
    found = np.concatenate([line.get_xydata() for line in markers])
    return found[np.argsort(-found[:, 1])]


def labels(figure):
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def test_rankings_are_rows_from_the_top_with_chance_and_ceiling():
    figure = ranking_figure(NAMES, [MOST, HALF, MOST], [MOST, None, HALF], ceiling=HALF)
    [axis] = figure.axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == NAMES
    # The second ranking has no accuracy by gold.
    assert points(axis)[:, 0] == pytest.approx([0.8, 0.8, 0.5, 0.8, 0.5])
    assert {"chance", "noise ceiling of labels, 0.50", "as labelled"} <= labels(figure)


def test_bias_has_correlations_on_the_left_and_flips_on_the_right():
    figure = bias_figure(
        ["words", "bold spans"],
        [Series("score", [MOST, HALF]), Series("gold", [HALF, None], GOLD)],
        ["filler"],
        [Series("score", [MOST])],
    )
    left, right = figure.axes
    assert points(left)[:, 0] == pytest.approx([0.8, 0.5, 0.5])
    assert points(right)[:, 0] == pytest.approx([0.8])
    assert labels(figure) == {"score", "gold", "indifferent"}


def test_disagreement_begins_at_zero_and_leaves_out_what_does_not_apply():
    figure = disagreement_figure(["held out", "shuffled"], [HALF, MOST], [None, MOST])
    left, right = figure.axes
    assert points(left)[:, 0] == pytest.approx([0.5, 0.8])
    assert points(right)[:, 0] == pytest.approx([0.8])
    for axis in (left, right):
        low, high = axis.get_xlim()
        assert -0.05 < low <= 0 and high > 0.9


def test_figures_are_800_pixels_wide_and_their_text_stays_inside(tmp_path):
    many = [f"feature {number}" for number in range(8)]
    figures = [
        ranking_figure(NAMES[:1], [Estimate(1.0, None, None, 1)]),
        ranking_figure(NAMES, [MOST] * 3, [HALF] * 3, ceiling=MOST),
        bias_figure(many, [Series("score", [MOST] * 8)], NAMES[:2], [Series("score", [HALF] * 2)]),
        disagreement_figure(NAMES, [MOST] * 3, [None, HALF, MOST]),
    ]
    for number, figure in enumerate(figures):
        save_figure(figure, tmp_path / f"{number}.png")
        assert figure.get_figwidth() * DPI == 800
        renderer = figure.canvas.get_renderer()
        for axis in figure.axes:
            for text in (axis.xaxis.label, *axis.get_yticklabels()):
                box = text.get_window_extent(renderer)
                assert not text.get_text() or (box.x0 >= 0 and box.x1 <= 800), text.get_text()
