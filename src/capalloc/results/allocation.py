"""The result of every method: capacity per input, per parameter tensor, and the table of the two.

Nothing here knows a model: whatever comes after an `Allocation` works from a saved file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import xarray as xr

from capalloc._runtime.arguments import checked
from capalloc.results.base import Result, Variable, words_for
from capalloc.results.frames import input_frame, module_sums, param_frame, spectrum_frame, table_frame, unit_frame
from capalloc.results.invariants import check_axes, check_sums, check_values
from capalloc.results.regions import Partition, place_word, places_table, regions_by_mean, sum_parts
from capalloc.results.several import split
from capalloc.results.view import Fact, Map, Table, View, counted, standing

#: Attributes that are worth a line beside the capacity, and how each is written.
COUNTED = {"num_examples": ",", "symmetries": ",", "unseen_params": ",", "unused_params": ",", "seconds": ".3g"}
#: How far the numbers of each solver may be trusted.
CERTAINTY = {
    "dense": "exact",
    "stochastic": "estimated",
    "block": "estimated",
    **dict.fromkeys(("markov", "segments", "hessian"), "a guide"),
}


class Allocation(Result):
    """The map of capacity: $kappa_i$ for every input and the constant input, in units of one parameter.

    The invariants (docs/theory.md, sections 1, 2 and 4) hold to a relative `TOLERANCE` where it is built:
    `capacity.sum() + bias == total == by_parameter.sum()`, `table.sum("parameter") == capacity` and
    `table.sum(input axes) + table.bias == by_parameter`, where the coordinate `table.bias` is the share
    of the constant input.

    `to_pandas` has a row for each of "inputs", with a column for each of its axes (coordinates, or else positions) and
    for what else is known of it, such as `standard_error`; the constant input is no row, its capacity is
    `frame.attrs["bias"]`. For "params", each parameter tensor, with its `share` of the total; "table", each parameter
    tensor and input; "units", each unit of a layer, numbered row by row; "spectrum", each node.

    Of a model that takes several inputs `capacity` is over one axis, "input", that holds them one after the other;
    `maps` and `tables` give each over its own axes, by name. `attrs["inputs"]` lists them.

    Args:
        capacity: $kappa_i$ over the input's own axes, non-negative.
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

    FORMAT = "capalloc-allocation"
    MAKER = "Allocation.to_xarray()"
    SCHEMA: ClassVar = {
        "capacity": Variable(("*",), finite=True),
        "bias": Variable((), finite=True),
        "by_parameter": Variable(("parameter",), finite=True),
    }
    ROWS: ClassVar = {
        "inputs": input_frame,
        "params": param_frame,
        "table": table_frame,
        "units": unit_frame,
        "spectrum": spectrum_frame,
    }
    capacity: xr.DataArray
    by_parameter: xr.DataArray
    #: Relative to the total: sums of up to 1e7 float64 terms, or of float32 energies, stay well inside it.
    TOLERANCE = 1e-4

    def __init__(
        self,
        capacity: xr.DataArray,
        bias: float,
        by_parameter: xr.DataArray,
        table: xr.DataArray | None = None,
        layers: Mapping[str, xr.DataArray] | None = None,
        attrs: Mapping[str, Any] | None = None,
        spectrum: xr.DataArray | None = None,
    ) -> None:
        check_axes(capacity, by_parameter, table, spectrum)
        variables = {"capacity": capacity, "bias": xr.DataArray(float(bias)), "by_parameter": by_parameter}
        if table is not None:
            variables["table"] = table.reset_coords(drop=True)
            variables["table_bias"] = table.coords["bias"].drop_vars("bias")
        if spectrum is not None:
            variables["spectrum"] = spectrum
        for k, (name, units) in enumerate((layers or {}).items()):
            own = units.rename({dim: f"layer_{k}_{dim}" for dim in units.dims})
            variables[f"layer_{k}"] = own.assign_attrs(layer=name)
        super().__init__(xr.Dataset(variables, attrs=dict(attrs or {})))

    def check(self) -> None:
        """Axes, values and sums agree."""
        table = self.table
        check_axes(self.capacity, self.by_parameter, table, self.spectrum)
        check_values(self, table)
        check_sums(self, table)

    @property
    def bias(self) -> float:
        """Capacity of the constant input."""
        return float(self.data.variables["bias"].values)

    @property
    def table(self) -> xr.DataArray | None:
        """Capacity over ("parameter", *input axes) with the coordinate "bias", if it was asked for."""
        if "table" not in self.data:
            return None
        return (
            self.data["table"].reset_coords(drop=True).assign_coords(bias=("parameter", self.data["table_bias"].data))
        )

    @property
    def layers(self) -> dict[str, xr.DataArray]:
        """Capacity that each unit of a layer holds on its way down, by layer name."""
        names = [str(name) for name, variable in self.data.data_vars.items() if "layer" in variable.attrs]
        found = (self.data[name] for name in sorted(names, key=lambda name: int(name.removeprefix("layer_"))))
        return {units.attrs["layer"]: _own_axes(units) for units in found}

    @property
    def spectrum(self) -> xr.DataArray | None:
        """Numbers of eigenvalues of G at each node, for methods that have a G."""
        return self.data.get("spectrum")

    @property
    def attrs(self) -> dict[str, Any]:
        """The settings that it was made with."""
        return dict(self.data.attrs)

    @property
    def total(self) -> float:
        """Capacity of all inputs and the constant one: `capacity.sum() + bias`."""
        return float(self.data.variables["capacity"].values.sum()) + self.bias

    @property
    def certainty(self) -> str | None:
        """Trust that the numbers deserve: "exact", "estimated", with errors, or "a guide"; None where unknown."""
        return CERTAINTY.get(str(self.attrs.get("solver")))

    @property
    def maps(self) -> dict[str, xr.DataArray]:
        """Capacity of each input over its own axes, by name; of a single tensor under "inputs"."""
        return split(self.capacity, self.attrs.get("inputs"))

    @property
    def tables(self) -> dict[str, xr.DataArray]:
        """The table of each input, by name: capacity over ("parameter", *its own axes); empty without a table."""
        return {} if self.table is None else split(self.table, self.attrs.get("inputs"))

    def by(self, partition: Partition, name: str | None = None) -> xr.DataArray:
        """Sum capacity over every part of a partition of the inputs; parts sum to `total - bias`.

        Args:
            partition: the name of an axis, such as "channel"; an array of one label per input; or a function that
                makes labels from the map: `capalloc.partitions.regions`, `patches(4, 4)`, `bands([0.1, 0.2])`. Of
                several inputs, "input_name" makes a part of each.
            name: one of several inputs: only its map is divided.

        Returns:
            Capacity over "part".

        Raises:
            TypeError, ValueError: labels that do not fit the map, or no input of that name.

        """
        if name is None:
            return sum_parts(self.capacity, partition)
        if name not in self.maps:
            raise ValueError(f"there is no input {name!r}; there are {', '.join(self.maps)}")
        return sum_parts(self.maps[name], partition)

    @checked
    def by_module(self, depth: int | None = None) -> xr.DataArray:
        """Sum the capacity of parameter tensors over each module; the sums add up to `total`.

        Args:
            depth: names of a module's path that count: 1 for the model's children, 2 for theirs too, and so on. None
                for the modules that own the tensors.

        Returns:
            Capacity over "module", in the order of the parameters; a tensor of the model's own is under its own name.

        Raises:
            ValueError: depth is less than 1.

        """
        return module_sums(self.by_parameter, depth)

    def view(self) -> View:
        """Totals with their doubt, parameter tensors, and the map, over axes in the model's words."""
        self = worded(self)
        kind = str(self.attrs.get("kind", "allocated"))
        doubts = ("total_standard_error", "bias_standard_error")
        return self._view(
            title="Capacity",
            heading=self.certainty or kind,
            facts=self._facts(),
            brief=(4 if self.total > 0 else 2) + len(self.standing),
            tables=[*self._inputs(), *self._places(), self._tensors()],
            maps=self._maps(kind),
            values={"total": self.total, "bias": self.bias, "certainty": self.certainty}
            | {d: self.attrs[d] for d in doubts if d in self.attrs}
            | ({"by_input": self._by_input()} if len(self.maps) > 1 else {}),
            series={"layers": self.by_module().to_series().to_dict()},
            rows=("params",),
        )

    def _facts(self) -> list[Fact]:
        attrs, total = self.attrs, self.total
        parameters = attrs.get("num_params")
        written = counted(total, attrs.get("total_standard_error"))
        facts = [
            Fact("capacity", written, f"of {parameters:,} parameters" if parameters else ""),
            *self.standing,
            Fact("inputs", "; ".join(_sizes(values, name) for name, values in self._named())),
        ]
        if total > 0:
            bias = counted(self.bias, attrs.get("bias_standard_error"))
            facts.append(Fact("on bias", bias, f"({self.bias / total:.1%})"))
            name, most = max(self._named(), key=lambda named: float(named[1].max()))
            facts.append(Fact("most on", f"{name} {_most(most, total)}".strip()))
        if attrs.get("half_total") is not None:
            facts.append(
                Fact("on half", counted(attrs["half_total"]), f"on the first {attrs['half_examples']} examples")
            )
        return facts + [
            Fact(name.removeprefix("num_").replace("_params", " parameters"), f"{attrs[name]:{written}}")
            for name, written in COUNTED.items()
            if attrs.get(name) is not None and (name != "num_examples" or attrs.get("gates", "data") == "data")
        ]

    @property
    def standing(self) -> list[Fact]:
        """A line that says how far the numbers may be trusted; none where nothing is known of it."""
        attrs = self.attrs
        more = {
            "exact": f"but for rounding, for these examples{' and this ridge' * bool(attrs.get('ridge'))}",
            "estimated": "(after ± stand standard errors)",
            "a guide": "(gates are taken to decouple totally; no error is known)",
        }
        if "missing" in attrs:
            low, high = attrs.get("total_range", (0.0, 0.0))
            total = f"the total from {counted(low)} to {counted(high)}" if low else f"the total up to {counted(high)}"
            total = "the total is exact" if attrs.get("total_exact") else total if high else ""
            within = f"the map within about {attrs['missing'] + attrs.get('noise', 0.0):.2f} of the exact one"
            if "noise_of_regions" in attrs:
                within += f", sums of its regions within {attrs['missing'] + attrs['noise_of_regions']:.2f}"
            more["estimated"] = f"({'; '.join(filter(None, (within, total)))})"
        return [standing(self.certainty, more[self.certainty])] if self.certainty else []

    def _named(self) -> list[tuple[str, xr.DataArray]]:
        """The maps, with names where there are several."""
        return list(self.maps.items()) if len(self.maps) > 1 else [("", self.capacity)]

    def _maps(self, kind: str) -> list[Map]:
        if len(self.maps) == 1:
            return [Map(self.capacity, title=f"{kind} capacity, {self.total:.5g} in total")]
        return [
            Map(
                values,
                title=f"{name}: {kind} capacity, {float(values.sum()):.5g}",
                caption=f"{name}: capacity in parameters",
                name=name,
            )
            for name, values in self.maps.items()
        ]

    def _by_input(self) -> dict[str, float]:
        return {name: float(values.sum()) for name, values in self.maps.items()}

    def _inputs(self) -> list[Table]:
        """A table of what each of several inputs holds."""
        held, total = self._by_input(), self.total
        if len(held) == 1:
            return []
        errors = self.attrs.get("by_region_standard_error", {})
        rows = [
            [name, _with_error(value, errors.get(name)), f"{value / total:.1%}" if total else ""]
            for name, value in held.items()
        ]
        return [Table("inputs", ["input", "capacity", "share"], rows, list(held.values()))]

    def _places(self) -> list[Table]:
        if len(self.maps) > 1 or not self.total > 0:
            return []
        return places_table(self.capacity, self.attrs.get("by_region_standard_error", {}))

    def _tensors(self) -> Table:
        attrs = self.attrs
        errors, total = self.attrs.get("by_parameter_standard_error", {}), self.total
        sizes, values = self.attrs.get("parameter_sizes"), self.by_parameter.to_series()
        rows = [
            [
                str(name),
                _with_error(value, errors.get(str(name))),
                f"{value / total:.1%}" if total else "",
            ]
            for name, value in values.items()
        ]
        head = ["tensor", "capacity", "share"]
        if sizes:  # not where the user made the allocation
            head += ["parameters", "use"]
            for row, (name, value) in zip(rows, values.items(), strict=True):
                known = sizes[name] and (value or not attrs.get("unseen_params"))
                known = known and name not in attrs.get("unseen_by_parameter", ())
                row += [f"{sizes[name]:,}", f"{value / sizes[name]:.2f}" if known else "–"]
        return Table("parameter tensors", head, rows, values.to_list(), detail=True, spare=("parameters",))


