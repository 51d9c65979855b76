"""Several inputs in one array: the flat axis "input" holds them one after the other, each in row-major order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

#: The axis that holds several inputs, and the name of an input where there is one tensor and nothing names it.
FLAT_AXIS, ONLY_INPUT = "input", "inputs"


def split(values: xr.DataArray, inputs: Sequence[Mapping[str, Any]] | None) -> dict[str, xr.DataArray]:
    """Give each input's part of an array, by name, over the input's own axes and the others that the array has.

    Args:
        values: over the flat axis, or over the axes of the only input.
        inputs: `name`, `axes` and `shape` of each; None for one tensor without a name.

    """
    if inputs is None or len(inputs) == 1:
        return {ONLY_INPUT if inputs is None else inputs[0]["name"]: values}
    place = values.dims.index(FLAT_AXIS)
    before, after = values.dims[:place], values.dims[place + 1 :]
    found: dict[str, xr.DataArray] = {}
    start = 0
    for one in inputs:
        stop = start + math.prod(one["shape"])
        part = values.isel({FLAT_AXIS: slice(start, stop)})
        shape = (*part.shape[:place], *one["shape"], *part.shape[place + 1 :])
        own = xr.DataArray(part.to_numpy().reshape(shape), dims=(*before, *one["axes"], *after), name=values.name)
        kept = {name: c for name, c in part.coords.items() if FLAT_AXIS not in c.dims}
        if "standard_error" in part.coords:
            errors = part.coords["standard_error"].to_numpy().reshape(one["shape"])
            kept["standard_error"] = xr.DataArray(errors, dims=one["axes"])
        found[one["name"]] = own.assign_coords(kept)
        start = stop
    return found
