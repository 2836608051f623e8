"""Draws what a cut by score did to a dataset: the scores with the cut, and the lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hf_align.diagnostics.plots import BLACK, BLUE, VERMILION, new_figure, style_axis

_NUM_BINS = 30
_TAILS = (0.002, 0.998)


def cut_figure(
    scores: ArrayLike,
    lengths: ArrayLike,
    cut: float,
    *,
    length_label: str = "Length, words",
):
    """Scores on both sides of the cut, and the lengths of kept and dropped rows.

    What lies beyond the middle 99.6 % is counted in the outermost bars.

    Args:
        scores: (N,) scores.
        lengths: (N,) lengths of the same rows.
        cut: Rows with at least this score are kept.
        length_label: The unit of length.

    Returns:
        A matplotlib `Figure`.
    """
    scores, lengths = np.asarray(scores, float), np.asarray(lengths, float)
    kept = scores >= cut
    figure = new_figure(height=3.8)
    left, right = figure.subplots(1, 2)
    edges = _edges_with_cut(scores, cut)
    counts = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0] / scores.size
    split = int(np.searchsorted(edges, cut - 1e-9 * (edges[-1] - edges[0])))
    for first, last, color, line in (
        (0, split, VERMILION, "--"),
        (split, len(counts), BLUE, "-"),
    ):
        if first < last:
            shares, sides = counts[first:last], edges[first : last + 1]
            left.stairs(shares, sides, fill=True, color=color, alpha=0.18)
            left.stairs(shares, sides, color=color, linestyle=line, linewidth=1.4)
    left.axvline(cut, color=BLACK, linewidth=1.2, linestyle="--")
    style_axis(left)
    left.set_ylim(0, 1.18 * counts.max())
    left.set_xlim(edges[0], edges[-1])
    beside = (cut - edges[0]) > 0.6 * (edges[-1] - edges[0])
    left.annotate(
        f"cut {cut:.3g}",
        (cut, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if beside else 5, -4),
        textcoords="offset points",
        ha="right" if beside else "left",
        va="top",
    )
    left.set_xlabel("Score")
    left.set_ylabel("Share of rows")
    _draw_lengths(right, lengths, kept, length_label)
    return figure


def _draw_lengths(axis, lengths: np.ndarray, kept: np.ndarray, label: str) -> None:
    low, high = np.quantile(lengths, _TAILS)
    step = max(1, int(np.ceil((high - low + 1) / _NUM_BINS)))
    edges = np.arange(np.floor(low) - 0.5, high + step + 0.5, step)
    for rows, name, color, line in (
        (~kept, "dropped", VERMILION, "--"),
        (kept, "kept", BLUE, "-"),
    ):
        if not rows.any():
            continue
        values = np.clip(lengths[rows], edges[0], edges[-1])
        shares = np.histogram(values, edges)[0] / values.size
        axis.stairs(shares, edges, fill=True, color=color, alpha=0.18)
        shown = f"{name}, {100 * rows.mean():.1f} % of rows"
        axis.stairs(shares, edges, color=color, linestyle=line, linewidth=1.8, label=shown)
        # Up to where the legend begins.
        axis.axvline(np.median(lengths[rows]), 0, 0.78, color=color, linestyle=line, linewidth=1)
    style_axis(axis)
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(0, 1.3 * axis.get_ylim()[1])
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel(f"{label}\n(vertical lines: medians)")
    axis.set_ylabel("Share of rows on that side of the cut")
    axis.legend(loc="upper right", frameon=False, fontsize=9)


def _edges_with_cut(scores: np.ndarray, cut: float) -> np.ndarray:
    """Edges of equal bins over the middle of the scores, one of them at the cut."""
    low, high = np.quantile(scores, _TAILS)
    low, high = min(low, cut), max(high, cut)
    if low == high:
        return np.array([cut - 0.5, cut, cut + 0.5])
    width = (high - low) / _NUM_BINS
    below, above = (int(np.ceil(gap / width - 1e-9)) for gap in (cut - low, high - cut))
    # The cut's own bin is above it, also where it is the highest score.
    return cut + width * np.arange(-below, max(above, 1) + 1)
