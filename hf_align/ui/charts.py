"""Charts as inline SVG: curves with bands against the distance, and a scatter of one prompt's pool.

Everything in them is a number or an escaped name, colours come from the page's style, and runs
differ by marker and line as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_align.types import Estimate
from hf_align.ui.safe_text import escaped

WIDTH, HEIGHT = 600, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 46
MARKS = ("circle", "square", "triangle", "diamond", "cross", "plus")
NAMES = ("circle", "square", "triangle", "diamond", "cross", "plus sign")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 4")
_MOST_MARKERS = 22


@dataclass(frozen=True)
class Series:
    """One run in a chart.

    Attributes:
        name: Its name.
        style: Its place among the runs shown; gives colour, marker and line.
        x: (C,) distances.
        y: C values with intervals.
    """

    name: str
    style: int
    x: np.ndarray
    y: Sequence[Estimate]


@dataclass(frozen=True)
class Axes:
    """Where numbers are on a chart, in its own units.

    Attributes:
        x: Smallest and largest number across.
        y: Smallest and largest number upwards.
    """

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.y
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def curve_chart(series: Sequence[Series], farthest: float, what: str, unit: str) -> str:
    """Curves with their 95 % bands; a cursor that the page's script moves is hidden in it.

    Args:
        series: The runs; without any the chart says so.
        farthest: Right end of the axis, sqrt(nats).
        what: What is drawn, for its title.
        unit: Of the values.
    """
    if not series:
        return f'<p class="hint">None of these runs recorded {escaped(what.lower())}.</p>'
    ends = [end for one in series for e in one.y for end in (e.low, e.high, e.value)]
    values = [end for end in ends if end is not None]
    axes = Axes((0.0, farthest * 1.04 or 1.0), _padded(min(*values, 0.0), max(*values, 0.0)))
    names = ", ".join(one.name for one in series)
    title = f"{what} against the square root of the KL from the reference: {names}"
    body = [_grid(axes), _labels("√KL from the reference, √nats", f"gain, {unit}")]
    body += [_band(one, axes) for one in series]
    body += [_line(one, axes) for one in series]
    body.append(
        f'<g class="cursor" visibility="hidden"><line x1="0" x2="0" y1="{TOP}" '
        f'y2="{HEIGHT - BOTTOM}"></line><circle r="8"></circle></g>'
    )
    low, high = axes.y
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="'
        f'{escaped(title)}. The same numbers are in the table below." data-xmax="{axes.x[1]:.6g}" '
        f'data-ymin="{low:.6g}" data-ymax="{high:.6g}" data-left="{LEFT}" data-right="{RIGHT}" '
        f'data-top="{TOP}" data-bottom="{BOTTOM}">{"".join(body)}</svg>'
    )


def pool_chart(proxy: np.ndarray, gold: np.ndarray | None, drawn: int, winner: int) -> str:
    """One prompt's completions: proxy across, gold upwards; the first ones drawn, one chosen.

    Args:
        proxy: (N,) scores.
        gold: (N,) gold; None puts all on one line.
        drawn: How many count as drawn.
        winner: Which of them was chosen.
    """
    up = np.zeros(len(proxy)) if gold is None else gold
    axes = Axes(
        _padded(float(proxy.min()), float(proxy.max())), _padded(float(up.min()), float(up.max()))
    )
    body = [_grid(axes, upwards=gold is not None)]
    body.append(_labels("proxy score", "" if gold is None else "gold"))
    for place in sorted(range(len(proxy)), key=lambda i: (i < drawn, i == winner)):
        kind = "chosen" if place == winner else "drawn" if place < drawn else "left"
        x, y = axes.across(float(proxy[place])), axes.up(float(up[place]))
        size = 8 if kind == "chosen" else 4.5
        body.append(f'<path class="{kind}" d="{_mark(0, x, y, size)}"></path>')
        if kind == "chosen":
            body.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="12"></circle>')
    title = (
        f"The {len(proxy)} completions of this prompt by proxy score"
        f"{'' if gold is None else ' and gold'}; {drawn} are drawn, the best by the proxy is ringed"
    )
    return (
        f'<svg class="chart pool" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="'
        f'{escaped(title)}">{"".join(body)}</svg>'
    )


def glyph(style: int) -> str:
    """The marker and line of a run, for a legend; its name says the same in words."""
    place = style % len(MARKS)
    return (
        f'<svg class="glyph s{place}" viewBox="0 0 44 16" width="44" height="16" '
        'aria-hidden="true">'
        f'<path class="line" stroke-dasharray="{_DASHES[place]}" d="M1 8H43"></path>'
        f'<path class="mark" d="{_mark(place, 22, 8, 5)}"></path></svg>'
    )


def _grid(axes: Axes, upwards: bool = True) -> str:
    parts = []
    for value in ticks(*axes.y) if upwards else ():
        y = axes.up(value)
        kind = "zero" if value == 0 else "grid"
        parts.append(
            f'<path class="{kind}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"></path>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
        )
    for value in ticks(*axes.x):
        x = axes.across(value)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {HEIGHT - BOTTOM}v5"></path>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">'
            f"{_tick(value)}</text>"
        )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"></path>')
    return "".join(parts)


def _labels(across: str, up: str) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    upright = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escaped(across)}</text>"
        f'<text class="label up" transform="translate(14 {upright}) rotate(-90)" '
        f'text-anchor="middle">{escaped(up)}</text>'
    )


def _band(one: Series, axes: Axes) -> str:
    ends = [(x, e.low, e.high) for x, e in zip(one.x, one.y, strict=True) if e.low is not None]
    if len(ends) < 2:
        return ""
    upper = [f"{axes.across(x):.1f} {axes.up(high):.1f}" for x, _, high in ends]
    lower = [f"{axes.across(x):.1f} {axes.up(low):.1f}" for x, low, _ in reversed(ends)]
    return f'<path class="band s{one.style % 6}" d="M{"L".join(upper + lower)}Z"></path>'


def _line(one: Series, axes: Axes) -> str:
    place = one.style % len(MARKS)
    points = [(axes.across(x), axes.up(e.value)) for x, e in zip(one.x, one.y, strict=True)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    every = math.ceil(len(points) / _MOST_MARKERS)
    marks = "".join(_mark(place, x, y, 4.2) for x, y in points[::every])
    return (
        f'<g class="s{place}"><path class="line" stroke-dasharray="{_DASHES[place]}" '
        f'd="M{path}"></path><path class="mark" d="{marks}"></path></g>'
    )


def _mark(place: int, x: float, y: float, r: float) -> str:
    """The outline of a marker, as a path."""
    kind = MARKS[place]
    if kind == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    if kind == "square":
        return f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z"
    if kind == "triangle":
        return f"M{x:.1f} {y - 1.2 * r:.1f}l{1.2 * r:.2f} {2.1 * r:.2f}h{-2.4 * r:.2f}Z"
    if kind == "diamond":
        return f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.2f} {1.3 * r:.2f}l{-1.3 * r:.2f} {1.3 * r:.2f}l{-1.3 * r:.2f} {-1.3 * r:.2f}Z"  # noqa: E501
    arms = f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}M{x + r:.1f} {y - r:.1f}l{-2 * r} {2 * r}"
    if kind == "cross":
        return arms
    return f"M{x - r:.1f} {y:.1f}h{2 * r}M{x:.1f} {y - r:.1f}v{2 * r}"


def _padded(low: float, high: float) -> tuple[float, float]:
    spread = high - low
    if not spread > 1e-12:
        spread = max(abs(low), 1.0)
    return low - 0.06 * spread, high + 0.06 * spread


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers within a range, about so many; 0 among them where it lies inside."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")
