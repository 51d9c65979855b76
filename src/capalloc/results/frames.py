"""The tables of an allocation: a row for each input, parameter tensor, pair of the two, unit of a layer, eigenvalue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

if TYPE_CHECKING:
    from capalloc.results.allocation import Allocation


def input_frame(a: Allocation) -> pd.DataFrame:
    """A row for each input: its axes, `capacity`, and what else is known of it; `frame.attrs["bias"]`."""
    frame = _long(a.capacity)
    frame.attrs["bias"] = a.bias
    return frame


def param_frame(a: Allocation) -> pd.DataFrame:
    """A row for each parameter tensor: `capacity`, its `share` of the total.

    Besides, where they are known, the number of `parameters`, `use` (capacity / parameters) and `standard_error`.
    """
    capacity = a.by_parameter.to_series().rename("capacity")
    frame = pd.DataFrame({"capacity": capacity, "share": capacity / a.total if a.total else 0.0})
    if sizes := a.attrs.get("parameter_sizes"):
        frame = frame.assign(parameters=pd.Series(sizes))
        frame["use"] = frame["capacity"] / frame["parameters"].where(frame["parameters"] > 0)
    errors = a.attrs.get("by_parameter_standard_error")
    return frame if errors is None else frame.assign(standard_error=pd.Series(errors))


def module_sums(by_parameter: xr.DataArray, depth: int | None) -> xr.DataArray:
    """Sums over the tensors of each module, over "module" in the order in which they come.

    A module is the one that owns the tensor, or the first `depth` names of its path; a tensor of the model's own stands
    under its own name.
    """
    if depth is not None and depth < 1:
        raise ValueError(f"depth must be a positive integer, or None for the modules that own tensors, got {depth}")
    names = by_parameter["parameter"].to_numpy().tolist()
    owners = [".".join(str(name).split(".")[:-1][:depth]) or str(name) for name in names]
    sums = dict.fromkeys(owners, 0.0)
    for owner, value in zip(owners, by_parameter.to_numpy().tolist(), strict=True):
        sums[owner] += value
    return xr.DataArray(list(sums.values()), {"module": list(sums)}, name=by_parameter.name)


def table_frame(a: Allocation) -> pd.DataFrame:
    """A row for each parameter tensor and input; `frame.attrs["bias"]` holds the constant input's, by tensor."""
    if a.table is None:
        raise ValueError("this allocation holds no table; propagate(..., table=True) keeps one where there is room")
    frame = _long(a.table.drop_vars("bias").rename("capacity"))
    frame.attrs["bias"] = a.table["bias"].drop_vars("bias").to_series().to_dict()
    return frame


def unit_frame(a: Allocation) -> pd.DataFrame:
    """A row for each unit of each layer: `layer`, the number of the `unit` in it, `capacity`."""
    if not a.layers:
        raise ValueError("this allocation holds no layers; propagate(..., layers=True) keeps them")
    layers = [
        pd.DataFrame({"layer": name, "unit": np.arange(units.size), "capacity": units.to_numpy().ravel()})
        for name, units in a.layers.items()
    ]
    return pd.concat(layers, ignore_index=True)


def spectrum_frame(a: Allocation) -> pd.DataFrame:
    """A row for each node: its `eigenvalue` of G, and how many lie there (`number`)."""
    if a.spectrum is None:
        raise ValueError("this allocation holds no spectrum; measure() keeps one")
    return pd.DataFrame({"eigenvalue": a.spectrum["eigenvalue"].to_numpy(), "number": a.spectrum.to_numpy()})


def _long(values: xr.DataArray) -> pd.DataFrame:
    """The axes in order, the values under their own name, then other coordinates."""
    first = [*map(str, values.dims), str(values.name)]
    frame = values.to_dataframe(dim_order=list(map(str, values.dims))).reset_index()
    return frame[[*first, *frame.columns.difference(first)]]
