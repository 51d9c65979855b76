"""The result of `receptive_field`: works from a saved file, with no model at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from capalloc.results.base import Savable, axis_frame, check_variables
from capalloc.results.field_plot import plot_field
from capalloc.results.view import Card, Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Index = tuple[int | None, ...]  # one entry for each output axis, None for all of it
#: What the map holds.
NAMES = {"energy": "probability", "capacity": "capacity"}
#: What rounding may cost the sum of a law.
ROUNDING = 1e-6


def shown(position: Index) -> str:
    """The position for people: a colon for a whole axis."""
    return "(" + ", ".join(":" if k is None else str(k) for k in position) + ")"


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


#: The columns of an extent, with the type of each.
EXTENT = {"size": int, "start": int, "stop": int, "centre": float, "stride": float, "cut": bool, "deviation": float}
SETTINGS = ("area_68", "area_95", "moving", "output_position", "of", "gates", "notes")


@dataclass(frozen=True, eq=False)
class ReceptiveField(Savable, Shown):
    """Where one output position looks: the support of its paths, and the map of what they carry.

    Raises:
        ValueError: axes that do not fit each other, a map that is negative or not finite, or a law that does not sum
            to 1.

    """

    axes: Mapping[str, Extent]  # by the input's own axes
    map: xr.DataArray  # probability ("energy") or capacity in parameters, over the input's own axes
    support: xr.DataArray  # whether any path starts there
    area_68: int  # places of the smallest region that holds 68 % of the map
    area_95: int
    moving: tuple[str, ...]  # axes that regions are counted over; the map is summed over the others
    output_position: Index
    of: str
    gates: str
    notes: tuple[str, ...] = ()

    FORMAT = "capalloc-receptive-field"
    ROWS = ("axes", "inputs")

    def __post_init__(self) -> None:
        if self.of not in NAMES:
            raise ValueError(f"of must be one of {tuple(NAMES)}, got {self.of!r}")
        names = tuple(map(str, self.map.dims))
        if not names or tuple(self.axes) != names or self.support.dims != self.map.dims:
            raise ValueError(
                f"axes, map and support must be over the same axes, got {tuple(self.axes)}, {names} and "
                f"{self.support.dims}"
            )
        if not self.moving or not set(self.moving) <= set(names):
            raise ValueError(f"moving must name some of the axes {names}, got {self.moving}")
        lowest, total = float(self.map.min()), float(self.map.sum())
        if not lowest >= 0 or not np.isfinite(total):
            raise ValueError(f"map must be finite and at least 0, but its lowest value is {lowest:.6g}")
        if self.of == "energy" and not abs(total - 1) < ROUNDING:
            raise ValueError(f"map must sum to 1, as a law does, but sums to {total:.8g}")

    @property
    def shown_position(self) -> str:
        """The output position for people: a colon for a whole axis."""
        return shown(self.output_position)

    @property
    def sizes(self) -> dict[str, int]:
        """Theoretical size along every input axis."""
        return {name: extent.size for name, extent in self.axes.items()}

    def to_xarray(self) -> xr.Dataset:
        """Everything as one Dataset, the settings among its attributes.

        Variables: `map` and `support` over the input's own axes; by "axis", `size`, `start`, `stop`, `centre`,
        `stride`, `cut` and `deviation`.
        """
        extents = pd.DataFrame([asdict(extent) for extent in self.axes.values()])
        columns = {name: ("axis", extents[name].to_numpy()) for name in EXTENT}
        attrs = {name: getattr(self, name) for name in SETTINGS}
        attrs |= {name: list(value) for name, value in attrs.items() if isinstance(value, tuple)}
        variables = {"map": self.map.rename("map"), "support": self.support, **columns}
        return xr.Dataset(variables, coords={"axis": list(self.axes)}, attrs=attrs)

    @classmethod
    def from_xarray(cls, dataset: xr.Dataset) -> ReceptiveField:
        """The receptive field that `to_xarray` was called on.

        Raises:
            ValueError: a variable is missing, or an invariant does not hold.

        """
        check_variables(dataset, ("axis", "map", "support", *EXTENT), "ReceptiveField.to_xarray()")
        columns = {name: [kind(v) for v in dataset[name].to_numpy()] for name, kind in EXTENT.items()}
        rows = [Extent(*row) for row in zip(*columns.values(), strict=True)]
        settings: dict[str, Any] = {name: dataset.attrs[name] for name in SETTINGS}
        settings |= {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
        return cls(
            axes=dict(zip(map(str, dataset["axis"].to_numpy()), rows, strict=True)),
            map=dataset["map"].rename(NAMES.get(settings["of"])),
            support=dataset["support"],
            **settings,
        )

    def to_pandas(self, rows: str | None = None) -> pd.DataFrame:
        """A tidy table of the field.

        Args:
            rows: "axes", a row for each input axis: `size`, `start`, `stop`, `centre`, `stride`, `cut`, `deviation`;
                "inputs", a row for each input: its axes, `probability` or `capacity`, and `support`.

        Raises:
            ValueError: other rows.

        """
        return super().to_pandas(rows)

    def _frame(self, rows: str) -> pd.DataFrame:
        if rows == "axes":
            return axis_frame(self.to_xarray(), "axis")
        both = xr.Dataset({NAMES[self.of]: self.map, "support": self.support})
        return both.to_dataframe(dim_order=list(self.axes)).reset_index()

    def _flat(self) -> xr.DataArray:
        """The map over the last two axes that the field moves along."""
        dims = self.moving[-2:]
        return self.map.sum([d for d in self.map.dims if d not in dims])

    def plot(self, ax: Axes | None = None, title: str = "") -> Axes:
        """Draw the map, the box of the theoretical field, and the smallest regions that hold 68 % and 95 %.

        Args:
            ax: where to draw; a new figure by default.
            title: above the map.

        """
        box = {d: (self.axes[d].start, self.axes[d].stop) for d in self.moving[-2:]}
        label = "path energy" if self.of == "energy" else "capacity"
        return plot_field(self._flat(), box, label, ax, title)

    def _card(self) -> Card:
        rows = [["axis", "size", "from", "to", "stride", "deviation"]]
        for name, e in self.axes.items():
            size = f"{e.size}{' (cut)' if e.cut else ''}"
            rows.append([name, size, str(e.start), str(e.stop - 1), f"{e.stride:g}", f"{e.deviation:.3g}"])
        places = f"places of {' x '.join(self.moving)}"
        return Card(
            "ReceptiveField",
            f"of output position {self.shown_position}",
            facts={f"68 % of {self.of}": f"{self.area_68} {places}", f"95 % of {self.of}": f"{self.area_95} {places}"},
            tables={"input axes": rows},
            notes=self.notes,
            map=self._flat() * (100 if self.of == "energy" else 1),
            label="percent of path energy" if self.of == "energy" else "capacity in parameters",
        )

    def __repr__(self) -> str:
        lines = [f"ReceptiveField of output position {self.shown_position}"]
        for name, e in self.axes.items():
            stride = "" if np.isnan(e.stride) else f", stride {e.stride:g}"
            lines.append(
                f"  {name}: {e.size} [{e.start}, {e.stop}){stride}{', cut' if e.cut else ''}, "
                f"standard deviation {e.deviation:.3g}"
            )
        over = " x ".join(self.moving)
        lines.append(f"  68 % of {self.of} in {self.area_68} places of {over}, 95 % in {self.area_95}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
