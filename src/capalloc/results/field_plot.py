"""The picture of a receptive field: its map, the box of the theoretical field, rings of the effective one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from capalloc.results.plots import plot_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Shares of the map that the rings hold, and their line styles.
LEVELS = {0.68: "solid", 0.95: "dashed"}


def smallest_region(values: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """The fewest places that hold at least `share` of the sum of `values` >= 0: True there."""
    order = np.argsort(-values, axis=None, kind="stable")
    held = np.cumsum(values.ravel()[order])
    # A sum that falls short by rounding alone holds its share.
    count = int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1
    region = np.zeros(values.size, dtype=bool)
    region[order[:count]] = True
    return region.reshape(values.shape)


def ring(values: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """The smallest region of the map averaged over windows of a third of its standard deviation.

    Strides leave a grid in a map, and a line round each of its places would hide the field. Such a window adds half a
    percent to the deviation.
    """
    return smallest_region(
        uniform_filter(values, [max(1, int(s / 3)) for s in _deviations(values)], mode="constant"), share
    )


def _deviations(values: NDArray[np.float64]) -> list[float]:
    """Standard deviation of the places along each axis, weighted by the map."""
    found = []
    for axis, length in enumerate(values.shape):
        weights = values.sum(tuple(k for k in range(values.ndim) if k != axis))
        places = np.arange(length) - np.average(np.arange(length), weights=weights)
        found.append(float(np.sqrt(np.average(places**2, weights=weights))))
    return found


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
    ax = plot_map(flat, ax, title)
    if flat.ndim == 1:
        ax.set_ylabel(label)
        start, stop = box[str(flat.dims[0])]
        ax.axvspan(start - 0.5, stop - 0.5, fill=False, edgecolor="black", label="theoretical")
        for (share, style), colour in zip(LEVELS.items(), ("C1", "C2"), strict=True):
            inside = np.flatnonzero(smallest_region(flat.to_numpy(), share))
            for edge in (inside[0] - 0.5, inside[-1] + 0.5):
                ax.axvline(edge, linestyle=style, color=colour, label=f"{share:.0%}" if edge < inside[0] else None)
    else:
        if (bar := ax.images[-1].colorbar) is not None:
            bar.set_label(label)
        (top, bottom), (left, right) = (box[str(dim)] for dim in flat.dims)
        frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="white")
        frame.set_label("theoretical")
        ax.add_patch(frame)
        for share, style in LEVELS.items():
            region = np.pad(ring(flat.to_numpy(), share), 1).astype(float)
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
