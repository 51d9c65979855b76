"""The layout of a map over the inputs: a picture over its last two axes, or a line over its last one.

Leading axes are summed. A line is a map of one axis, or one whose last axis but one has a single entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capalloc.results.images import image, limits
from capalloc.results.regions import is_line


def leading(values: xr.DataArray) -> list[str]:
    """Axes that are summed, and may be chosen."""
    return [str(axis) for axis in values.dims[: -1 if values.ndim == 1 else -2] if values.sizes[axis] > 1]


def flat(values: xr.DataArray) -> xr.DataArray:
    """The map as it is shown first: over the last two axes, or the last one."""
    summed = image(values)
    return summed.sum(str(summed.dims[0])) if summed.ndim == 2 and is_line(values) else summed


def positions(shown: xr.DataArray) -> NDArray[np.float64]:
    """Positions of the entries of a line: coordinates that are numbers, or else their places."""
    found = shown.coords.get(shown.dims[0])
    if found is not None and np.issubdtype(found.dtype, np.number):
        return np.asarray(found, dtype=float)
    return np.arange(float(shown.size))


def high(values: xr.DataArray) -> float:
    """The largest value of the map as it is shown first."""
    return limits(flat(values))[1]


def labels(values: xr.DataArray, axis: Any) -> list[str]:
    """Names of the places along an axis."""
    return [str(label(values, axis, k)) for k in range(values.sizes[axis])]


def label(values: xr.DataArray, axis: Any, index: int) -> Any:
    """The name of one place along an axis: its coordinate, or else its number."""
    return values[axis].values[index].item() if axis in values.coords else int(index)
