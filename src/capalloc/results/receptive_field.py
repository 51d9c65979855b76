"""The result of `receptive_field`: works from a saved file, with no model at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_type_hints

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capalloc import results
from capalloc.results.base import Result, Variable, axis_rows, words_for
from capalloc.results.several import split
from capalloc.results.text import briefly
from capalloc.results.view import Fact, Map, Table, View, standing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: How far a field is known; a whole input is an upper bound that leaves nothing out.
Status = Literal["exact", "upper bound", "whole input", "depends on data"]
Index = tuple[int | None, ...]  # one entry for each output axis, None for all of it
#: What is kept of the fields of layers, where they were asked for, over ("layer", "axis").
LAYER_COLUMNS = ("size", "stride", "cut")
#: What the map holds.
MAP_NAMES = {"energy": "probability", "capacity": "capacity"}
#: What float32 may cost the sum of a law.
SUM_TOLERANCE = 1e-6


def shown(position: Index) -> str:
    """The position in words: a colon for a whole axis among others."""
    if all(k is None for k in position):
        return "all outputs"
    return "output position (" + ", ".join(":" if k is None else str(k) for k in position) + ")"


@dataclass(frozen=True)
class Extent:
    """The field along one input axis: theoretical, from `start` up to and without `stop`, and effective."""

    size: int
    start: int
    stop: int
    centre: float
    stride: float  # how far it moves when the output position moves by one; NaN where there is no neighbour
    cut: bool  # whether the border of the input, or of a layer, cuts it
    deviation: float  # standard deviation of the map along this axis

    __repr__ = briefly


#: The columns of an extent, with the type of each.
EXTENT: dict[str, type] = get_type_hints(Extent)


def extent_columns(axes: Mapping[str, Extent]) -> dict[str, tuple[str, NDArray[Any]]]:
    """Extents as variables over "axis"."""
    extents = axes.values()
    return {name: ("axis", np.array([getattr(e, name) for e in extents], kind)) for name, kind in EXTENT.items()}


class ReceptiveField(Result):
    """The inputs that one output position sees: the support of its paths, and the map of what they carry.

    - `map`: probability (`of` "energy") or capacity in parameters, over the input's own axes;
    - `support`: whether any path starts there;
    - `influence`: whether it can change the output at all, through gates and statistics too;
    - `paths_status`, `influence_status`: how far either is known, "exact", "upper bound" (an input may be too many),
      "whole input" (an upper bound that leaves nothing out), "depends on data" (of other examples it may be another);
    - along "axis", the fields of an `Extent`; together they are `axes`, by name;
    - `area_68`, `area_95`: places of the smallest regions that hold 68 % and 95 % of the map;
    - `moving`: axes that regions are counted over; the map is summed over the others;
    - `output_position`: one index for each output axis, None for all of it;
    - `layers`, where asked for: the theoretical sizes and strides of layers, without those that see what the one before
      them sees;
    - of several inputs the maps are over one axis, "input", one input after the other; `maps`, `supports` and
      `influences` give each over its own axes, by name, and `axes` are named such as "image row";
    - `of`, `gates`, `notes`: what the map holds, where the gates come from, what to know of it.

    `to_pandas` has a row for each of "axes", or of "inputs", with `probability` or `capacity` and `support`.

    Args:
        data: the Dataset with those variables, the others among its attributes.

    Raises:
        ValueError: axes that do not fit each other, a map that is negative or not finite, or a law that does not sum
            to 1.

    """

    FORMAT = "capalloc-receptive-field"
    MAKER = "capalloc.receptive_field()"
    SCHEMA: ClassVar = {
        "map": Variable(("*",), low=0, finite=True),
        "support": Variable(("*",)),
        "influence": Variable(("*",)),
        **dict.fromkeys(("axis", *EXTENT), Variable(("axis",))),
    }
    KEPT = ("paths_status", "influence_status", "of", "gates", "area_68", "area_95", "moving", "notes")
    SETTINGS = (*KEPT, "output_position")
    VALUES = ("shown_position", *KEPT)

    support: xr.DataArray
    influence: xr.DataArray
    paths_status: Status
    influence_status: Status
    area_68: int
    area_95: int
    moving: tuple[str, ...]
    output_position: Index
    of: str
    gates: str
    notes: tuple[str, ...]

    def check(self) -> None:
        """Axes fit each other, and a law sums to 1."""
        if self.of not in MAP_NAMES:
            raise ValueError(f"of must be one of {tuple(MAP_NAMES)}, got {self.of!r}")
        axes, names, total = tuple(self.axes), self.map.dims, float(self.map.sum())
        axes_of_inputs = tuple(f"{name} {axis}" for name, own in self.maps.items() for axis in own.dims)
        expected = axes_of_inputs if len(self.maps) > 1 else names
        if axes != expected or self.support.dims != names:
            raise ValueError(
                f"axes, map and support must be over the same axes, got {axes}, {names} and {self.support.dims}"
            )
        influence = self.influence
        if influence.dims != names or bool((self.support & ~influence.astype(bool)).any()):
            raise ValueError(f"influence must hold the support, over the axes {names}; its own are {influence.dims}")
        for name in ("paths_status", "influence_status"):
            if getattr(self, name) not in get_args(Status):
                raise ValueError(f"{name} must be one of {get_args(Status)}, got {getattr(self, name)!r}")
        if not self.moving or not set(self.moving) <= set(expected):
            raise ValueError(f"moving must name some of the axes {expected}, got {self.moving}")
        if self.of == "energy" and not abs(total - 1) < SUM_TOLERANCE:
            raise ValueError(f"map must sum to 1, as a law does, but sums to {total:.8g}")

    @property
    def axes(self) -> dict[str, Extent]:
        """The extent along each of the input's own axes, by name."""
        columns = ([kind(v) for v in self.data[name].to_numpy()] for name, kind in EXTENT.items())
        extents = [Extent(*row) for row in zip(*columns, strict=True)]
        return dict(zip(map(str, self.data["axis"].to_numpy()), extents, strict=True))

    @property
    def map(self) -> xr.DataArray:
        """Probability or capacity in parameters, over the input's own axes."""
        return self.data["map"].rename(MAP_NAMES[self.of])

    @property
    def maps(self) -> dict[str, xr.DataArray]:
        """The map of each input over its own axes, by name; of a single tensor under "inputs"."""
        return self._split(self.map)

    @property
    def supports(self) -> dict[str, xr.DataArray]:
        """The support in each input, by name."""
        return self._split(self.support)

    @property
    def influences(self) -> dict[str, xr.DataArray]:
        """The field of influence in each input, by name."""
        return self._split(self.influence)

    def _split(self, values: xr.DataArray) -> dict[str, xr.DataArray]:
        return split(values, self.data.attrs.get("inputs"))

    def _axis(self, name: str, axis: str) -> str:
        """The name of an input's axis among `axes`."""
        return f"{name} {axis}" if len(self.maps) > 1 else axis

    @property
    def shown_position(self) -> str:
        """The output position for people: a colon for a whole axis, "all" for the whole output."""
        return shown(self.output_position).removeprefix("output position ").removesuffix(" outputs")

    @property
    def sizes(self) -> dict[str, int]:
        """Theoretical size along every input axis."""
        return {name: extent.size for name, extent in self.axes.items()}

    @property
    def influence_sizes(self) -> dict[str, int]:
        """Size of the field of influence, along every input axis: of the smallest interval that holds it."""
        places = {
            self._axis(name, str(axis)): at
            for name, own in self.influences.items()
            for axis, at in zip(own.dims, np.nonzero(own.to_numpy()), strict=True)
        }
        return {name: int(np.ptp(at)) + 1 if at.size else 0 for name, at in places.items()}

    @property
    def layers(self) -> pd.DataFrame | None:
        """Theoretical size, stride and cut of the central position of each layer, by axis; None if not asked for."""
        if "layer_size" not in self.data:
            return None
        fields = self.data[[f"layer_{name}" for name in LAYER_COLUMNS]]
        return fields.to_dataframe(dim_order=["layer", "axis"]).rename(columns=lambda name: name.removeprefix("layer_"))

    def _layers(self) -> pd.DataFrame:
        found = self.layers
        if found is None:
            raise ValueError("this field holds no layers; receptive_field(..., layers=True) finds theirs")
        return found

    def _inputs(self) -> pd.DataFrame:
        both = xr.Dataset({MAP_NAMES[self.of]: self.map, "support": self.support, "influence": self.influence})
        return both.to_dataframe(dim_order=list(map(str, self.map.dims))).reset_index()

    ROWS: ClassVar = {"axes": axis_rows("axis"), "inputs": _inputs, "layers": _layers}

    def plot(self, ax: Axes | None = None, title: str = "", name: str | None = None) -> Axes:
        """Draw the map, the box of the theoretical field, and the smallest regions that hold 68 % and 95 %.

        Args:
            ax: where to draw; a new figure by default.
            title: above the map.
            name: one of several inputs; the first by default.

        """
        names = list(self.maps)
        if name is not None and name not in names:
            raise ValueError(f"there is no input {name!r}; there are {', '.join(names)}")
        drawn = self.view().maps[0 if name is None else names.index(name)]
        title = title or drawn.title
        label = "path energy" if self.of == "energy" else "capacity"
        if drawn.box is None:
            return results.plots.plot_map(drawn.small, ax, title, unit=label)
        return results.plots.plot_field(drawn.small, drawn.box, label, ax, title)

    def figure(self) -> Figure:
        """Make a figure of the map of each input, side by side."""
        return results.plots.panels([partial(self.plot, name=name) for name in self.maps])

    def view(self) -> View:
        """Show where the field is, and what lies in it, over axes in the model's words."""
        self = self._worded()
        energy = self.of == "energy"
        over = "all inputs" if len(self.maps) > 1 else " × ".join(self.moving)
        return self._view(
            title="Receptive field",
            heading=f"of {shown(self.output_position)}",
            about="Where one output position looks: the frame is the theoretical extent, the rings hold 68 % and 95 % "
            f"of {'path energy' if energy else 'its capacity'}, averaged over neighbouring places.",
            facts=[
                self._standing(),
                Fact("output position", self.shown_position),
                Fact("theoretical extent", *self._shown(self.sizes)),
                *self._fields(),
                Fact(f"68 % of {self.of}", f"{self.area_68:,}", f"place{'s' * (self.area_68 != 1)} of {over}"),
                Fact(f"95 % of {self.of}", f"{self.area_95:,}", f"place{'s' * (self.area_95 != 1)} of {over}"),
            ],
            tables=[self._extents(), *self._of_layers()],
            maps=[self._map(name, values) for name, values in self.maps.items()],
            rows=("axes",) if self.layers is None else ("axes", "layers"),
            settings={"output_position": self.shown_position, "of": self.of, "gates": self.gates},
        )

    def _worded(self) -> ReceptiveField:
        """The same over channels and positions, tokens or steps, where those are the words."""
        words = words_for(self.data.attrs, self.map.dims)
        if len(self.maps) > 1 or all(name == word for name, word in words.items()):
            return self
        data = self.data.rename(words).assign_coords(axis=[words[str(name)] for name in self.data["axis"].to_numpy()])
        parts = (note.partition(":") for note in self.notes)
        notes = [words.get(axis, axis) + colon + rest for axis, colon, rest in parts]
        return ReceptiveField(data.assign_attrs(moving=[words[name] for name in self.moving], notes=notes))

    def _standing(self) -> Fact:
        if self.of == "energy" and self.gates == "data":
            return standing("exact")
        return standing(
            "a guide", "(gates by theory)" if self.gates != "data" else "(gates are taken to decouple totally)"
        )

    def _shown(self, sizes: Mapping[str, int]) -> tuple[str, str]:
        """Sizes along the axes that regions are counted over, and what these are."""
        if len(self.maps) > 1:
            return ", ".join(f"{axis} {sizes[axis]}" for axis in self.moving), ""
        return " × ".join(str(sizes[axis]) for axis in self.moving), f"({' × '.join(self.moving)})"

    def _map(self, name: str, values: xr.DataArray) -> Map:
        """The map of one input, with the box of its own theoretical field."""
        energy, several = self.of == "energy", len(self.maps) > 1
        axes = {str(axis): self.axes[self._axis(name, str(axis))] for axis in values.dims}
        caption = "percent of path energy" if energy else "capacity in parameters"
        return Map(
            values,
            "share of path energy" if energy else "parameters",
            title=name if several else "",
            name=name if several else "",
            caption=f"{name}: {caption}" if several else caption,
            factor=100 if energy else 1,
            over=[axis for axis in axes if self._axis(name, axis) in self.moving][-2:],
            box={axis: (e.start, e.stop) for axis, e in axes.items()} if float(values.sum()) > 0 else None,
        )

    def _fields(self) -> list[Fact]:
        """Count the inputs where paths start, and those that can change the output, each with its status."""
        extent, _ = self._shown(self.influence_sizes)
        held = [int(inputs.sum()) for inputs in (self.support, self.influence)]
        return [
            Fact("field of paths", f"{held[0]:,} of {self.support.size:,} inputs", f"({self.paths_status})"),
            Fact(
                "field of influence",
                f"{held[1]:,} of {self.support.size:,} inputs",
                f"({self.influence_status}), extent {extent}",
            ),
        ]

    def _of_layers(self) -> list[Table]:
        """A table of the fields of layers, along the axes that they differ on."""
        if self.layers is None:
            return []
        moving = self.data.sel(axis=list(self.moving))
        rows = []
        for k, name in enumerate(self.data["layer"].to_numpy()):
            sizes, strides, cuts = (moving[f"layer_{column}"][k].to_numpy() for column in LAYER_COLUMNS)
            shown_sizes = [f"{size:,}{' (cut)' if cut else ''}" for size, cut in zip(sizes, cuts, strict=True)]
            rows.append([str(name), *shown_sizes, *map(_stride, strides)])
        head = ["layer", *self.moving, *(f"stride, {axis}" for axis in self.moving)]
        return [Table("theoretical fields, at the layers that change them", head, rows)]

    def _extents(self) -> Table:
        rows = []
        for name, e in self.axes.items():
            ends = [str(e.size), str(e.start), str(e.stop - 1), f"{e.centre:g}"]
            rows.append([name, *ends, _stride(e.stride), "by the border" if e.cut else "no", f"{e.deviation:.3g}"])
        head = ["axis", "size", "from", "to", "centre", "stride", "cut", "deviation"]
        return Table("along each axis of the input", head, rows)


def _stride(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:g}"
