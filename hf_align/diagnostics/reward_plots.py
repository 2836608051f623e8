"""Draws what a reward model's report shows: reliability, scores, accuracy by group, length, data.

Every figure is 800 px wide with Okabe and Ito's colours, told apart also in grey by marker and
line; bars are 95 % intervals clustered by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_align.diagnostics.accuracy import AccuracyGroup, equal_mass_bins
from hf_align.diagnostics.calibration import ReliabilityBin
from hf_align.diagnostics.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    common_bins,
    draw_histogram,
    new_figure,
    style_axis,
)
from hf_align.types import Estimate

SCATTER_LIMIT = 1500
"""More points than this are drawn as cells shaded by their number."""

_TITLE = {"loc": "left", "fontsize": 12, "fontweight": "bold"}
_CURVES = ((BLUE, "o"), (GREEN, "s"), (VERMILION, "^"), (BLACK, "D"))


def reliability_figure(
    bins: Sequence[ReliabilityBin],
    *,
    temperature: Estimate | None = None,
    calibration_error: Estimate | None = None,
    title: str = "Does the reward model know how sure to be?",
):
    """Observed against predicted agreement with the labels, and the fitted temperature's curve.

    Points on the diagonal are calibrated, points below it overconfident. The dashed curve is
    sigmoid(logit(p) / T): where it runs through the intervals one temperature repairs the margins.

    Args:
        bins: From `calibration.reliability`.
        temperature: Fitted temperature, named and drawn as a curve.
        calibration_error: Debiased calibration error, named above the legend.
        title: Heading.

    Returns:
        A matplotlib `Figure`.
    """
    figure = new_figure(height=5.2)
    axis = figure.subplots()
    style_axis(axis)
    start = min([0.5, *(b.observed.low for b in bins if b.observed.low is not None)])
    axis.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle=":", label="calibrated")
    if temperature is not None:
        confidence = np.linspace(0.5, 1 - 1e-9, 400)
        logit = np.log(confidence / (1 - confidence))
        axis.plot(
            confidence,
            1 / (1 + np.exp(-logit / temperature.value)),
            color=VERMILION,
            linewidth=1.8,
            linestyle="--",
            label=f"fitted temperature {_interval(temperature)}",
        )
    _draw_estimates(
        axis, [b.predicted for b in bins], [b.observed for b in bins], BLUE, "o", _counts(bins)
    )
    axis.set_xlim(0.49, 1.01)
    axis.set_ylim(start - 0.03, 1.03)
    axis.set_xlabel("Predicted probability of the completion with the higher score, σ(|margin|)")
    axis.set_ylabel("Share in which it is the preferred one")
    axis.set_title(title, **_TITLE)
    heading = calibration_error and f"calibration error, debiased: {_interval(calibration_error)}"
    style = {"loc": "upper left", "alignment": "left", "frameon": False, "fontsize": 9}
    axis.legend(title=heading, title_fontsize=9, **style)
    return figure


def score_figure(
    chosen_scores: ArrayLike, rejected_scores: ArrayLike, *, score_label: str = "Score"
):
    """Histograms of chosen and rejected scores, and of their difference.

    Args:
        chosen_scores: (N,) scores of the chosen completions.
        rejected_scores: (N,) scores of the rejected ones, same rows.
        score_label: What is scored, with its unit.

    Returns:
        A matplotlib `Figure`.
    """
    chosen, rejected = np.asarray(chosen_scores, float), np.asarray(rejected_scores, float)
    figure = new_figure(height=3.8)
    left, right = figure.subplots(1, 2)
    bins = common_bins([chosen, rejected], whole=False)
    for values, name, color, line in (
        (rejected, "rejected", VERMILION, "--"),
        (chosen, "chosen", BLUE, "-"),
    ):
        draw_histogram(left, values, bins, color, line, name)
        left.axvline(values.mean(), color=color, linestyle=line, linewidth=1)
    style_axis(left)
    left.set_xlabel(f"{score_label}\n(vertical lines: means)")
    left.set_ylabel("Share of completions")
    left.legend(loc="upper left", frameon=False, fontsize=9)
    margins = chosen - rejected
    draw_histogram(right, margins, common_bins([margins], whole=False), BLACK, "-", None)
    style_axis(right)
    right.axvline(0, color=GREY, linewidth=1, linestyle=":")
    right.set_xlabel("Margin, chosen minus rejected\n(right of 0: ordered as labelled)")
    right.set_ylabel("Share of pairs")
    for axis in (left, right):
        axis.set_ylim(0, axis.get_ylim()[1] * 1.15)
    share = ((np.sign(margins) + 1) / 2).mean()
    for x, side, part, word in (
        (0.02, "left", 1 - share, "wrong"),
        (0.98, "right", share, "right"),
    ):
        text = f"{100 * part:.0f} % {word}"
        right.text(x, 0.96, text, transform=right.transAxes, va="top", ha=side)
    return figure


@dataclass(frozen=True)
class AccuracyPanel:
    """Accuracy in ranges of one quantity, beside what it is to be compared with.

    Attributes:
        groups: The model's accuracy per range, from `accuracy.accuracy_by_value`.
        label: The quantity and its unit, below the axis.
        comparison: The same ranges for a ceiling or a baseline such as "always the longer".
        comparison_label: Its name.
    """

    groups: Sequence[AccuracyGroup]
    label: str
    comparison: Sequence[AccuracyGroup] | None = None
    comparison_label: str = ""


def accuracy_figure(panels: Sequence[AccuracyPanel]):
    """Accuracy against margin, length difference or any other number, one panel for each.

    Named groups (`accuracy.accuracy_by_group`) are drawn as rows of intervals.

    Args:
        panels: One to three panels, side by side.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: Without panels.
    """
    if not panels:
        raise ValueError("got no panels, expected at least one")
    most = max(len(p.groups) for p in panels)
    named = any(p.groups[0].center is None for p in panels)
    figure = new_figure(height=max(4.0, 0.32 * most + 1.6) if named else 4.0)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        if panel.groups[0].center is None:
            _draw_named(axis, panel)
        else:
            _draw_ranges(axis, panel)
    return figure


def length_figure(
    scores: ArrayLike,
    lengths: ArrayLike,
    *,
    correlation: Estimate | None = None,
    length_label: str = "Completion length, tokens",
    score_label: str = "Score",
):
    """Score against length: points or shaded cells, and the mean score by length.

    Args:
        scores: (N,) scores.
        lengths: (N,) lengths of the same completions.
        correlation: Within prompts, named in the heading; the picture itself also shows
            differences between prompts.
        length_label: The unit of length.
        score_label: What is scored.

    Returns:
        A matplotlib `Figure`.
    """
    scores, lengths = np.asarray(scores, float), np.asarray(lengths, float)
    figure = new_figure(height=4.4)
    axis = figure.subplots()
    style_axis(axis)
    if scores.size > SCATTER_LIMIT:
        columns, rows = common_bins([lengths], whole=True), common_bins([scores], whole=False)
        most = np.histogram2d(lengths, scores, (columns, rows))[0].max()
        # From below 0, so that a single completion is already grey.
        *_, cells = axis.hist2d(
            lengths, scores, (columns, rows), cmin=1, cmap="Greys", vmin=-0.2 * most
        )
        bar = figure.colorbar(cells, ax=axis, pad=0.01)
        bar.ax.set_ylim(1, most)
        bar.set_label("Completions")
        bar.outline.set_visible(False)
    else:
        axis.scatter(lengths, scores, s=10, color=GREY, alpha=0.35, linewidth=0)
    centers, means = _binned_means(lengths, scores)
    axis.plot(centers, means, "s-", color=VERMILION, markersize=5, label="mean score by length")
    axis.set_xlabel(length_label)
    axis.set_ylabel(score_label)
    heading = "Score against length"
    if correlation is not None:
        heading += f": correlation within prompts {_interval(correlation)}"
    axis.set_title(heading, **_TITLE)
    axis.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def learning_curve_figure(
    num_pairs: Sequence[int],
    accuracies: dict[str, Sequence[Estimate]],
    *,
    ceiling: Estimate | None = None,
    longest_wins: Estimate | None = None,
    title: str = "Accuracy against the number of preference pairs",
):
    """Held-out accuracy against the number of training pairs, on a logarithmic axis.

    Args:
        num_pairs: (K,) training pairs of each run; a number that returns is another seed, drawn
            as a point of its own, and the line goes through the mean.
        accuracies: Name of a curve, such as "label accuracy", to K estimates.
        ceiling: Accuracy that annotator noise allows on labels, drawn as a line.
        longest_wins: Accuracy of always preferring the longer completion, drawn as a line.
        title: Heading.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: If a curve has not K estimates, there are over four, or a number is below 1.
    """
    num_pairs = np.asarray(num_pairs, float)
    if len(accuracies) > len(_CURVES) or (num_pairs < 1).any():
        raise ValueError(
            f"got {len(accuracies)} curves at {num_pairs} pairs, expected at most {len(_CURVES)} "
            "curves and positive numbers of pairs"
        )
    figure = new_figure(height=4.4)
    axis = figure.subplots()
    style_axis(axis)
    axis.set_xscale("log")
    sizes = np.unique(num_pairs)
    axis.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
    shifts = np.linspace(-1, 1, len(accuracies)) if len(accuracies) > 1 else [0.0]
    curves = zip(accuracies.items(), _CURVES, shifts, strict=False)
    for (name, estimates), (color, marker), shift in curves:
        if len(estimates) != num_pairs.size:
            raise ValueError(f"{name} has {len(estimates)} estimates, expected {num_pairs.size}")
        # Curves and seeds stand a little apart, or their intervals would hide each other.
        x = num_pairs * 1.02**shift * _seed_shifts(num_pairs)
        _draw_estimates(axis, x, estimates, color, marker, None)
        values = np.array([estimate.value for estimate in estimates])
        means = [values[num_pairs == size].mean() for size in sizes]
        axis.plot(sizes * 1.02**shift, means, f"{marker}-", color=color, markersize=5, label=name)
    for estimate, name, line in (
        (ceiling, "noise ceiling of labels", "--"),
        (longest_wins, "always the longer", ":"),
    ):
        if estimate is not None:
            label = f"{name}, {estimate.value:.2f}"
            axis.axhline(estimate.value, color=GREY, linestyle=line, linewidth=1.3, label=label)
    axis.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("Training pairs")
    axis.set_ylabel("Share of held-out pairs ordered correctly")
    axis.set_title(title, **_TITLE)
    axis.legend(loc="best", frameon=False, fontsize=9)
    return figure


def _draw_ranges(axis, panel: AccuracyPanel) -> None:
    style_axis(axis)
    axis.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
    if panel.comparison is not None:
        axis.plot(
            [group.center for group in panel.comparison],
            [group.accuracy.value for group in panel.comparison],
            "s--",
            color=VERMILION,
            markersize=4,
            label=panel.comparison_label,
        )
    centers, accuracies = zip(*((g.center, g.accuracy) for g in panel.groups), strict=True)
    axis.plot(centers, [a.value for a in accuracies], color=BLUE, linewidth=1.4, zorder=2)
    _draw_estimates(axis, centers, accuracies, BLUE, "o", "reward model, 95 % interval")
    axis.set_ylim(min(axis.get_ylim()[0], 0.45), 1.03)
    axis.set_xlabel(panel.label)
    axis.set_ylabel("Share ordered as labelled")
    _legend_above(axis)


def _draw_named(axis, panel: AccuracyPanel) -> None:
    rows = np.arange(len(panel.groups))[::-1]
    if panel.comparison is not None:
        others = [group.accuracy.value for group in panel.comparison]
        axis.plot(others, rows, "s", color=VERMILION, label=panel.comparison_label)
    accuracies = [group.accuracy for group in panel.groups]
    values = np.array([accuracy.value for accuracy in accuracies])
    axis.errorbar(
        values,
        rows,
        xerr=_errors(values, accuracies),
        color=BLUE,
        fmt="o",
        capsize=3,
        linewidth=1.4,
        label="reward model, 95 % interval",
    )
    axis.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axis.set_yticks(rows, [f"{group.label} ({group.count:,})" for group in panel.groups])
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xlabel(f"Share ordered as labelled, by {panel.label}\n(in brackets: pairs)")
    _legend_above(axis)


def _legend_above(axis) -> None:
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, frameon=False, fontsize=9)


def _draw_estimates(
    axis,
    x: ArrayLike,
    estimates: Sequence[Estimate],
    color: str,
    marker: str,
    label: str | None,
) -> None:
    values = np.array([estimate.value for estimate in estimates])
    axis.errorbar(
        x,
        values,
        yerr=_errors(values, estimates),
        color=color,
        fmt=marker,
        markeredgecolor="white",
        linewidth=1.4,
        capsize=3,
        label=label,
        zorder=3,
    )


def _errors(values: np.ndarray, estimates: Sequence[Estimate]) -> np.ndarray:
    """(2, K) distances from the values to the ends of their intervals; 0 where there is none."""
    low = [e.value if e.low is None else e.low for e in estimates]
    high = [e.value if e.high is None else e.high for e in estimates]
    return np.maximum(0, np.stack([values - low, high - values]))


def _binned_means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean x and y in up to 12 ranges of equal mass; equal x stay together."""
    bins = equal_mass_bins(x, 12)
    counts = np.bincount(bins)
    return np.bincount(bins, x) / counts, np.bincount(bins, y) / counts


def _seed_shifts(num_pairs: np.ndarray) -> np.ndarray:
    """Factors that set runs of equal size apart on a logarithmic axis."""
    shifts = np.ones(num_pairs.size)
    for size in np.unique(num_pairs):
        runs = np.flatnonzero(num_pairs == size)
        shifts[runs] = 1.05 ** (np.arange(runs.size) - (runs.size - 1) / 2)
    return shifts


def _counts(bins: Sequence[ReliabilityBin]) -> str:
    counts = sorted({b.count for b in bins})
    pairs = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"{pairs} pairs each, 95 % interval"


def _interval(estimate: Estimate) -> str:
    text = f"{estimate.value:.2f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return text.replace("-", "−")
