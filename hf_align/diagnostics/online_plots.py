"""Figures of online rounds: gold, proxy and the proxy's accuracy by round, and gold along the KL.

Intervals are 95 %, clustered by prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hf_align.diagnostics.goodhart_style import (
    COLORS,
    MARKERS,
    draw_curve,
    draw_point,
    finish,
    label_axes,
)
from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.plots import new_figure
from hf_align.statistics import clustered_mean
from hf_align.types import Estimate

_APART = 0.06  # of two series of one panel, in rounds


def rounds_figure(panels: Sequence[tuple[str, Mapping[str, Mapping[int, Estimate]]]]):
    """One panel per quantity, with one series or several against the number of the round.

    Args:
        panels: `(label of the y axis, {series: {round: estimate}})`, those without numbers left
            out.

    Returns:
        A matplotlib `Figure`.
    """
    figure = new_figure(height=1.2 + 2.0 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    names = list(dict.fromkeys(name for _, series in panels for name in series))
    numbers = sorted({n for _, series in panels for one in series.values() for n in one})
    for axis, (label, series) in zip(axes, panels, strict=True):
        for place, (name, by_round) in enumerate(series.items()):
            i = names.index(name)
            offset = _APART * (place - (len(series) - 1) / 2)
            style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % 6]}
            x = [number + offset for number in by_round]
            axis.plot(x, [one.value for one in by_round.values()], linewidth=1.4, **style)
            for k, (at, one) in enumerate(zip(x, by_round.values(), strict=True)):
                shown = name if k == 0 else None
                draw_point(axis, at, one.value, one, *style.values(), shown, vertical=True)
        label_axes(axis, label, "")
    axes[-1].set_xlabel("Round")
    axes[-1].set_xticks(numbers)
    axes[-1].set_xlim(min(numbers) - 0.4, max(numbers) + 0.4)
    finish(figure, "What every round bought", list(axes), columns=3)
    return figure


def along_kl_figure(curves: Mapping[str, Curve]):
    """Gold against sqrt(KL), a line per round.

    Args:
        curves: The policies' training by the name of the round; those with gold.

    Returns:
        A matplotlib `Figure`.
    """
    figure = new_figure(height=4.6)
    axis = figure.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        prompts = np.arange(curve.gold.shape[1])
        draw_curve(
            axis, curve.sqrt_kl, [clustered_mean(row, prompts) for row in curve.gold], i, name
        )
    start = next(iter(curves.values())).gold[0].mean()
    axis.axhline(start, color="#888888", linewidth=1, linestyle=":", zorder=1)
    label_axes(axis, "Gold reward", "√KL(π‖π_ref), √nats, summed over the completion")
    finish(figure, "Gold along the KL axis, by round", [axis])
    return figure
