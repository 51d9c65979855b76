"""Charts of a page as inline SVG: lines, dots with error bars, and bars, in the page's own colours and fonts.

They scale with the page and follow its theme, which a picture made by matplotlib would not; ticks are matplotlib's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from capalloc.results.templating import render

#: Of the drawing, in units of its own: text keeps its size on a phone and grows a little on a desk.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 224, 54, 8, 8, 36
#: A line of more points than this is thinned: no eye sees more.
POINTS = 1024

Kind = Literal["line", "dashed", "dots", "bars", "thin"]


@dataclass(frozen=True)
class Series:
    """One thing drawn: its name in the legend, its points, two standard errors if known, a title for each point."""

    name: str
    x: ArrayLike
    y: ArrayLike
    kind: Kind = "line"
    colour: int = 0
    spread: ArrayLike | None = None
    titles: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Axis:
    """Its label, and limits that the data would not give."""

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False  # ticks at integers


@dataclass(frozen=True)
class Scale:
    """An axis with its place in the drawing: values to units."""

    axis: Axis
    low: float
    high: float
    start: float
    stop: float

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        """Places of values; what lies outside the limits stays close to the frame."""
        given = np.asarray(values, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high, at = (np.log10(v) if self.axis.log else v for v in (self.low, self.high, given))
            shares = (at - low) / (high - low)
        return np.asarray(self.start + np.clip(shares, -0.02, 1.02) * (self.stop - self.start))

    def ticks(self) -> list[tuple[float, str]]:
        """Places and what is written there."""
        locator = LogLocator(numticks=6) if self.axis.log else MaxNLocator(5, integer=self.axis.whole)
        values = locator.tick_values(self.low, self.high)
        inside = [v for v in values if self.low * (1 - 1e-9) - 1e-300 <= v <= self.high * (1 + 1e-9) + 1e-300]
        if self.axis.log and len(inside) < 2:
            inside = [self.low, self.high]
        return [(round(float(self(v)), 1), _label(v)) for v in inside]


def chart(label: str, series: list[Series], x: Axis, y: Axis, picture: str = "") -> Markup:
    """Draw series on two axes.

    Args:
        label: what a screen reader says the chart shows.
        series: what to draw, the first lowest; entries that are not finite are left out.
        x: the horizontal axis.
        y: the vertical axis.
        picture: a data address drawn over the whole field, below the series.

    """
    shown = [_finite(s, x, y) for s in series]
    across = _scale(x, [s.x for s in shown], LEFT, WIDTH - RIGHT)
    reach = [np.asarray(s.y) + sign * np.asarray(s.spread) for s in shown if s.spread is not None for sign in (-1, 1)]
    up = _scale(y, [*(s.y for s in shown), *reach], HEIGHT - BOTTOM, TOP)
    return render(
        "report/chart.svg",
        label=label,
        x=across,
        y=up,
        frame=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        size=(WIDTH, HEIGHT),
        drawn=[_drawn(s, across, up) for s in shown],
        legend=[s for s in shown if s.name],
        picture=picture,
    )


def _finite(s: Series, x: Axis, y: Axis) -> Series:
    at, values = np.asarray(s.x, dtype=float), np.asarray(s.y, dtype=float)
    kept = np.isfinite(at) & np.isfinite(values) & ((at > 0) | (not x.log)) & ((values > 0) | (not y.log))
    if s.kind in ("line", "dashed") and kept.sum() > POINTS:
        chosen = np.flatnonzero(kept)[np.linspace(0, kept.sum() - 1, POINTS).astype(int)]
        kept = np.isin(np.arange(len(kept)), chosen)
    spread = None if s.spread is None else np.nan_to_num(np.asarray(s.spread, dtype=float)[kept])
    titles = [title for title, keep in zip(s.titles, kept, strict=True) if keep] if s.titles else []
    return Series(s.name, at[kept], values[kept], s.kind, s.colour, spread, titles)


def _scale(axis: Axis, values: list[ArrayLike], start: float, stop: float) -> Scale:
    """From the lowest to the highest value, with room where neither is given."""
    found = np.concatenate([np.ravel(np.asarray(v, dtype=float)) for v in values] or [np.zeros(0)])
    found = found[np.isfinite(found) & ((found > 0) | (not axis.log))]
    low, high = (float(found.min()), float(found.max())) if found.size else (0.1, 1.0)
    if axis.log:
        low, high = (low / 1.5, high * 1.5)
    elif high > low:
        room = 0.04 * (high - low)
        low, high = low - room, high + room
    else:
        low, high = low - 0.5, high + 0.5
    low = low if axis.low is None else axis.low
    high = high if axis.high is None else axis.high
    return Scale(axis, low, high if high > low else low + 1, start, stop)


@dataclass(frozen=True)
class Drawn:
    """A series as paths and points of the drawing."""

    kind: str
    colour: int
    path: str
    bars: str  # error bars
    points: list[tuple[float, float, str]]  # only where they have titles


def _drawn(s: Series, across: Scale, up: Scale) -> Drawn:
    xs, ys = np.round(across(s.x), 1), np.round(up(s.y), 1)
    pairs = list(zip(xs.tolist(), ys.tolist(), strict=True))
    bars = ""
    if s.spread is not None:
        low, high = up(np.asarray(s.y) - np.asarray(s.spread)), up(np.asarray(s.y) + np.asarray(s.spread))
        bars = "".join(f"M{x:g} {a:.1f}V{b:.1f}" for x, a, b in zip(xs.tolist(), low, high, strict=True))
    points = [(x, y, title) for (x, y), title in zip(pairs, s.titles, strict=True)] if s.titles else []
    return Drawn(s.kind, s.colour, _path(s.kind, pairs, up.start), bars, points)


def _path(kind: Kind, pairs: list[tuple[float, float]], floor: float) -> str:
    if kind == "dots":  # strokes of no length with round ends
        return "".join(f"M{x:g} {y:g}h0" for x, y in pairs)
    if kind == "bars":
        return "".join(f"M{x:g} {floor:g}V{y:g}" for x, y in pairs)
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in pairs) if pairs else ""


def _label(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.0e}".split("e")
        power = f"10^{int(exponent)}"
        return power if mantissa == "1" else f"{mantissa}·{power}"
    return f"{value:,.10g}".replace("-", "−")
