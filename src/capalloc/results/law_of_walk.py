"""The answer of `walk`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from capalloc.results.text import briefly


@dataclass(frozen=True)
class Walk:
    """The law of a unit of capacity that starts at the outputs: probabilities of the places where it is found."""

    inputs: xr.DataArray  # over the input's own axes
    bias: float  # at the constant input
    layers: Mapping[str, xr.DataArray]  # by layer, over its units; paths that start above a layer miss it

    __repr__ = briefly
