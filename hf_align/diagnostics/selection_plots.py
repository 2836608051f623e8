"""Draws best-of-n: gold and proxy against the distance from the base policy, n above it, and Gao's
two laws as fitted.
"""

from __future__ import annotations

import numpy as np

from hf_align.diagnostics.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    new_figure,
    style_axis,
)
from hf_align.diagnostics.selection import Selection
from hf_align.statistics import clustered_means

_LAWS = {"best_of_n": ("d (α − β d)", BLUE, "--"), "rl": ("d (α − β ln d)", BLACK, ":")}
_LABEL_GAP = 0.06  # of the axis: labels of n that would be nearer are left out


def selection_figure(
    found: Selection,
    select_n: int,
    *,
    peak_n: int | None = None,
    title: str = "Best-of-n: reward against distance from the base policy",
):
    """Gold, and below it the proxy, against sqrt(KL), with 95 % bands clustered by prompt.

    Hollow markers are beyond N/4, where an n is averaged over few subsets of the pool.

    Args:
        found: From `judge_selection`.
        select_n: The n that is used, marked.
        peak_n: The n at which gold peaked before it, marked in gold's panel.
        title: Heading.

    Returns:
        A matplotlib `Figure`.
    """
    panels = [("Gold reward", "gold", GREEN, "o"), ("Proxy score", "proxy", VERMILION, "s")]
    panels = [panel for panel in panels if getattr(found, panel[1]) is not None]
    figure = new_figure(height=1.6 + 2.9 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, name, color, marker) in zip(axes, panels, strict=True):
        _draw_band(axis, found, getattr(found, name), color, marker)
        _draw_laws(axis, found, name)
        means = getattr(found, name).mean(axis=1)
        if name == "gold" and peak_n is not None and peak_n != select_n:
            _mark(axis, found, means, peak_n, f"gold peak, n = {peak_n}", BLUE, "^")
        _mark(axis, found, means, select_n, f"best-of-{select_n}, used here", BLACK, "D")
        style_axis(axis)
        axis.set_ylabel(f"{label}\n(mean per completion)")
        # Not transparent: the base policy's line passes beneath.
        axis.legend(loc="lower right", edgecolor="none", framealpha=0.9, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    exact = "exact" if found.exact_kl else "by the winners' log-probabilities"
    how = exact if found.kl is not None else "nominal, an upper bound"
    axes[-1].set_xlabel(f"√KL(best-of-n‖base), √nats, {how}")
    widest = max(float(found.sqrt_kl.max()), 0.1)
    axes[-1].set_xlim(-0.03 * widest, 1.05 * widest)
    _label_ns(axes[0], found)
    return figure


def _draw_band(axis, found: Selection, values: np.ndarray, color: str, marker: str) -> None:
    d, few = found.sqrt_kl, ~found.low_variance
    estimates = clustered_means(values.T)
    mean = np.array([estimate.value for estimate in estimates])
    axis.plot(d, mean, color=color, linewidth=1.8, zorder=3)
    dots = {"linestyle": "none", "marker": marker, "markersize": 5, "color": color, "zorder": 4}
    axis.plot(d[~few], mean[~few], **dots)
    if few.any():
        axis.plot(d[few], mean[few], markerfacecolor="white", label="n > N/4: few subsets", **dots)
    if values.shape[1] > 1:
        axis.fill_between(
            d,
            [estimate.low for estimate in estimates],
            [estimate.high for estimate in estimates],
            color=color,
            alpha=0.18,
            linewidth=0,
            label="95 % interval over prompts",
            zorder=2,
        )
    axis.axhline(mean[0], color="#888888", linewidth=1, linestyle=":", zorder=1)


def _draw_laws(axis, found: Selection, name: str) -> None:
    start = float(getattr(found, name)[0].mean())
    for form, fit in found.fits.get(name, {}).items():
        shape, color, line = _LAWS[form]
        d = np.linspace(fit.fit.nearest, fit.fit.farthest, 200)
        label = f"{shape}, R² {_share(fit.fit.r_squared)}"
        axis.plot(
            d, start + fit.fit.law(d), color=color, linestyle=line, linewidth=1.2, label=label
        )


def _share(r_squared: float) -> str:
    """Three decimals that never round up to 1."""
    return f"{np.floor(r_squared * 1000) / 1000:.3f}"


def _mark(
    axis, found: Selection, means: np.ndarray, n: int, label: str, color: str, marker: str
) -> None:
    place = int(np.searchsorted(found.ns, n))
    style = {"linestyle": "none", "markeredgecolor": "white", "markersize": 9, "zorder": 5}
    axis.plot(found.sqrt_kl[place], means[place], color=color, marker=marker, label=label, **style)


def _label_ns(axis, found: Selection) -> None:
    """The n of powers of two on a second axis above, as far as there is room for them."""
    top = axis.secondary_xaxis("top")
    places, labels, last = [], [], -np.inf
    width = max(float(found.sqrt_kl.max()), 0.1)
    for n, d in zip(found.ns, found.sqrt_kl, strict=True):
        power = n & (n - 1) == 0 or n == found.ns[-1]
        if power and d - last >= _LABEL_GAP * width:
            places, labels, last = [*places, d], [*labels, str(n)], d
    top.set_xticks(places, labels)
    top.set_xlabel("n, completions that the best is chosen from", color=GREY, fontsize=9)
    top.tick_params(colors=GREY, labelsize=9)
    top.spines["top"].set_visible(False)
