"""Everything that depth does to one model, with advice: scaling, shattering, receptive field."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from capalloc.energy.carriers import Products
from capalloc.problem import ModelLike, OutputSelection
from capalloc.receptive_field import Extent, receptive_field
from capalloc.scaling import scaling
from capalloc.scaling_result import Scaling
from capalloc.shattering.compare import shattering
from capalloc.shattering.result import Shattering
from capalloc.storage import Stored, check_variables
from capalloc.words import Tables, heading, in_lines, in_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELD = ("axis", "field_size", "field_start", "field_stride", "field_cut", "field_deviation")


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis(Stored):
    """`scaling`, `shattering` and the receptive field of one model, as one result.

    Args:
        data: the variables of a `Scaling` and of a `Shattering`, and by input axis `field_size`, `field_start`,
            `field_stride`, `field_cut` and `field_deviation` of the central output position (`receptive_field`).

    Raises:
        ValueError: a variable is missing, or an invariant of one of the parts does not hold.

    """

    FORMAT = "capalloc-diagnosis"

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
            rows.append(
                [str(axis), f"{size:g}{' (cut)' if cut else ''}", f"{start:g}", f"{stride:g}", f"{deviation:.3g}"]
            )
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

    def __repr__(self) -> str:
        return heading("Diagnosis", self.summary) + in_lines(self.tables(), self.advice)

    def _repr_html_(self) -> str:
        return in_table("Diagnosis", self.summary, self.tables(), self.advice)


def diagnose(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    num_examples: int = 8,
    generator: torch.Generator | None = None,
    products: Products | None = None,
) -> Diagnosis:
    """`scaling`, `shattering` and `receptive_field` of one model, with advice in words.

    docs/theory.md, sections 5 and 6.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), at least two, or an iterable of such batches; labels are ignored.
        outputs: from what the model returns to the tensor where paths end.
        num_examples: examples whose gradients are compared, the first ones.
        generator: as in `shattering`.
        products: as in `propagate`.

    Raises:
        UnsupportedOperatorError, ValueError, TypeError: as `shattering` and `propagate`.

    """
    shattered = shattering(model, inputs, outputs, num_examples=num_examples, generator=generator, products=products)
    scaled = scaling(model, inputs, outputs, products=products)
    field = _field(model, inputs, outputs)
    attrs = {"scaling": scaled.data.attrs, "shattering": shattered.data.attrs}
    parts = [scaled.data, shattered.data, field]
    return Diagnosis(xr.merge([part.drop_attrs() for part in parts]).assign_attrs(attrs))


def _field(model: ModelLike, inputs: Tensor | Iterable[Any], outputs: OutputSelection) -> xr.Dataset:
    """By input axis; by none where no path reaches the central position on these examples."""
    axes: dict[str, Extent] = {}
    with suppress(ValueError):
        axes.update(receptive_field(model, inputs, outputs).axes)
    columns = {
        name: ("axis", np.array([float(getattr(extent, name.removeprefix("field_"))) for extent in axes.values()]))
        for name in FIELD[1:]
    }
    return xr.Dataset(columns, coords={"axis": np.array(list(axes), dtype=object)})


def _part(data: xr.Dataset, *dims: str) -> xr.Dataset:
    """The variables over some dimensions."""
    kept = [name for name, variable in data.variables.items() if variable.dims and set(variable.dims) <= set(dims)]
    return data[kept]
