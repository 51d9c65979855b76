"""The result of `diagnose`: works from a saved file, with no model at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import matplotlib.pyplot as plt
import xarray as xr

from capalloc.results.base import Stored, check_variables
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import Shattering
from capalloc.results.view import Card, Shown
from capalloc.results.words import Tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELD = ("axis", "field_size", "field_start", "field_stride", "field_cut", "field_deviation")


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis(Stored, Shown):
    """`scaling`, `shattering` and the receptive field of one model, as one result.

    Args:
        data: the variables of a `Scaling` and of a `Shattering`, and by input axis `field_size`, `field_start`,
            `field_stride`, `field_cut` and `field_deviation` of the central output position (`receptive_field`).

    Raises:
        ValueError: a variable is missing, or an invariant of one of the parts does not hold.

    """

    FORMAT = "capalloc-diagnosis"
    ROWS: ClassVar = {"layers": "layer", "blocks": "block", **Shattering.ROWS, "axes": "axis"}

    def check(self) -> None:
        """All parts are there."""
        check_variables(self.data, FIELD, "capalloc.diagnose()")
        _ = self.scaling, self.shattering

    @property
    def scaling(self) -> Scaling:
        """Rates of residual blocks, gains of layers."""
        return Scaling(_part(self.data, "block", "layer"))

    @property
    def shattering(self) -> Shattering:
        """Correlations of gradients."""
        return Shattering(_part(self.data, "place", "gate", "distance"))

    @property
    def advice(self) -> list[str]:
        """What to change; empty where nothing is out of balance."""
        return [*self.scaling.advice, *self.shattering.advice]

    def tables(self) -> Tables:
        """The rows that a person reads, header first."""
        rows = [["axis", "size", "from", "stride", "deviation"]]
        for k in range(self.data.sizes["axis"]):
            axis, size, start, stride, cut, deviation = (self.data[name].to_numpy()[k] for name in FIELD)
            every = "" if stride != stride else f"{stride:g}"  # NaN: none
            rows.append([str(axis), f"{size:g}{' (cut)' if cut else ''}", f"{start:g}", every, f"{deviation:.3g}"])
        field = {"receptive field": rows} if len(rows) > 1 else {}
        return {**self.scaling.tables(), **self.shattering.tables(), **field}

    def plot(self) -> Figure:
        """A figure of three panels: rates or gains by depth, gradients by depth, gradients along a line."""
        figure = plt.figure(figsize=(13, 4), layout="constrained")
        axes = figure.subplots(1, 3)
        self.scaling.plot(axes[0])
        self.shattering.plot(axes[1])
        self.shattering.plot_line(axes[2])
        return figure

    @property
    def summary(self) -> str:
        """The figures that matter most, in one line."""
        scaled, shattered = self.scaling, self.shattering
        depth = scaled.phase if scaled.phase == "plain" else f"{scaled.phase}, T = {scaled.T:.3g}"
        return f"{depth}; shattering index {shattered.index:.3g}, correlation of gradients {shattered.correlation:.3g}"

    def _card(self) -> Card:
        return Card("Diagnosis", self.summary, tables=self.tables(), notes=self.advice)


def _part(data: xr.Dataset, *dims: str) -> xr.Dataset:
    """The variables over some dimensions."""
    kept = [name for name, variable in data.variables.items() if variable.dims and set(variable.dims) <= set(dims)]
    return data[kept]
