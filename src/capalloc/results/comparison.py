"""Distances of two capacity maps, and whether the two stand on the same data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capalloc._runtime.arguments import checked
from capalloc.results.allocation import Allocation

#: Relative differences up to which a map is flat: rounding alone would be correlated.
FLAT = 1e-12
#: What the correlation with a map backwards says.
NULL = "what border against middle alone would give"


@checked
def correlation(a: Allocation, b: Allocation, constant: bool = False, backwards: bool = False) -> float:
    """Pearson correlation of two capacity maps over their inputs, in [-1, 1].

    A correlation needs a null beside it: what convolutions and borders alone do to a map, any two such networks share.
    `backwards=True` is one that needs no other network, what border against middle alone gives; the map of other seeds
    of the same architecture is a stronger one (docs/validation.md).

    Args:
        a: an allocation.
        b: another, over inputs of the same shape.
        constant: count the constant input as one more input. It is left out by default: a slot that holds many
            times what an input does decides a correlation alone, whatever the map.
        backwards: take the places of `b` from last to first, along every axis but those of channels and features.

    Raises:
        ValueError: the maps differ in shape, or one is constant.

    """
    x, y = _maps(a, b, constant, backwards)
    if any(np.ptp(values) <= FLAT * abs(values).max() for values in (x, y)):
        raise ValueError("a constant capacity map has no correlation with another; compare by total_variation")
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y))


@checked
def total_variation(a: Allocation, b: Allocation, constant: bool = True) -> float:
    """Total-variation distance of two normalised capacity maps: $sum_i |p_i - q_i| / 2$, in [0, 1].

    It is the share of capacity that one would have to move to turn one map into the other.

    Args:
        a: an allocation.
        b: another, over inputs of the same shape.
        constant: count the constant input, `bias`, as one more input; False compares how the capacity of the inputs
            alone spreads over them, and does not see how much of the whole they hold.

    Raises:
        ValueError: the maps differ in shape, or one holds no capacity.

    """
    x, y = _maps(a, b, constant)
    if not (x.sum() > 0 and y.sum() > 0):
        raise ValueError(f"a map without capacity cannot be normalised: the sums are {x.sum():.3g} and {y.sum():.3g}")
    return float(abs(x / x.sum() - y / y.sum()).sum()) / 2


def agreement(a: Allocation, b: Allocation) -> dict[str, float]:
    """Distances and correlation of two maps, with its null; NaN where a map is constant or empty.

    Raises:
        ValueError: the maps differ in shape.

    """
    _maps(a, b, constant=False)
    return {
        "total_variation": _or_nan(total_variation, a, b),
        "total_variation_of_inputs": _or_nan(total_variation, a, b, constant=False),
        "correlation": _or_nan(correlation, a, b),
        "correlation_backwards": _or_nan(correlation, a, b, backwards=True),
    }


def doubt(a: Allocation, b: Allocation) -> str:
    """Words for how much of the distance of two maps their errors may be."""
    if any(found.certainty == "a guide" for found in (a, b)):
        return "a guide has no known error, which is part of it"
    errors = [sum(found.attrs.get(name) or 0.0 for name in ("missing", "noise")) for found in (a, b)]
    if any(errors):
        return f"up to about {sum(errors):.2g} of it may be errors of the maps"
    known = all(found.certainty == "exact" for found in (a, b))
    return "of two exact maps" if known else "errors of the maps are part of it"


def same_data(a: Allocation, b: Allocation) -> bool | None:
    """True where two results stand on the same examples, in any order; None where one of them does not tell."""
    one, other = (result.attrs.get("data_digest") for result in (a, b))
    return None if one is None or other is None else bool(one == other)


def _or_nan(measure: Callable[..., float], *args: Any, **how: bool) -> float:
    try:
        return measure(*args, **how)
    except ValueError:
        return math.nan


def _turned(values: xr.DataArray) -> xr.DataArray:
    kept = ("channel", "feature") if values.ndim > 1 else ()
    return values.isel({axis: slice(None, None, -1) for axis in values.dims if axis not in kept})


def _maps(
    a: Allocation, b: Allocation, constant: bool, backwards: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = a.maps, b.maps
    if max(len(one), len(other)) > 1 and set(one) != set(other):
        raise ValueError(f"the maps are of other inputs: {', '.join(one)} and {', '.join(other)}")
    if len(one) > 1:
        other = {name: other[name] for name in one}  # in any order
    for first, second in zip(one.values(), other.values(), strict=True):
        if first.shape != second.shape:
            raise ValueError(f"the maps differ in shape: {first.shape} and {second.shape}")
    if backwards:
        other = {name: _turned(values) for name, values in other.items()}
    x, y = (np.concatenate([m.to_numpy().astype(float).ravel() for m in maps.values()]) for maps in (one, other))
    return (np.append(x, a.bias), np.append(y, b.bias)) if constant else (x, y)
