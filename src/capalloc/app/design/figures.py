"""Figures of readings, as plotly takes them: plain dictionaries, so that building one takes no time.

Ink and grid take their colours from the page's style sheet, in the dark and in the light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from capalloc._linalg.aliases import Array
from capalloc.app.design.reading import SHARES, Reading

Figure = dict[str, Any]
#: What the page keeps of a reading to compare it with another: `away`, `law`, `gradient`.
Curves = dict[str, Any]
#: Told apart by everyone (Okabe and Ito), on a dark and on a light ground, and by their dashes.
COLOURS = {"A": "#3a8fd0", "B": "#d9822b"}
DASHES = {"A": "solid", "B": "dash"}
#: Lowest correlation that is drawn.
LOWEST_CORRELATION = 1e-4
#: Least value on a logarithmic scale, of the largest.
SHOWN_RANGE = 1e-4


def map_figure(reading: Reading, name: str, log: bool = False) -> Figure:
    """Capacity by input position, with the theoretical field and what holds 68 % and 95 % of the effective one."""
    return _line(reading, name, log) if reading.design.ndim == 1 else _image(reading, log)


def _image(reading: Reading, log: bool) -> Figure:
    start, stop = (edge - 0.5 for edge in reading.field)
    colorbar: Figure = {"title": {"text": "parameters"}, "thickness": 12, "outlinewidth": 0}
    traces: list[Figure] = [
        {
            "type": "heatmap",
            "z": _logarithms(reading.capacity) if log else _rounded(reading.capacity),
            "customdata": _rounded(reading.capacity),
            "colorscale": "Cividis",
            "colorbar": colorbar | (_powers(reading.capacity) if log else {}),
            "hovertemplate": "row %{y}, column %{x}<br>%{customdata:.4g} parameters<extra></extra>",
        }
    ]
    for share, region, dash in zip(SHARES, reading.regions, ("solid", "dash"), strict=True):
        traces.append(_ring(region, f"{share:.0%} of the effective field", dash))
    box = {"x": [start, stop, stop, start, start], "y": [start, start, stop, stop, start]}
    traces.append(_edge_of_field(box, "white", 1.5))
    axis = {"constrain": "domain", "showgrid": False, "zeroline": False, "ticks": "outside"}
    edges = [-0.5, reading.design.size - 0.5]
    layout = _layout(
        xaxis={**axis, "range": edges, "title": {"text": "column"}},
        yaxis={**axis, "range": edges[::-1], "scaleanchor": "x", "title": {"text": "row"}},
        showlegend=False,
    )
    return {"data": traces, "layout": layout}


def _logarithms(values: Array) -> list[list[float | None]]:
    """log10, and nothing where there is none, down to `SHOWN_RANGE` of the largest."""
    least = values.max() * SHOWN_RANGE
    return [[round(math.log10(v), 4) if v > least else None for v in row] for row in values.tolist()]


def _powers(values: Array) -> Figure:
    """Ticks at powers of ten."""
    top = math.log10(values.max())
    powers = range(math.ceil(top + math.log10(SHOWN_RANGE)), math.floor(top) + 1)
    return {"tickvals": [*powers], "ticktext": [f"{10.0**power:g}" for power in powers]}


def _ring(region: Any, label: str, dash: str) -> Figure:
    """The outline of a region, padded so that it closes at the border."""
    places = list(range(-1, len(region) + 1))
    return {
        "type": "contour",
        "z": np.pad(region, 1).tolist(),
        "x": places,
        "y": places,
        "contours": {"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
        "line": {"color": "white", "width": 1.5, "dash": dash, "smoothing": 0},
        "showscale": False,
        "name": label,
        "hoverinfo": "skip",
    }


def _edge_of_field(box: Mapping[str, list[float]], colour: str, width: float) -> Figure:
    line = {"color": colour, "width": width, "dash": "dot"}
    return {"type": "scatter", "mode": "lines", **box, "line": line, "name": "theoretical field", "hoverinfo": "skip"}


def _line(reading: Reading, name: str, log: bool) -> Figure:
    capacity = _rounded(reading.capacity)
    top = max(capacity)
    traces: list[Figure] = [
        {
            "type": "scatter",
            "y": capacity,
            "mode": "lines",
            "line": {"color": COLOURS[name], "width": 2, "shape": "hvh"},
            "name": "capacity",
            "hovertemplate": "position %{x}<br>%{y:.4g} parameters<extra></extra>",
        }
    ]
    for share, region, opacity in zip(SHARES, reading.regions, (0.3, 0.15), strict=True):
        traces.append(_band(region, top, f"{share:.0%} of the effective field", opacity))
    start, stop = (edge - 0.5 for edge in reading.field)
    for edge in (start, stop):
        at = {"x": [edge, edge], "y": [top * SHOWN_RANGE if log else 0, top]}
        traces.append(_edge_of_field(at, "#8a8a8a", 2))
    layout = _layout(
        xaxis={"title": {"text": "position"}, "range": [-0.5, reading.design.size - 0.5], "zeroline": False},
        yaxis={"title": {"text": "parameters"}, **(_log_axis(top) if log else {"rangemode": "tozero"})},
        showlegend=False,
    )
    return {"data": traces, "layout": layout}


def _log_axis(top: float) -> Figure:
    return {"type": "log", "range": [math.log10(top * SHOWN_RANGE), math.log10(top) + 0.1], "exponentformat": "power"}


def _band(region: Any, height: float, label: str, opacity: float) -> Figure:
    """A bar over every position of a region."""
    places = np.flatnonzero(region).tolist()
    return {
        "type": "bar",
        "x": places,
        "y": [height] * len(places),
        "width": 1,
        "marker": {"color": "#8a8a8a", "opacity": opacity, "line": {"width": 0}},
        "name": label,
        "hoverinfo": "skip",
    }


def curves(reading: Reading) -> Curves:
    """The effective field along one axis by distance from its middle, and the correlation of gradients by gate."""
    law = reading.profile(reading.law)
    places = np.arange(len(law))
    gradient = np.concatenate([[1.0], reading.gradient]).clip(min=LOWEST_CORRELATION)
    return {"away": _rounded(places - law @ places), "law": _rounded(law), "gradient": _rounded(gradient)}


def profile_figure(compared: Mapping[str, Curves]) -> Figure:
    """The effective field along one axis, for every design."""
    traces = [_curve(name, kept["away"], kept["law"], "%{x:.3g}: %{y:.3g}") for name, kept in compared.items()]
    layout = _layout(
        xaxis={"title": {"text": "pixels from the middle"}, "zeroline": False},
        yaxis={"title": {"text": "share of path energy"}, "rangemode": "tozero"},
    )
    return {"data": traces, "layout": layout}


def gradient_figure(compared: Mapping[str, Curves]) -> Figure:
    """Correlation of the gradients at two independent inputs by the number of gates passed, for every design."""
    traces = [
        _curve(name, list(range(len(kept["gradient"]))), kept["gradient"], "%{x} gates: %{y:.3g}")
        for name, kept in compared.items()
    ]
    layout = _layout(
        xaxis={"title": {"text": "gates passed, from the input"}, "zeroline": False, "rangemode": "tozero"},
        yaxis={
            "title": {"text": "correlation of gradients"},
            "type": "log",
            "range": [np.log10(LOWEST_CORRELATION), 0.05],
            "tickvals": [1, 0.1, 0.01, 0.001, LOWEST_CORRELATION],
            "ticktext": ["1", "0.1", "0.01", "0.001", "0.0001"],
        },
    )
    return {"data": traces, "layout": layout}


def _curve(name: str, x: list[float], y: list[float], hover: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": f"design {name}",
        "showlegend": True,
        "line": {"color": COLOURS[name], "dash": DASHES[name], "width": 2.5},
        "hovertemplate": f"design {name}, {hover}<extra></extra>",
    }


def _layout(**own: Any) -> Figure:
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 11}}
    margin = {"l": 55, "r": 10, "t": 28, "b": 45}
    clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    common = {"margin": margin, "legend": legend, "barmode": "overlay", "uirevision": "kept"}
    return {**clear, **common, "font": {"family": "inherit", "size": 12}, **own}


def _rounded(values: Any) -> Any:
    """Six digits, which is more than a screen shows and a third of the bytes."""
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(values).tolist()
