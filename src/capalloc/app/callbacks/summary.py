"""What a training log holds of a result: scalars, pictures and histograms by tag.

A tag is "group/name"; the group is what a board folds together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capalloc.results.allocation import Allocation
from capalloc.results.decoupling import Decoupling
from capalloc.results.plots import colours, limits
from capalloc.results.regions import image
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import Shattering

Loggable: TypeAlias = Allocation | Decoupling | Scaling | Shattering

#: Pixels of a picture's longer side, and of its shorter one, at least.
LONG, SHORT = 128, 16


@dataclass(frozen=True)
class Summary:
    """What is written at one step, by tag."""

    scalars: Mapping[str, float]
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # (colour, row, column)
    histograms: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        finite = {tag: value for tag, value in self.scalars.items() if not math.isnan(value)}
        object.__setattr__(self, "scalars", finite)


@singledispatch
def summarise(result: object, group: str) -> Summary:
    """The summary of a result under a group of tags.

    Raises:
        TypeError: the result is of a kind that no log holds.

    """
    raise TypeError(
        f"a method must return an Allocation, Decoupling, Scaling or Shattering, got {type(result).__name__} for "
        f"{group!r}"
    )


@summarise.register
def _(result: Allocation, group: str) -> Summary:
    scalars = {f"{group}/total": result.total, f"{group}/bias": result.bias, f"{group}/largest": _largest(result)}
    for name in ("total", "bias"):
        if (error := result.attrs.get(f"{name}_standard_error")) is not None:
            scalars[f"{group}/{name}_standard_error"] = float(error)
    layers = {f"{group}_layers/{layer}": capacity for layer, capacity in by_layer(result).items()}
    return Summary(
        scalars | layers,
        images={f"{group}/map": map_image(result.capacity)},
        histograms={f"{group}/inputs": result.capacity.to_numpy().astype(float).ravel()},
    )


@summarise.register
def _(result: Scaling, group: str) -> Summary:
    rates = _along(result.data["rate"], f"{group}_rates")
    if result.phase != "plain":
        return Summary({f"{group}/T": result.T, f"{group}/skip_share": result.skip_share} | rates)
    return Summary({f"{group}/total_gain": result.total_gain} | _along(result.data["gain"], f"{group}_gains"))


@summarise.register
def _(result: Decoupling, group: str) -> Summary:
    return Summary(_along(result.data["decoupling"], f"{group}_layers"))


@summarise.register
def _(result: Shattering, group: str) -> Summary:
    return Summary({f"{group}/index": result.index, f"{group}/correlation": result.correlation})


def by_layer(allocation: Allocation) -> dict[str, float]:
    """Capacity that each layer's parameter tensors bring, summed over its weight, bias and the like."""
    found: dict[str, float] = {}
    for name, capacity in allocation.by_parameter.to_series().items():
        layer = str(name).rpartition(".")[0] or str(name)
        found[layer] = found.get(layer, 0.0) + float(capacity)
    return found


def map_image(values: xr.DataArray) -> NDArray[np.uint8]:
    """A map in colours, black-blue for 0 and yellow for its largest value, (colour, row, column).

    Every input is a rectangle of pixels, so that small maps can be seen.
    """
    flat = image(values)
    cells = np.atleast_2d(flat.to_numpy().astype(float))
    pixels = np.asarray(np.round(colours(cells / limits(flat)[1]) * 255), dtype=np.uint8)
    longer = max(cells.shape)
    for axis, size in enumerate(cells.shape):
        pixels = pixels.repeat(max(-(-LONG // longer), -(-SHORT // size)), axis)
    return pixels.transpose(2, 0, 1)


def _largest(allocation: Allocation) -> float:
    """The value of the brightest colour of the map."""
    return float(image(allocation.capacity).max())


def _along(values: xr.DataArray, group: str) -> dict[str, float]:
    return {f"{group}/{name}": float(value) for name, value in values.to_series().items()}
