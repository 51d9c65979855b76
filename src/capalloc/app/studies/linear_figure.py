"""The figure of the linear study, drawn from its table alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capalloc.app.studies.frame import figure_of, panels

PANELS_IN_A_ROW = 3
#: Capacity below this is rounding, and left out of logarithmic axes.
LEAST_CAPACITY = 1e-4
#: Points of a line at most, and to an octave of lags on a logarithmic axis: each is a mean over neighbouring lags.
LINE_POINTS, OCTAVE_POINTS = 64, 4


def plot_linear_study(study: xr.Dataset, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw capacity against lag, a panel for each process and a line for each architecture.

    Each point is the mean over neighbouring lags, where there are many. Axes are logarithmic where the memory of the
    process is long.

    Args:
        study: what `linear_study` returned.
        axes: one for each process; a new figure by default.

    Raises:
        ValueError: not as many axes as processes.

    """
    processes = study["process"].to_numpy()
    if axes is None:
        rows = math.ceil(len(processes) / PANELS_IN_A_ROW)
        width = min(PANELS_IN_A_ROW, len(processes))
        axes = panels(rows, width, (1.5 + 4.2 * width, 1 + 3.2 * rows))
        for spare in axes[len(processes) :]:
            spare.remove()
        axes = axes[: len(processes)]
    if len(axes) != len(processes):
        raise ValueError(f"{len(processes)} processes need as many axes, got {len(axes)}")
    for ax, name in zip(axes, processes, strict=True):
        _panel(ax, study.sel(process=name), str(name))
    axes[0].set_ylabel("capacity of the lag, in parameters")
    handles, labels = axes[0].get_legend_handles_labels()
    found = figure_of(axes)
    found.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return found


def _panel(ax: Axes, part: xr.Dataset, title: str) -> None:
    logarithmic = bool(part["long_memory"])
    colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, part.sizes["architecture"]))
    for colour, name in zip(colours, part["architecture"].to_numpy(), strict=True):
        capacity = smoothed(part["capacity"].sel(architecture=name), logarithmic)
        shown = capacity.where(capacity > LEAST_CAPACITY) if logarithmic else capacity
        ax.plot(shown["lag"], shown, color=colour, linewidth=1.6, label=str(name))
    if logarithmic:
        ax.set_xscale("log")
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set_title(f"{title}, best loss {float(part['best_loss']):.3g}", fontsize="medium")
    ax.set_xlabel("lag")


def smoothed(capacity: xr.DataArray, logarithmic: bool) -> xr.DataArray:
    """Take means over neighbouring lags: bins of one width, or of one ratio; `lag` is the mean of the bin's."""
    lag = capacity["lag"].to_numpy()
    bins = np.floor(OCTAVE_POINTS * np.log2(lag)) if logarithmic else (lag - 1) // math.ceil(len(lag) / LINE_POINTS)
    _, index = np.unique(bins, return_inverse=True)
    counts = np.bincount(index)
    means = np.bincount(index, weights=capacity.to_numpy()) / counts
    return xr.DataArray(means, dims="lag", coords={"lag": np.bincount(index, weights=lag) / counts})
