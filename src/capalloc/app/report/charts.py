"""Charts of a page as inline SVG: lines, and dots with error bars, in the page's own colours and fonts.

They scale with the page and follow its theme, which a picture made by matplotlib would not; ticks are matplotlib's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from capalloc.app.pages import PAGES
from capalloc.app.report.section import exact
from capalloc.results.view import Axis, Chart, Line, Style

#: Of the drawing, in units of its own: text keeps its size on a phone and grows a little on a desk.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 224, 54, 8, 8, 36
#: A line of more points than this is thinned: no eye sees more.
MOST_POINTS = 1024


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
            inside = [float(f"{v:.3g}") for v in (self.low, self.high)]
        return [(round(float(self(v)), 1), _label(v)) for v in inside]


def draw(chart: Chart, picture: str = "") -> Markup:
    """Draw a chart, with `picture`, a data address, over the whole field below its lines.

    Points that are not finite are left out.
    """
    shown = [_finite(line, chart.x, chart.y) for line in chart.lines]
    across = _scale(chart.x, [line.x for line, _ in shown], LEFT, WIDTH - RIGHT)
    ends = [
        np.asarray(line.y) + sign * np.asarray(line.spread)
        for line, _ in shown
        if line.spread is not None
        for sign in (-1, 1)
    ]
    up = _scale(chart.y, [*(line.y for line, _ in shown), *ends], HEIGHT - BOTTOM, TOP)
    return PAGES.render(
        "report/chart.svg",
        label=chart.described,
        x=across,
        y=up,
        frame=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        size=(WIDTH, HEIGHT),
        drawn=[_drawn(line, titles, across, up) for line, titles in shown],
        legend=[line for line, _ in shown if line.name],
        picture=picture,
    )


def _finite(line: Line, x: Axis, y: Axis) -> tuple[Line, list[str]]:
    """The points of a line that have a place, and what each is called where it has a name."""
    at, values = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    kept = np.isfinite(at) & np.isfinite(values) & ((at > 0) | (not x.log)) & ((values > 0) | (not y.log))
    if line.style in ("line", "dashed") and kept.sum() > MOST_POINTS:
        chosen = np.flatnonzero(kept)[np.linspace(0, kept.sum() - 1, MOST_POINTS).astype(int)]
        kept = np.isin(np.arange(len(kept)), chosen)
    spread = None if line.spread is None else np.nan_to_num(np.asarray(line.spread, dtype=float)[kept])
    named = zip(x.names, values, kept, strict=True) if line.named else ()
    of = f", {line.name}" if line.name else ""
    titles = [f"{name}{of}: {exact(value)}" for name, value, keep in named if keep]
    return replace(line, x=at[kept], y=values[kept], spread=spread), titles


def _scale(axis: Axis, values: list[ArrayLike], start: float, stop: float) -> Scale:
    """Span the lowest to the highest value, with room where neither is given."""
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
    """A line as paths and points of the drawing."""

    style: str
    colour: int
    path: str
    bars: str  # error bars
    points: list[tuple[float, float, str]]  # only where they have titles


def _drawn(line: Line, titles: list[str], across: Scale, up: Scale) -> Drawn:
    xs, ys, y = np.round(across(line.x), 1), np.round(up(line.y), 1), np.asarray(line.y)
    pairs = list(zip(xs.tolist(), ys.tolist(), strict=True))
    bars = ""
    if line.spread is not None:
        low, high = up(y - np.asarray(line.spread)), up(y + np.asarray(line.spread))
        bars = "".join(f"M{x:g} {a:.1f}V{b:.1f}" for x, a, b in zip(xs.tolist(), low, high, strict=True))
    points = [(x, y, title) for (x, y), title in zip(pairs, titles, strict=bool(titles))]
    return Drawn(line.style, line.colour, _path(line.style, pairs), bars, points)


def _path(style: Style, pairs: list[tuple[float, float]]) -> str:
    if style == "dots":  # strokes of no length with round ends
        return "".join(f"M{x:g} {y:g}h0" for x, y in pairs)
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in pairs) if pairs else ""


def _label(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.0e}".split("e")
        power = f"10^{int(exponent)}"
        return power if mantissa == "1" else f"{mantissa}·{power}"
    return f"{value:z,.10g}".replace("-", "−")
