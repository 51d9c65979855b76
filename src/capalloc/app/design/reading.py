"""The capacity of a design, before any of its weights is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from capalloc._depth.shattering_law import gradient_correlation
from capalloc._linalg.aliases import Array
from capalloc._runtime.arguments import checked
from capalloc.app.design.cost import flops, memory
from capalloc.app.design.hermite_series import HermiteSeries
from capalloc.app.design.one_channel import channel_flow, extent, theoretical_interval
from capalloc.app.design.stack import HOMOGENEOUS_ACTIVATIONS, Design
from capalloc.results.images import smallest_region
from capalloc.results.scaling import DEGENERATE, TRIVIAL
from capalloc.results.shattering import SHATTERED

#: Shares of the walk's law that the effective field's regions hold.
SHARES = (0.68, 0.95)


@dataclass(frozen=True, eq=False)
class Reading:
    """The numbers and maps of a design's central output position (of a causal stack the last), at initial weights.

    Args:
        design: what was read.
        capacity: $kappa$ of every input position by the Markov rule, in parameters, (*positions) (docs/theory.md,
            section 4).
        law: where the walk from the output position ends, summing to 1, (*positions): the effective receptive field.
        extent: of the theoretical receptive field on an axis of an input without borders, in pixels.
        field: start and stop of the theoretical field within the input, the same on every axis.
        rates: $lambda$ of every layer, inf without a skip, (depth,) (section 5).
        gradient: correlation of the gradients at two independent inputs after each gate, those of the layers and the
            head's, (depth + 1,) (section 6).
        index: shattering index, the mean number of decouplings on a path.
        num_params: parameters of the whole network.
        alive: those that some path to the output position uses, from the input or the constant.
        symmetries: how many of these rescaling takes away.
        constant: capacity of the constant input: biases, and the shifts of norms.

    """

    design: Design
    capacity: Array
    law: Array
    extent: int
    field: tuple[int, int]
    rates: Array
    gradient: Array
    index: float
    num_params: int
    alive: int
    symmetries: int
    constant: int = 0

    @property
    def total(self) -> int:
        """Predicted total capacity: parameters in use less rescaling symmetries."""
        return self.alive - self.symmetries

    @property
    def flops(self) -> int:
        """Operations of one forward pass of one example, two for each product of a convolution."""
        return flops(self.design)

    @property
    def memory(self) -> int:
        """Bytes of the values that one forward pass of one example writes, in float32."""
        return memory(self.design)

    @property
    def T(self) -> float:  # noqa: N802
        """$T = sum log(1 + lambda)$ over residual blocks; NaN without any (docs/theory.md, section 5)."""
        residual = self.rates[np.isfinite(self.rates)]
        return float(np.log1p(residual).sum()) if len(residual) else math.nan

    @property
    def phase(self) -> str:
        """The word of `capalloc.diagnose`: "degenerate", "strong", "balanced", "trivial" or "plain"."""
        if math.isnan(self.T):
            return "plain"
        share = math.exp(-self.T)
        if share < DEGENERATE:
            return "degenerate" if self.correlation < SHATTERED else "strong"
        return "trivial" if share > TRIVIAL else "balanced"

    @property
    def correlation(self) -> float:
        """Correlation of the gradients at the input of two independent inputs."""
        return float(self.gradient[-1])

    @property
    def deviation(self) -> float:
        """Standard deviation of the walk along an axis, in pixels."""
        law = self.profile(self.law)
        places = np.arange(len(law))
        return math.sqrt(max(0.0, float(law @ (places - law @ places) ** 2)))

    @property
    def regions(self) -> tuple[Array, ...]:
        """The smallest regions that hold 68 % and 95 % of the law, 1 inside and 0 outside."""
        return tuple(smallest_region(self.law, share).astype(float) for share in SHARES)

    @property
    def cut(self) -> bool:
        """True where the input is too small to hold the theoretical field."""
        return self.field[1] - self.field[0] < self.extent

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about the numbers."""
        return tuple(_notes(self))

    @staticmethod
    def profile(values: Array) -> Array:
        """A map summed over all axes but the last."""
        along: Array = values.sum(tuple(range(values.ndim - 1)))
        return along


@checked
def read(design: Design, between: Callable[[], Any] = lambda: None) -> Reading:
    """Predict what a design does with its capacity: the maps and numbers of its central output position.

    All weights of a layer count as being of one magnitude, and pre-activations as Gaussians of variance 1. Then
    `capalloc.propagate`, `receptive_field` and `scaling` give the same on
    `build(design)` with such weights, and `gradient_correlation` its gradients (docs/theory.md, sections 4 to 6).

    Args:
        design: what to read.
        between: called before every layer of each sweep; what it raises ends the reading.

    """
    series = HermiteSeries.of(design.activation)
    found = channel_flow(design, series.mean_squared_gate / series.mean_square, between)
    rates = found.rates[1:]  # of all but the stem
    law = shattered(design, rates, series)
    scales = sum(design.widths[1:]) if design.norm != "none" else 0  # of norms: one symmetry each
    return Reading(
        design=design,
        capacity=found.capacity,
        law=found.law,
        extent=extent(design),
        field=theoretical_interval(design),
        rates=rates[:-1],
        gradient=law["gradient"].to_numpy(),
        index=float(law["index"][-1]),
        num_params=design.num_params,
        alive=found.alive + scales + design.num_shifts,
        symmetries=found.symmetries + scales,
        constant=design.num_shifts,
    )


def shattered(design: Design, rates: Array, series: HermiteSeries) -> xr.Dataset:
    """The law of shattering: by its closed forms, or from the series where it has none."""
    single = [1] * len(rates)
    pooled = [n**design.ndim for n in (*design.strides[1:], 1)] if design.reduction != "stride" else single
    if design.activation in HOMOGENEOUS_ACTIVATIONS and max(pooled) == 1:
        return gradient_correlation(rates, 0.0, design.activation)
    averages, maxima = (single, pooled) if design.maxima else (pooled, single)
    return gradient_correlation(rates, decoupling=series.decouplings(rates, averages, maxima))


def _notes(reading: Reading) -> list[str]:
    notes, design = [], reading.design
    if reading.cut:
        notes.append(
            f"The theoretical field, {reading.extent} pixels, is larger than the input: paths that zero padding cuts "
            "carry nothing."
        )
    idle = reading.num_params - reading.alive
    if idle:
        notes.append(f"{idle} weights only ever read padding, as seen from the output position that is read.")
    if design.activation == "linear":
        places = (reading.field[1] - reading.field[0]) ** design.ndim
        notes.append(
            f"A linear activation decouples nothing: the network is one linear map of at most {places} inputs, and so "
            "is its capacity. The map shows what the Markov rule gives."
        )
    if reading.phase == "degenerate":
        notes.append("Nearly every path crosses gates, and gradients shatter. Scale branches down.")
    if reading.phase == "trivial":
        notes.append("Nearly all path energy takes no branch: the blocks propagate nothing. Scale branches up.")
    return notes