def _with_error(value: float, error: float | None) -> str:
    return f"{value:z,.2f}" if error is None else counted(value, error)


def _sizes(values: xr.DataArray, name: str) -> str:
    return f"{name} {', '.join(f'{dim} {size}' for dim, size in values.sizes.items())}".strip()


def _most(capacity: xr.DataArray, total: float) -> str:
    """The region whose places get most, for an image; else the input that does."""
    if capacity.ndim > 1:
        names, means = regions_by_mean(capacity)
        top = int(means.argmax())
        return f"{names[top]}, {means[top]:.3g} for each {place_word(capacity)}"
    axis, index = capacity.dims[0], int(capacity.to_numpy().argmax())
    place = capacity[axis][index].item() if axis in capacity.coords else index
    return f"{axis} {place}, {float(capacity[index]) / total:.1%}"


def _own_axes(variable: xr.DataArray) -> xr.DataArray:
    """A layer as it was: under its own name and axis names."""
    prefix = f"{variable.name}_"
    own = variable.rename({dim: str(dim).removeprefix(prefix) for dim in variable.dims})
    own.attrs = {key: value for key, value in variable.attrs.items() if key != "layer"}
    return own.rename(variable.attrs["layer"])


def worded(result: Allocation) -> Allocation:
    """The same over axes with the model's words: tokens, or steps, and features, or channels and positions."""
    named = words_for(result.attrs, result.capacity.dims)
    if all(name == word for name, word in named.items()):
        return result
    table = None if result.table is None else result.table.rename(named)
    return result.replace(capacity=result.capacity.rename(named), table=table)
