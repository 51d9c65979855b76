"""What holds for every allocation: its axes, its values, and the sums that agree (docs/theory.md, sections 1, 2, 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from capalloc.results.allocation import Allocation


def check(a: Allocation) -> None:
    """Refuse an allocation that is none; the message names the invariant and the two values."""
    _check_axes(a)
    _check_values(a)
    _check_sums(a)


def _check_axes(a: Allocation) -> None:
    axes = a.capacity.dims
    if not axes or "parameter" in axes:
        raise ValueError(f"capacity has axes {axes}; it needs at least one, none of them called 'parameter'")
    if a.by_parameter.dims != ("parameter",) or "parameter" not in a.by_parameter.coords:
        raise ValueError(f"by_parameter has axes {a.by_parameter.dims}; it needs 'parameter' alone, with names")
    if a.spectrum is not None and (a.spectrum.dims != ("node",) or "eigenvalue" not in a.spectrum.coords):
        raise ValueError(
            f"spectrum has axes {a.spectrum.dims}; it needs 'node' alone, with the coordinate 'eigenvalue'"
        )
    if a.table is None:
        return
    if a.table.dims != ("parameter", *axes) or "bias" not in a.table.coords:
        raise ValueError(
            f"table has axes {a.table.dims} and coordinates {sorted(map(str, a.table.coords))}; "
            f"it needs axes {('parameter', *axes)} and a coordinate 'bias' over 'parameter'"
        )
    if a.table.shape != (a.by_parameter.size, *a.capacity.shape):
        raise ValueError(f"table has shape {a.table.shape}, not {(a.by_parameter.size, *a.capacity.shape)}")


def _check_values(a: Allocation) -> None:
    values: dict[str, xr.DataArray] = {
        "capacity": a.capacity,
        "bias": xr.DataArray(a.bias),
        "by_parameter": a.by_parameter,
    }
    if a.table is not None:
        values |= {"table": a.table, "table.bias": a.table.coords["bias"]}
    if a.spectrum is not None:
        values |= {"spectrum": a.spectrum, "spectrum.eigenvalue": a.spectrum.coords["eigenvalue"]}
    values |= {f"layers[{name!r}]": units for name, units in a.layers.items()}
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or inf")
    if a.spectrum is not None and ((a.spectrum < 0).any() or (a.spectrum.coords["eigenvalue"] < 0).any()):
        raise ValueError("spectrum holds negative numbers; eigenvalues of G and their numbers are not")
    for name in ("capacity", "bias"):
        lowest = float(values[name].min())
        if lowest < -a.TOLERANCE * abs(a.total):
            raise ValueError(f"{name} must be non-negative, but holds {lowest:.6g} (total {a.total:.6g})")


def _check_sums(a: Allocation) -> None:
    scale = float(abs(a.by_parameter).sum()) + abs(a.total)
    _agree("by_parameter.sum()", float(a.by_parameter.sum()), "total", a.total, a.TOLERANCE * scale)
    if a.table is None:
        return
    by_input = a.table.sum("parameter").data - a.capacity.data
    by_tensor = a.table.sum(a.capacity.dims).data + a.table.coords["bias"].data - a.by_parameter.data
    tolerance = a.TOLERANCE * scale
    _agree('table.sum("parameter") - capacity, at worst', float(abs(by_input).max()), "zero", 0.0, tolerance)
    _agree(
        "table.sum(input axes) + table.bias - by_parameter, at worst",
        float(abs(by_tensor).max()),
        "zero",
        0.0,
        tolerance,
    )
    _agree("table.bias.sum()", float(a.table.coords["bias"].sum()), "bias", a.bias, tolerance)


def _agree(name: str, value: float, other: str, expected: float, tolerance: float) -> None:
    if abs(value - expected) > tolerance:
        raise ValueError(f"{name} is {value:.8g} but {other} is {expected:.8g}; they must agree to {tolerance:.2g}")
