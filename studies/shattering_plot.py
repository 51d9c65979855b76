"""The figure of the shattering study, drawn from its tables alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.figures import BLUE, GREEN, PURPLE, VERMILION, log_axis, points

STYLES = {"plain": (VERMILION, "o"), "residual": (BLUE, "s"), "normalised": (GREEN, "^"), "scaled": (PURPLE, "D")}
NAMES = {
    "plain": "plain",
    "residual": "residual, λ = 1",
    "normalised": "normalised branches, λ = 1/l",
    "scaled": "scaled branches, λ = 1/L",
}
#: What a logarithmic axis shows.
FLOOR = 1e-4


def plot_shattering(relu: xr.Dataset, tanh: xr.Dataset, laws: xr.DataArray, line: xr.Dataset, title: str) -> Figure:
    """Four panels: by depth, against 1 / width, along a line, and tanh beside ReLU."""
    figure, axes = plt.subplots(2, 2, figsize=(12.5, 9.5), layout="constrained")
    by_depth(axes[0, 0], relu.isel(pair=0), laws.isel(pair=0))
    by_width(axes[0, 1], relu.isel(pair=0))
    along_line(axes[1, 0], line)
    beside(axes[1, 1], relu.isel(pair=1), tanh.isel(pair=1))
    figure.suptitle(title, fontsize="medium")
    return figure


def by_depth(ax: Axes, data: xr.Dataset, laws: xr.DataArray) -> None:
    """Predicted lines, measured limits, and the laws of d = 1/2."""
    for family in data["family"].to_numpy():
        colour, _ = STYLES[family]
        row = data.sel(family=family)
        ax.plot(row["depth"], row["predicted"], color=colour)
        limits(ax, row, NAMES[family])
        law = laws.sel(family=family)
        ax.plot(law["depth"], law, color=colour, linestyle=":", linewidth=1.2)
    ax.plot([], [], color="black", label="law, d from the inputs")
    ax.plot([], [], color="black", linestyle=":", label="d = 1/2 at every block")
    depth_axis(ax, data)
    ax.set_title("Independent inputs, ReLU: limit of infinite width", fontsize="medium")
    ax.legend(fontsize="small", loc="lower left")


def by_width(ax: Axes, data: xr.Dataset) -> None:
    """Measured over predicted against 1 / width, at two depths."""
    deep = int(data["depth"][-1])
    middle = int(data["depth"][-3])
    for family in data["family"].to_numpy():
        style = STYLES[family]
        for depth, filled in ((middle, True), (deep, False)):
            row = data.sel(family=family, depth=depth)
            if not filled and family in ("plain", "residual"):
                continue  # too small to divide by
            scale = float(row["predicted"])
            inverse = 1 / row["width"].to_numpy()
            label = f"{family}, {depth} blocks"
            points(ax, inverse, row["measured"] / scale, row["error"] / scale, style, label, filled=filled, capsize=2)
            fine = np.linspace(0, inverse.max(), 60)
            curve = np.polynomial.polynomial.polyval(fine, row["curve"].to_numpy()) / scale
            ax.plot(fine, curve, color=style[0], linewidth=1, linestyle="-" if filled else "--")
            points(ax, 0, curve[0], float(row["intercept_error"]) / scale, style, filled=filled, capsize=4)
    ax.axhline(1, color="black", linewidth=0.8)
    widths = data["width"].to_numpy()
    ax.set_xticks([0, *(1 / widths)], ["0", *(f"1/{n}" for n in widths)], rotation=45, fontsize="small")
    ax.set_xlabel("1 / width")
    ax.set_ylabel("measured / predicted gradient correlation")
    ax.set_title("Independent inputs, ReLU: finite width", fontsize="medium")
    ax.legend(fontsize="small", loc="upper left")


def along_line(ax: Axes, line: xr.Dataset) -> None:
    """Autocorrelation of the gradient against distance."""
    for family in line["family"].to_numpy():
        row, style = line.sel(family=family), STYLES[family]
        ax.plot(row["lag"], row["predicted"], color=style[0])
        points(ax, row["lag"], row["measured"], row["error"], style, family, filled=True, capsize=2, markersize=5)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xlabel("distance |t - t'| along the line a + t b, |a| = |b|")
    ax.set_ylabel("autocorrelation of the gradient")
    ax.set_title(f"Along a line, ReLU: {line.attrs['depth']} blocks of {line.attrs['width']} units", fontsize="medium")
    ax.legend(fontsize="small")


def beside(ax: Axes, relu: xr.Dataset, tanh: xr.Dataset) -> None:
    """Two activations on a nearby pair."""
    for data, activation, line, filled in ((relu, "ReLU", "-", True), (tanh, "tanh", "--", False)):
        for family in tanh["family"].to_numpy():
            row = data.sel(family=family)
            ax.plot(row["depth"], row["predicted"], color=STYLES[family][0], linestyle=line)
            limits(ax, row, f"{activation}, {family}", filled)
    depth_axis(ax, relu)
    ax.set_title(f"Inputs of correlation {float(relu['pair']):g}: limit of infinite width", fontsize="medium")
    ax.legend(fontsize="small", loc="lower left")


def limits(ax: Axes, row: xr.Dataset, label: str, filled: bool = True) -> None:
    """Draw limits with error bars; those within two errors of zero tell nothing on a log axis, and are left out."""
    shown = row["intercept"].where(row["intercept"] > 2 * row["intercept_error"])
    style = STYLES[str(row["family"].item())]
    points(ax, row["depth"], shown, row["intercept_error"], style, label, filled=filled)


def depth_axis(ax: Axes, data: xr.Dataset) -> None:
    """Put depth on a logarithmic axis, correlations on another."""
    log_axis(ax, data["depth"].to_numpy(), "depth L, in blocks", base=2)
    ax.set_yscale("log")
    ax.set_ylim(FLOOR, 1.3)
    ax.set_ylabel("correlation of the gradients at two inputs")
