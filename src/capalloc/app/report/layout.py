"""The layout of a map over the inputs: a picture over its last two axes, or a line over its last one.

Leading axes are summed. A line is a map of one axis, or one whose last axis but one has a single entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from capalloc.results.images import image, limits
from capalloc.results.regions import grid, thirds
from capalloc.results.several import FLAT_AXIS

#: Regions of a line.
THIRDS = ("first third", "middle third", "last third")


def is_line(values: xr.DataArray) -> bool:
    """Tell whether the map is over one axis, up to axes of one entry."""
    return values.ndim == 1 or values.shape[-2] == 1


def leading(values: xr.DataArray) -> list[str]:
    """Axes that are summed, and may be chosen."""
    return [str(axis) for axis in values.dims[: -1 if values.ndim == 1 else -2] if values.sizes[axis] > 1]


def flat(values: xr.DataArray) -> xr.DataArray:
    """The map as it is shown first: over the last two axes, or the last one."""
    summed = image(values)
    return summed.sum(str(summed.dims[0])) if summed.ndim == 2 and is_line(values) else summed


def parts(values: xr.DataArray, keep: str | None = None) -> xr.DataArray:
    """Sums over (keep, region): several inputs, thirds of a line, a grid of a picture."""
    if "input_name" in values.coords:
        names = values.coords["input_name"]
        found = pd.unique(names.to_numpy()).tolist()
        held = [values.isel({FLAT_AXIS: (names == name).to_numpy()}).sum(FLAT_AXIS) for name in found]
        return _joined(held, found)
    axes = [str(axis) for axis in values.dims if axis != keep]
    one = values.isel({keep: 0}) if keep else values
    if not is_line(one):
        return grid(values, keep=keep)
    last = values.sum(axes[:-1])
    length = last.sizes[axes[-1]]
    if length < len(THIRDS):
        return last.sum(axes[-1]).expand_dims(region=["inputs"], axis=-1)
    sums = [last.isel({axes[-1]: cut}).sum(axes[-1]) for cut in thirds(length)]
    return _joined(sums, list(THIRDS))


def _joined(sums: list[xr.DataArray], names: list[str]) -> xr.DataArray:
    return xr.concat(sums, dim="region").assign_coords(region=names).transpose(..., "region")


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
