"""Draws the report's figures: gold and proxy against KL, and histograms of what changed.

The only module that needs matplotlib, which is imported on use and drawn with Agg, never through
pyplot's global state. Colours are Okabe and Ito's, told apart also in grey by marker and line.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hf_align.diagnostics.overoptimization import Curve
from hf_align.files import replacing
from hf_align.statistics import clustered_mean

BLACK, GREY, GREEN, BLUE, VERMILION = "#000000", "#666666", "#009E73", "#0072B2", "#D55E00"

DPI = 100
WIDTH_INCHES = 8  # 800 px


def overoptimization_figure(
    curve: Curve,
    *,
    peak_index: int | None = None,
    title: str = "Reward against distance from the reference",
):
    """Gold, and below it the proxy, against sqrt(KL), with 95 % bands clustered by prompt.

    Gold and proxy have panels of their own because their units differ; both share the KL axis.

    Args:
        curve: Checkpoints by prompts; at least one of gold and proxy.
        peak_index: Checkpoint to mark as gold's peak.
        title: Heading.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: If the curve has neither gold nor proxy.
    """
    panels = [("Gold reward", curve.gold, GREEN, "o"), ("Proxy score", curve.proxy, VERMILION, "s")]
    panels = [panel for panel in panels if panel[1] is not None]
    if not panels:
        raise ValueError("the curve has neither gold nor proxy, expected at least one")
    figure = new_figure(height=2.0 + 2.4 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, values, color, marker) in zip(axes, panels, strict=True):
        _draw_band(axis, curve.sqrt_kl, values, color, marker)
        axis.axhline(values[0].mean(), color="#888888", linewidth=1, linestyle=":", zorder=1)
        axis.set_ylabel(f"{label}\n(mean per completion)")
        _mark(axis, curve, values, -1, "shipped policy", BLACK, "D")
        _mark(axis, curve, values, 0, "reference", GREY, "o")
        if peak_index is not None and values is curve.gold and 0 < peak_index < len(values) - 1:
            _mark(axis, curve, values, peak_index, "gold peak (smoothed)", BLUE, "^")
        axis.legend(loc="best", frameon=False, fontsize=9)
    axes[0].set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes[-1].set_xlabel("√KL(π‖π_ref), √nats, summed over the completion")
    widest = max(curve.sqrt_kl.max(), 0.1)  # a policy that hardly moved still gets an axis
    axes[-1].set_xlim(-0.02 * widest, 1.03 * widest)
    return figure


def gain_figure(
    reference_gold: np.ndarray,
    policy_gold: np.ndarray,
    reference_lengths: np.ndarray,
    policy_lengths: np.ndarray,
    *,
    gold_label: str = "Gold reward per completion",
):
    """Histograms of gold and of length, reference against policy.

    Args:
        reference_gold: Gold of the reference's completions, any shape.
        policy_gold: Gold of the policy's completions.
        reference_lengths: Tokens of the reference's completions.
        policy_lengths: Tokens of the policy's completions.
        gold_label: What the first panel shows, with its unit.

    Returns:
        A matplotlib `Figure`.
    """
    figure = new_figure(height=3.8)
    left, right = figure.subplots(1, 2)
    gold = [np.ravel(a).astype(float) for a in (reference_gold, policy_gold)]
    lengths = [np.ravel(a).astype(float) for a in (reference_lengths, policy_lengths)]
    _draw_histograms(left, gold, common_bins(gold, whole=False), gold_label)
    _draw_histograms(right, lengths, common_bins(lengths, whole=True), "Completion length, tokens")
    left.set_ylabel("Share of completions")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    return figure


def save_figure(figure, path: str | Path) -> Path:
    """Saves the figure whole or not at all; the suffix (.png or .svg) chooses the format.

    Returns:
        The path.

    Raises:
        ValueError: On another suffix.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"got figure file {path.name!r}, expected .png or .svg")
    with replacing(path) as temporary:
        # No date in the file: equal data gives equal bytes.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(temporary, format=path.suffix[1:], dpi=DPI, metadata=metadata)
    return path


def new_figure(height: float):
    """An empty white figure, 800 px wide and `height` inches high, outside pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained", facecolor="white"
    )
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    return figure


def style_axis(axis) -> None:
    """Two spines, light horizontal lines behind the data, room above and below it."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.margins(y=0.12)


def _draw_band(axis, sqrt_kl: np.ndarray, values: np.ndarray, color: str, marker: str) -> None:
    """Means in the order of the checkpoints, and a vertical interval at each."""
    prompts = np.arange(values.shape[1])
    estimates = [clustered_mean(row, prompts) for row in values]
    mean = np.array([estimate.value for estimate in estimates])
    axis.plot(sqrt_kl, mean, color=color, marker=marker, markersize=5, linewidth=1.8, zorder=3)
    if len(prompts) > 1:
        low = np.array([estimate.low for estimate in estimates])
        high = np.array([estimate.high for estimate in estimates])
        order = np.argsort(sqrt_kl, kind="stable")
        axis.fill_between(
            sqrt_kl[order],
            low[order],
            high[order],
            color=color,
            alpha=0.18,
            linewidth=0,
            label="95 % interval over prompts",
            zorder=2,
        )
    style_axis(axis)


def _mark(
    axis, curve: Curve, values: np.ndarray, index: int, label: str, color: str, marker: str
) -> None:
    axis.plot(
        curve.sqrt_kl[index],
        values[index].mean(),
        color=color,
        marker=marker,
        markersize=9,
        linestyle="none",
        label=label,
        markeredgecolor="white",
        zorder=4,
    )


def common_bins(groups: list[np.ndarray], *, whole: bool) -> np.ndarray:
    """Up to 30 common bins over both groups; whole numbers get bins centred on them."""
    values = np.concatenate(groups)
    low, high = values.min(), values.max()
    if whole:
        step = max(1, int(np.ceil((high - low + 1) / 30)))
        return np.arange(low - 0.5, high + step + 0.5, step)
    return np.linspace(low, high, 25) if high > low else np.array([low - 0.5, low + 0.5])


def draw_histogram(
    axis, values: np.ndarray, bins: np.ndarray, color: str, line: str, label: str | None
) -> None:
    """Shares of the values in each bin: a light area with a clear outline."""
    weights = np.full(values.size, 1 / values.size)
    axis.hist(values, bins=bins, weights=weights, color=color, alpha=0.18)
    axis.hist(
        values,
        bins=bins,
        weights=weights,
        histtype="step",
        color=color,
        linestyle=line,
        linewidth=1.8,
        label=label,
    )


def _draw_histograms(axis, groups: list[np.ndarray], bins: np.ndarray, label: str) -> None:
    styles = (("reference", GREY, "--"), ("policy", BLUE, "-"))
    for values, (name, color, line) in zip(groups, styles, strict=True):
        draw_histogram(axis, values, bins, color, line, name)
        axis.axvline(values.mean(), color=color, linestyle=line, linewidth=1)
    axis.set_xlabel(f"{label}\n(vertical lines: means)")
    style_axis(axis)
