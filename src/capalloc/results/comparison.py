"""Distances of two capacity maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from capalloc.results.allocation import Allocation


def correlation(a: Allocation, b: Allocation) -> float:
    """Pearson correlation of two capacity maps over their inputs, in [-1, 1].

    Args:
        a: an allocation.
        b: another, over inputs of the same shape.

    Raises:
        ValueError: the maps differ in shape, or one is constant.

    """
    x, y = _maps(a, b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    if scale == 0:
        raise ValueError("a constant capacity map has no correlation with another; compare by total_variation")
    return float(x @ y) / scale


def total_variation(a: Allocation, b: Allocation) -> float:
    """Total-variation distance of two normalised capacity maps: sum_i |p_i - q_i| / 2, in [0, 1].

    It is the share of capacity that one would have to move to turn one map into the other; `bias` is left out.

    Args:
        a: an allocation.
        b: another, over inputs of the same shape.

    Raises:
        ValueError: the maps differ in shape, or one holds no capacity.

    """
    x, y = _maps(a, b)
    if not (x.sum() > 0 and y.sum() > 0):
        raise ValueError(f"a map without capacity cannot be normalised: the sums are {x.sum():.3g} and {y.sum():.3g}")
    return float(abs(x / x.sum() - y / y.sum()).sum()) / 2


def _maps(a: Allocation, b: Allocation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if a.capacity.shape != b.capacity.shape:
        raise ValueError(f"the maps differ in shape: {a.capacity.shape} and {b.capacity.shape}")
    return a.capacity.to_numpy().astype(float).ravel(), b.capacity.to_numpy().astype(float).ravel()
