"""The result of every method: capacity per input, per parameter tensor, and the table of the two.

Nothing here knows a model: whatever comes after an `Allocation` works from a saved file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FORMAT = "capalloc-allocation-1"
_LAYER = "layer/"


@dataclass(frozen=True)
class Allocation:
    """Where capacity goes: kappa_i for every input and the constant input, in units of one parameter.

    The invariants (docs/theory.md, sections 1, 2 and 4) hold to a relative `TOLERANCE` where it is built:
    `capacity.sum() + bias == total == by_parameter.sum()`, `table.sum("parameter") == capacity` and
    `table.sum(input axes) + table.bias == by_parameter`, where the coordinate `table.bias` is the share
    of the constant input.

    Args:
        capacity: kappa_i over the input's own axes, non-negative.
        bias: capacity of the constant input.
        by_parameter: capacity that each parameter tensor brings, over "parameter".
        table: capacity over ("parameter", *input axes) with the coordinate "bias", or None where it was
            not asked for.
        layers: capacity that each unit of a layer holds on its way down, by layer name.
        attrs: how it was made: `kind`, `num_params`, `num_examples`, settings, `notes`.

    Raises:
        ValueError: an invariant does not hold; the message names it and the two values.

    """

    capacity: xr.DataArray
    bias: float
    by_parameter: xr.DataArray
    table: xr.DataArray | None = None
    layers: Mapping[str, xr.DataArray] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    #: Relative to the total: sums of up to 1e7 float64 terms, or of float32 energies, stay well inside it.
    TOLERANCE = 1e-4
