"""Maps as images: a map of any axes as it is drawn, its colour scale, the smallest regions that hold a share of it.

Index convention: maps are (*leading axes, rows, columns); the leading axes (channels, depth) are summed.
"""

from __future__ import annotations

import lazy_loader
import numpy as np
import xarray as xr
from numpy.typing import NDArray

scipy = lazy_loader.load("scipy")

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
