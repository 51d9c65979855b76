"""Pictures on a matplotlib Axes: maps, the map of a receptive field, charts.

Maps of more than two axes are summed over the leading ones; a map of one axis is a line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from capalloc._runtime.files import atomically
from capalloc.results.images import RING_SHARES, image, limits, ring, smallest_region
from capalloc.results.svg import DIVERGING, SEQUENTIAL
from capalloc.results.view import Chart, Line

#: Line styles of the rings of a field.
RING_STYLES = dict(zip(RING_SHARES, ("solid", "dashed"), strict=True))
#: Markers of dots, by their colour.
DOT_MARKERS = "o^sD"
#: Up to so many names along an axis are level, up to so many are written at all.
LEVEL_NAMES, MOST_NAMES = 4, 32


#: Formats of pictures, and what is left out of each.
PICTURES: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its ending, whole or not at all, without a note of when it was made; close it."""
    kind = path.suffix.lower().removeprefix(".")
    try:
        with atomically(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=150, metadata=PICTURES[kind])
    finally:
        plt.close(figure)


def panels(drawings: Sequence[Callable[[Axes], object]]) -> Figure:
    """Draw each on an Axes of its own, side by side on a new figure."""
    figure = plt.figure(figsize=(4.35 * len(drawings), 4) if len(drawings) > 1 else None, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(drawings)))
    for draw, ax in zip(drawings, axes, strict=True):
        draw(ax)
    return figure


def plot_map(
    values: xr.DataArray, ax: Axes | None = None, title: str = "", signed: bool = False, unit: str = "parameters"
) -> Axes:
    """Draw a map of capacity per input.

    Args:
        values: capacity over the input's own axes.
        ax: where to draw; a new figure by default.
        title: above the map.
        signed: a difference: diverging colours, symmetrical around zero.
        unit: what the values are counted in.

    Returns:
        The Axes drawn on, with a colour bar for an image.

    """
    ax = ax or _new()
    summed = [str(dim) for dim in values.dims[:-2] if values.sizes[dim] > 1]
    flat = image(values)
    ax.set_title(title + (f" (summed over {', '.join(summed)})" if summed else ""), fontsize="medium")
    ax.set_xlabel(str(flat.dims[-1]))
    if flat.ndim == 1:
        positions = flat.coords.get(flat.dims[0], xr.DataArray(np.arange(flat.size)))
        ax.plot(positions, flat, marker="o" if flat.size <= 64 else None)
        ax.set_ylabel("capacity" if unit == "parameters" else unit)
        return ax
    low, high = limits(flat, signed)
    drawn = ax.imshow(flat, cmap=DIVERGING if signed else SEQUENTIAL, vmin=low, vmax=high, aspect="equal")
    ax.set_ylabel(str(flat.dims[0]))
    plt.colorbar(drawn, ax=ax, label=unit, fraction=0.046, pad=0.04)
    return ax


def plot_field(
    flat: xr.DataArray, box: Mapping[str, tuple[int, int]], label: str, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw a map of one or two axes, the theoretical field's box, and the regions that hold 68 % and 95 %.

    Args:
        flat: the map.
        box: start and stop of the theoretical field on each axis.
        label: what the map is of.
        ax: where to draw; a new figure by default.
        title: above the map.

    """
    ax = plot_map(flat, ax, title, unit=label)
    values = flat.to_numpy()
    if flat.ndim == 1:
        start, stop = box[str(flat.dims[0])]
        ax.axvspan(start - 0.5, stop - 0.5, fill=False, edgecolor="black", label="theoretical")
        for (share, style), colour in zip(RING_STYLES.items(), ("C1", "C2"), strict=True):
            inside = np.flatnonzero(smallest_region(values, share))
            for edge in (inside[0] - 0.5, inside[-1] + 0.5):
                ax.axvline(edge, linestyle=style, color=colour, label=f"{share:.0%}" if edge < inside[0] else None)
    else:
        (top, bottom), (left, right) = (box[str(dim)] for dim in flat.dims)
        frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="white")
        frame.set_label("theoretical")
        ax.add_patch(frame)
        for share, style in RING_STYLES.items():
            region = np.pad(ring(values, share), 1).astype(float)
            places = [np.arange(-1, n - 1) for n in region.shape]
            ax.contour(places[1], places[0], region, levels=[0.5], colors="white", linestyles=style, linewidths=1)
            ax.plot([], [], color="white", linestyle=style, label=f"{share:.0%}")
    # White lines need the map's dark ground under their names too.
    ax.legend(
        fontsize="small",
        facecolor="white" if flat.ndim == 1 else "#440154",
        labelcolor="black" if flat.ndim == 1 else "white",
    )
    return ax


def plot_chart(chart: Chart, ax: Axes | None = None) -> Axes:
    """Draw the lines of a chart on `ax`, or on a new figure, with the names of places where the axis has them."""
    ax = ax or _new()
    for line in chart.lines:
        _plot_line(line, ax)
    names = chart.x.names
    if 0 < len(names) <= MOST_NAMES:
        first = next(np.asarray(line.x) for line in chart.lines if line.named)[0]
        ax.set_xticks(np.round(first) + np.arange(len(names)), names)
        if len(names) > LEVEL_NAMES:
            plt.setp(ax.get_xticklabels(), rotation=45, ha="right")
    ax.set_title(chart.title, fontsize="medium")
    ax.set(xlabel=chart.x.label, ylabel=chart.y.label, yscale="log" if chart.y.log else "linear")
    if chart.y.low is not None:
        ax.set_ylim(chart.y.low, chart.y.high)
    ax.legend(loc="best", fontsize="small")
    return ax


def _plot_line(line: Line, ax: Axes) -> None:
    x, y, colour = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float), f"C{line.colour}"
    if line.style != "dots":
        thin = {"color": "black", "linewidth": 0.8} if line.style == "thin" else {"color": colour}
        ax.plot(x, y, linestyle="dashed" if line.style == "dashed" else "solid", label=line.name or None, **thin)
        return
    marker = DOT_MARKERS[line.colour % len(DOT_MARKERS)]
    joined = "-" if line.spread is None else ""
    ax.errorbar(x, y, line.spread, fmt=marker + joined, color=colour, capsize=2, markersize=5, label=line.name)
    if line.band is not None:
        ax.vlines(x, *line.band, color=colour, alpha=0.25, linewidth=8)


def _new() -> Axes:
    return plt.figure(layout="constrained").add_subplot()
