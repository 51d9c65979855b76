"""Distances of two capacity maps, and whether the two stand on the same data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from capalloc._runtime.arguments import checked
from capalloc.results.allocation import Allocation

#: Relative differences up to which a map is flat: rounding alone would be correlated.
FLAT = 1e-12


@checked
def correlation(a: Allocation, b: Allocation, constant: bool = False) -> float:
    """Pearson correlation of two capacity maps over their inputs, in [-1, 1].

    A correlation needs a null beside it, such as the map of other seeds of the same architecture: what convolutions
    and borders alone do to a map, any two such networks share (docs/validation.md).

    Args:
        a: an allocation.
        b: another, over inputs of the same shape.
        constant: count the constant input as one more input. It is left out by default: a slot that holds many
            times what an input does decides a correlation alone, whatever the map.

    Raises:
        ValueError: the maps differ in shape, or one is constant.

    """
    x, y = _maps(a, b, constant)
    if any(np.ptp(values) <= FLAT * abs(values).max() for values in (x, y)):
        raise ValueError("a constant capacity map has no correlation with another; compare by total_variation")
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y))


@checked
def total_variation(a: Allocation, b: Allocation, constant: bool = True) -> float:
    """Total-variation distance of two normalised capacity maps: sum_i |p_i - q_i| / 2, in [0, 1].

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


def same_data(a: Allocation, b: Allocation) -> bool | None:
    """True where two results stand on the same examples, in any order; None where one of them does not tell."""
    one, other = (result.attrs.get("data_digest") for result in (a, b))
    return None if one is None or other is None else bool(one == other)


def _maps(a: Allocation, b: Allocation, constant: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = a.maps, b.maps
    if max(len(one), len(other)) > 1 and set(one) != set(other):
        raise ValueError(f"the maps are of other inputs: {', '.join(one)} and {', '.join(other)}")
    if len(one) > 1:
        other = {name: other[name] for name in one}  # in any order
    for first, second in zip(one.values(), other.values(), strict=True):
        if first.shape != second.shape:
            raise ValueError(f"the maps differ in shape: {first.shape} and {second.shape}")
    x, y = (np.concatenate([m.to_numpy().astype(float).ravel() for m in maps.values()]) for maps in (one, other))
    return (np.append(x, a.bias), np.append(y, b.bias)) if constant else (x, y)
