"""Invariants of every allocation: its axes, its values, and the sums that agree (docs/theory.md, sections 1, 2, 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from capalloc.results.allocation import Allocation


def check_axes(
    capacity: xr.DataArray, by_parameter: xr.DataArray, table: xr.DataArray | None, spectrum: xr.DataArray | None
) -> None:
    """Raise ValueError where the parts of an allocation are over other axes than they must be."""
    axes = capacity.dims
    if not axes or "parameter" in axes:
        raise ValueError(f"capacity has axes {axes}; it needs at least one, none of them called 'parameter'")
    if by_parameter.dims != ("parameter",) or "parameter" not in by_parameter.coords:
        raise ValueError(f"by_parameter has axes {by_parameter.dims}; it needs 'parameter' alone, with names")
    if spectrum is not None and (spectrum.dims != ("node",) or "eigenvalue" not in spectrum.coords):
        raise ValueError(f"spectrum has axes {spectrum.dims}; it needs 'node' alone, with the coordinate 'eigenvalue'")
    if table is None:
        return
    if table.dims != ("parameter", *axes) or "bias" not in table.coords:
        raise ValueError(
            f"table has axes {table.dims} and coordinates {sorted(map(str, table.coords))}; "
            f"it needs axes {('parameter', *axes)} and a coordinate 'bias' over 'parameter'"
        )
    if table.shape != (by_parameter.size, *capacity.shape):
        raise ValueError(f"table has shape {table.shape}, not {(by_parameter.size, *capacity.shape)}")


def check_values(a: Allocation, table: xr.DataArray | None) -> None:
    """Raise ValueError where a part holds what is no number, or a negative one."""
    values = {f"layers[{name!r}]": units.values for name, units in a.layers.items()}
    if table is not None:
        values |= {"table": table.values, "table.bias": table.coords["bias"].values}
    if (spectrum := a.spectrum) is not None:
        found = {"spectrum": spectrum.values, "spectrum.eigenvalue": spectrum.coords["eigenvalue"].values}
        if any((value < 0).any() for value in found.values()):
            raise ValueError("spectrum holds negative numbers; eigenvalues of G and their numbers are not")
        values |= found
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or inf")
    total = a.total
    for name, lowest in {"capacity": float(a.capacity.values.min()), "bias": a.bias}.items():
        if lowest < -a.TOLERANCE * abs(total):
            raise ValueError(f"{name} must be non-negative, but holds {lowest:.6g} (total {total:.6g})")


def check_sums(a: Allocation, table: xr.DataArray | None) -> None:
    """Raise ValueError where two ways to sum disagree."""
    capacity, total, by_parameter = a.capacity.values, a.total, a.by_parameter.values
    tolerance = a.TOLERANCE * (float(abs(by_parameter).sum()) + abs(total))
    sums = {"by_parameter.sum()": (float(by_parameter.sum()), "total", total)}
    if table is not None:
        held, biases = table.values, table.coords["bias"].values
        by_input = held.sum(0) - capacity
        by_tensor = held.reshape(len(held), -1).sum(1) + biases - by_parameter
        for name, gap in {
            'table.sum("parameter") - capacity, at worst': by_input,
            "table.sum(input axes) + table.bias - by_parameter, at worst": by_tensor,
        }.items():
            sums[name] = (float(abs(gap).max()), "zero", 0.0)
        sums["table.bias.sum()"] = (float(biases.sum()), "bias", a.bias)
    for name, (value, other, expected) in sums.items():
        if abs(value - expected) > tolerance:
            raise ValueError(f"{name} is {value:.8g} but {other} is {expected:.8g}; they must agree to {tolerance:.2g}")
