"""Allocations made by hand, with numbers that a reader can check."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from capalloc import Allocation

NAMES = ["conv.weight", "conv.bias", "linear.weight"]


def allocation(
    shape: tuple[int, ...] = (1, 4, 6), axes: tuple[str, ...] = (), seed: int = 0, **attrs: Any
) -> Allocation:
    """Random shares of three parameter tensors over inputs of `shape`, in quarters so that sums are exact."""
    axes = axes or ("channel", "row", "column")[-len(shape) :]
    values = np.random.default_rng(seed).integers(0, 9, (len(NAMES), *shape)) / 4
    bias = np.array([0.0, 2.0, 0.5])
    coords = {"parameter": NAMES, "bias": ("parameter", bias)}
    table = xr.DataArray(values, dims=("parameter", *axes), coords=coords)
    inner = table.drop_vars("bias")
    return Allocation(
        capacity=inner.sum("parameter"),
        bias=float(bias.sum()),
        by_parameter=inner.sum(axes) + bias,
        table=table,
        layers={
            "conv": xr.DataArray(np.ones((2, 3)), dims=("channel", "row")),
            "body.0": xr.DataArray([1.0], dims="unit"),
        },
        attrs={"kind": "measured", "num_params": 200, **attrs},
    )
