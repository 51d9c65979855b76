"""Regions of an input: a grid over its last two axes, and the smallest ones that hold a share of a map.

Index convention: maps are (*leading axes, rows, columns); the leading axes (channels, depth) are summed.
"""

from __future__ import annotations

import itertools

import lazy_loader
import numpy as np
import xarray as xr
from numpy.typing import NDArray

scipy = lazy_loader.load("scipy")

VERTICAL = ("top", "middle", "bottom")
HORIZONTAL = ("left", "centre", "right")
#: Shares of a field's map that its rings hold.
RING_SHARES = (0.68, 0.95)


def image(values: xr.DataArray, keep: str | None = None) -> xr.DataArray:
    """Sum over every axis but the last two, and `keep` where it is given."""
    axes = [str(dim) for dim in values.dims if dim != keep]
    return values.sum(axes[:-2])


def limits(values: xr.DataArray, signed: bool = False) -> tuple[float, float]:
    """The colour scale of a map: from zero, or symmetrical around it."""
    high = float(abs(image(values)).max()) or 1.0
    return (-high if signed else 0.0, high)


def grid(values: xr.DataArray, keep: str | None = None) -> xr.DataArray:
    """Capacity in a 3 x 3 grid of regions, named "top left" to "bottom right", over the axis "region".

    Args:
        values: a map (*axes), or with the axis `keep` beside them, of at least two axes.
        keep: an axis that is not part of the map, such as "parameter".

    Returns:
        Sums over (keep, region); regions that hold no pixel, on images under 3 wide, are left out.

    Raises:
        ValueError: the map has fewer than two axes.

    """
    axes = [str(dim) for dim in values.dims if dim != keep]
    if len(axes) < 2:
        raise ValueError(f"a grid of regions needs a map of at least two axes, got {tuple(axes)}")
    row, column = axes[-2:]
    flat = image(values, keep)
    cells, names = [], []
    for (top, bottom), vertical in zip(thirds(flat.sizes[row]), VERTICAL, strict=True):
        for (left, right), horizontal in zip(thirds(flat.sizes[column]), HORIZONTAL, strict=True):
            if bottom > top and right > left:
                cell = flat.isel({row: slice(top, bottom), column: slice(left, right)})
                cells.append(cell.sum([row, column]))
                names.append(region_name(vertical, horizontal))
    return xr.concat(cells, dim="region").assign_coords(region=names).transpose(..., "region")


def region_name(row: str, column: str) -> str:
    """Of a cell: "top left", and "centre" for the one in the middle."""
    return "centre" if (row, column) == ("middle", "centre") else f"{row} {column}"


def thirds(length: int) -> list[tuple[int, int]]:
    """Symmetrical cuts of 0 .. length into three: 8 -> (0, 3), (3, 5), (5, 8)."""
    first = round(length / 3)
    return list(itertools.pairwise([0, first, length - first, length]))


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
        scipy.ndimage.uniform_filter(values, [max(1, int(s / 3)) for s in _deviations(values)], mode="constant"), share
    )


def _deviations(values: NDArray[np.float64]) -> list[float]:
    """Standard deviation of the places along each axis, weighted by the map."""
    found = []
    for axis, length in enumerate(values.shape):
        weights = values.sum(tuple(k for k in range(values.ndim) if k != axis))
        places = np.arange(length) - np.average(np.arange(length), weights=weights)
        found.append(float(np.sqrt(np.average(places**2, weights=weights))))
    return found
