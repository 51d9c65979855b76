"""The part of a result that a training log holds: scalars, pictures and histograms by tag, all from its view.

A tag is "group/name"; the group is what a board folds together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capalloc.results.base import Result
from capalloc.results.images import image, limits
from capalloc.results.svg import colours

#: Pixels of a picture's longer side, and of its shorter one, at least.
LONG, SHORT = 128, 16


@dataclass(frozen=True)
class Summary:
    """Everything written at one step, by tag."""

    scalars: Mapping[str, float]
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # (colour, row, column)
    histograms: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        finite = {tag: value for tag, value in self.scalars.items() if not math.isnan(value)}
        object.__setattr__(self, "scalars", finite)


def summarise(result: object, group: str) -> Summary:
    """Sum up a result under a group of tags.

    Raises:
        TypeError: it is no result.

    """
    if not isinstance(result, Result):
        raise TypeError(
            f"a method must return a result, such as an Allocation, got {type(result).__name__} for {group!r}"
        )
    view = result.view()
    numbers = {name: value for name, value in view.values.items() if isinstance(value, (int, float))}
    scalars = {f"{group}/{name}": float(value) for name, value in numbers.items()}
    for what, along in view.series.items():
        scalars |= {f"{group}_{what}/{name}": float(value) for name, value in along.items()}
    if not view.maps:
        return Summary(scalars)
    # With the value of the brightest colour of each; one map has no name of its own.
    named = {f"_{shown.name}" if shown.name else "": shown.values for shown in view.maps}
    return Summary(
        scalars | {f"{group}/largest{k}": float(image(values).max()) for k, values in named.items()},
        images={f"{group}/map{k}": map_image(values) for k, values in named.items()},
        histograms={f"{group}/inputs{k}": values.to_numpy().astype(float).ravel() for k, values in named.items()},
    )


def map_image(values: xr.DataArray) -> NDArray[np.uint8]:
    """Draw a map in colours, black-blue for 0 and yellow for its largest value, (colour, row, column).

    Every input is a rectangle of pixels, so that small maps can be seen.
    """
    flat = image(values)
    cells = np.atleast_2d(flat.to_numpy().astype(float))
    pixels = np.asarray(np.round(colours(cells / limits(flat)[1]) * 255), dtype=np.uint8)
    longer = max(cells.shape)
    for axis, size in enumerate(cells.shape):
        pixels = pixels.repeat(max(-(-LONG // longer), -(-SHORT // size)), axis)
    return pixels.transpose(2, 0, 1)
