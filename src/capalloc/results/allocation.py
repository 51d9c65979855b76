"""The result of every method: capacity per input, per parameter tensor, and the table of the two.

Nothing here knows a model: whatever comes after an `Allocation` works from a saved file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from capalloc.results.base import Savable
from capalloc.results.frames import input_frame, param_frame, spectrum_frame, table_frame, unit_frame
from capalloc.results.invariants import check
from capalloc.results.partitions import Partition, sum_parts
from capalloc.results.plots import plot_map
from capalloc.results.regions import grid
from capalloc.results.view import Card, Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class Allocation(Savable, Shown):
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
        attrs: how it was made: `kind`, `num_params`, `num_examples`, settings, `notes`. Plain values, kept
            as JSON keeps them (a tuple becomes a list).
        spectrum: how many eigenvalues of G lie at each node, over "node" with the coordinate `eigenvalue`; the
            eigenvalues themselves, one each, where they are known. None for methods that have no G.

    Raises:
        ValueError: an invariant does not hold; the message names it and the two values.
        TypeError: `attrs` hold what JSON cannot.

    """

    capacity: xr.DataArray
    bias: float
    by_parameter: xr.DataArray
    table: xr.DataArray | None = None
    layers: Mapping[str, xr.DataArray] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    spectrum: xr.DataArray | None = None

    FORMAT = "capalloc-allocation"
    ROWS = ("inputs", "params", "table", "units", "spectrum")
    #: Relative to the total: sums of up to 1e7 float64 terms, or of float32 energies, stay well inside it.
    TOLERANCE = 1e-4

    def __post_init__(self) -> None:
        own = {
            "capacity": self.capacity.rename("capacity"),
            "bias": float(self.bias),
            "by_parameter": self.by_parameter.rename("by_parameter"),
            "table": None if self.table is None else self.table.rename("table"),
            "layers": {name: units.rename(name) for name, units in self.layers.items()},
            "attrs": _plain(self.attrs),
            "spectrum": None if self.spectrum is None else self.spectrum.rename("spectrum"),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)
        check(self)

    @property
    def total(self) -> float:
        """Capacity of all inputs and the constant one: `capacity.sum() + bias`."""
        return float(self.capacity.sum()) + self.bias

    def by(self, partition: Partition) -> xr.DataArray:
        """Capacity of every part of a partition of the inputs, over "part"; parts sum to `total - bias`.

        Args:
            partition: the name of an axis, such as "channel"; an array of one label per input; or a function that
                makes labels from the map: `capalloc.partitions.regions`, `patches(4, 4)`, `bands([0.1, 0.2])`.

        Raises:
            TypeError, ValueError: labels that do not fit the map.

        """
        return sum_parts(self.capacity, partition)

    def to_xarray(self) -> xr.Dataset:
        """Everything as one Dataset, `attrs` among its attributes.

        Variables: `capacity`, `bias`, `by_parameter`, with a table `table` and `table_bias`, and for the
        k-th layer `layer_k`, whose axes are named `layer_k_...` and whose attribute "layer" is its name; `spectrum`
        where there is one.
        """
        variables = {
            "capacity": self.capacity,
            "bias": xr.DataArray(self.bias),
            "by_parameter": self.by_parameter,
        }
        if self.table is not None:
            variables["table"] = _without_extras(self.table)
            variables["table_bias"] = self.table.coords["bias"].drop_vars("bias")
        if self.spectrum is not None:
            variables["spectrum"] = self.spectrum
        for k, (name, units) in enumerate(self.layers.items()):
            own = units.rename({dim: f"layer_{k}_{dim}" for dim in units.dims})
            variables[f"layer_{k}"] = own.assign_attrs(layer=name)
        return xr.Dataset(variables, attrs=dict(self.attrs))

    @classmethod
    def from_xarray(cls, dataset: xr.Dataset) -> Allocation:
        """The allocation that `to_xarray` was called on.

        Raises:
            ValueError: a variable is missing, or the invariants do not hold.

        """
        missing = sorted({"capacity", "bias", "by_parameter"} - set(map(str, dataset.data_vars)))
        if missing:
            raise ValueError(f"the dataset lacks {missing}; Allocation.to_xarray() makes one that has them")
        table = dataset.get("table")
        if table is not None:
            table = _without_extras(table).assign_coords(bias=("parameter", dataset["table_bias"].data))
        names = sorted((str(v) for v in dataset.data_vars if "layer" in dataset[v].attrs), key=_layer_number)
        return cls(
            capacity=dataset["capacity"],
            bias=float(dataset["bias"]),
            by_parameter=dataset["by_parameter"],
            table=table,
            layers={dataset[name].attrs["layer"]: _own_axes(dataset[name]) for name in names},
            attrs=dataset.attrs,
            spectrum=dataset.get("spectrum"),
        )

    def to_pandas(self, rows: str | None = None) -> pd.DataFrame:
        """A tidy table of capacity, in parameters.

        Args:
            rows: "inputs", a row for each with a column for each of its axes (coordinates, or else positions) and for
                what else is known of it, such as `standard_error`; the constant input is no row, its capacity is
                `frame.attrs["bias"]`. "params", a row for each parameter tensor, with `share` of the total. "table",
                a row for each parameter tensor and input. "units", a row for each unit of a layer, numbered row by
                row. "spectrum", a row for each node.

        Raises:
            ValueError: other rows, or ones that this allocation does not hold.

        """
        return super().to_pandas(rows)

    def _frame(self, rows: str) -> pd.DataFrame:
        makers = {"inputs": input_frame, "params": param_frame, "table": table_frame, "units": unit_frame}
        return makers.get(rows, spectrum_frame)(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the capacity map on `ax`, or on a new figure: axes before the last two are summed."""
        return plot_map(self.capacity, ax, title=f"{self._kind} capacity, {self.total:.5g} in total")

    @property
    def _kind(self) -> str:
        return str(self.attrs.get("kind", "allocated"))

    def _facts(self) -> dict[str, str]:
        """What a person wants to know first, in a few words each."""
        parameters = self.attrs.get("num_params")
        total = _with_error(self.total, self.attrs.get("total_standard_error"))
        facts = {"capacity": total + (f" of {parameters} parameters" if parameters else "")}
        facts["inputs"] = ", ".join(f"{dim} {size}" for dim, size in self.capacity.sizes.items())
        if self.total > 0:
            bias = _with_error(self.bias, self.attrs.get("bias_standard_error"))
            facts["on bias"] = f"{bias} ({self.bias / self.total:.1%})"
            facts["most on"] = _most(self.capacity, self.total)
        return facts

    def _card(self) -> Card:
        errors = self.attrs.get("by_parameter_standard_error", {})
        tensors = [
            [str(name), _with_error(value, errors.get(name)), f"{value / self.total:.1%}" if self.total else ""]
            for name, value in self.by_parameter.to_series().items()
        ]
        return Card(
            "Allocation",
            self._kind,
            facts=self._facts(),
            details={"parameter tensors": [["tensor", "capacity", "share"], *tensors]},
            notes=[str(note) for note in self.attrs.get("notes", ())],
            map=self.capacity,
        )


def _with_error(value: float, error: float | None) -> str:
    """A number, with its standard error where it has one."""
    return f"{value:.6g}" if error is None else f"{value:.6g} ± {error:.2g}"


def _most(capacity: xr.DataArray, total: float) -> str:
    """The region that holds most, for an image; else the input that does."""
    if capacity.ndim > 1:
        regions = grid(capacity)
        top = regions[int(regions.to_numpy().argmax())]
        return f"{top['region'].item()}, {float(top) / total:.1%}"
    axis, index = capacity.dims[0], int(capacity.to_numpy().argmax())
    place = capacity[axis][index].item() if axis in capacity.coords else index
    return f"{axis} {place}, {float(capacity[index]) / total:.1%}"


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `attrs` as JSON keeps it."""
    plain = {}
    for key, value in attrs.items():
        try:
            plain[str(key)] = json.loads(json.dumps(value, default=_scalar))
        except TypeError as error:
            raise TypeError(
                f"attrs[{key!r}] is a {type(value).__name__}, which a file cannot keep ({error}); "
                "use numbers, strings, booleans, None, and lists or mappings of them"
            ) from error
    return plain


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"no plain value: {type(value).__name__}")


def _without_extras(values: xr.DataArray) -> xr.DataArray:
    """The array with the coordinates of its axes alone."""
    return values.drop_vars([name for name in values.coords if name not in values.dims])


def _own_axes(variable: xr.DataArray) -> xr.DataArray:
    """A layer as it was: its own axis names, without the attribute that names it."""
    prefix = f"{variable.name}_"
    own = variable.rename({dim: str(dim).removeprefix(prefix) for dim in variable.dims})
    own.attrs = {key: value for key, value in variable.attrs.items() if key != "layer"}
    return own


def _layer_number(name: str) -> int:
    return int(name.removeprefix("layer_"))
