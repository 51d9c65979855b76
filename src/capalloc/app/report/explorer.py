"""Maps that answer: what a section shows of arrays over the inputs, still and for the page's script.

Leading axes are summed, and can be chosen on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from markupsafe import Markup

from capalloc.app.pages import PAGES
from capalloc.app.report.charts import draw
from capalloc.app.report.encode import Encoded, encode
from capalloc.app.report.layout import flat, high, label, labels, leading, positions
from capalloc.app.report.outlines import edges_over, lines_over
from capalloc.app.report.section import exact
from capalloc.results.regions import cell_words, is_line, place_word, regions_by_mean
from capalloc.results.svg import colours, map_svg
from capalloc.results.view import Axis, Chart, Line, Map

#: Up to this many cells a still map has one that names itself for each input; above, it is one picture.
STILL_CELLS = 1024
#: Choices of a leading axis up to which they are a list; above, a slider.
LISTED = 8
#: Bytes of the map of one result, before base64.
MAP_BYTES = 800_000


@dataclass(frozen=True)
class MapPanel:
    """A map on the page: its name, what it shows of which results, and its still picture."""

    name: str
    kind: Literal["map", "difference", "error"]
    of: tuple[int, ...]  # which of the results, one, or two for a difference
    values: xr.DataArray
    limits: tuple[float, float]
    lines: Mapping[str, str] = field(default_factory=dict)  # over a picture
    edges: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # over a chart

    @property
    def signed(self) -> bool:
        """True where its colours diverge around zero."""
        return self.kind == "difference"

    @property
    def ends(self) -> tuple[str, str]:
        """The numbers at the ends of its colours."""
        low, high = self.limits
        return exact(low), f"+{exact(high)}" if self.signed else exact(high)


@dataclass(frozen=True)
class LayerShares:
    """Shares of parameter tensors, for one result or more."""

    names: list[str]
    totals: list[list[float | None]]  # by result and name
    maps: list[dict[str, Any] | None]  # by result: `rows`, the place of each name, and an encoded stack
    note: str = ""

    def shown(self) -> list[tuple[int, str]]:
        """Choices: their number, and the name with its capacity in the first result that knows it."""
        known = [next((t for t in column if t is not None), 0.0) for column in zip(*self.totals, strict=True)]
        return [(k, f"{name} ({exact(total)})") for k, (name, total) in enumerate(zip(self.names, known, strict=True))]


@dataclass(frozen=True)
class AxisEnds:
    """An axis of a map as a figure names it: by its name, and its first and last place."""

    name: str
    first: str
    last: str

    @classmethod
    def of(cls, values: xr.DataArray, axis: Any) -> AxisEnds:
        """The axis of some values."""
        return cls(str(axis), str(label(values, axis, 0)), str(label(values, axis, values.sizes[axis] - 1)))


@dataclass(frozen=True)
class Explorer:
    """Figures over the same inputs that are read together."""

    key: str
    names: list[str]  # of the results
    unit: str
    figures: list[MapPanel]
    maps: Encoded  # (results, *axes)
    errors: Mapping[int, Encoded] = field(default_factory=dict)  # by result, stacks of one
    layers: LayerShares | None = None

    def render(self) -> Markup:
        """The figures, still, with controls that the script brings to life."""
        values = self.figures[0].values
        return PAGES.render(
            "report/maps.html",
            explorer=self,
            chart=is_line(values),
            stills=[still(figure, self.unit) for figure in self.figures],
            leading=[(axis, values.sizes[axis]) for axis in leading(values)],
            listed=LISTED,
            axes=[AxisEnds.of(values, axis) for axis in values.dims[-2:]],
            place=cell_words(values),
            summed=leading(values),
            note=self._note(bool(leading(values))),
        )

    def _note(self, summed: bool) -> str:
        """Say what the page leaves out, and what to know of its sums."""
        said = []
        if self.errors and summed:
            said.append("Standard errors are summed too: upper bounds.")
        if self.maps.note:
            said.append(f"Values on this page are {self.maps.note}; the file has them in full.")
        if self.layers is not None and self.layers.note:
            said.append(f"Shares of layers are {self.layers.note}; the file has them in full.")
        return " ".join(said)

    def data(self) -> dict[str, Any]:
        """Return what the script reads."""
        values = self.figures[0].values
        return {
            "line": is_line(values),
            "axes": list(map(str, values.dims)),
            "shape": list(values.shape),
            "labels": {str(d): labels(values, d) for d in values.dims if d in values.coords},
            "names": self.names,
            "unit": self.unit,
            "maps": self.maps.as_json(),
            "errors": {str(k): e.as_json() for k, e in self.errors.items()},
            "layers": None if self.layers is None else {"names": self.layers.names, "totals": self.layers.totals,
                                                         "maps": self.layers.maps},
            "figures": [
                {"kind": f.kind, "of": list(f.of), "name": f.name, "lines": dict(f.lines),
                 "edges": {k: list(v) for k, v in f.edges.items()}}
                for f in self.figures
            ],
        }  # fmt: skip


def explorer_of(key: str, name: str, shown: Map) -> Explorer:
    """The map of one result, with box and rings where it has a theoretical field."""
    values, lines, edges = shown.values, {}, {}
    if shown.box is not None and is_line(values):
        edges = edges_over(flat(values), shown.box)
    elif shown.box is not None:
        lines = lines_over(flat(values), shown.box)
    title = f"{name}, {shown.title}" if shown.title else name
    return Explorer(
        key=key,
        names=[name],
        unit=shown.unit,
        figures=[MapPanel(title, "map", (0,), values, (0.0, high(values)), lines, edges)],
        maps=encode(values.to_numpy()[None].astype(float), MAP_BYTES),
    )


def describe(name: str, values: xr.DataArray, unit: str, signed: bool = False) -> str:
    """A map in words, for those who do not see it."""
    shown = flat(values)
    size = " × ".join(f"{n} {axis}s" for axis, n in shown.sizes.items())
    names, means = regions_by_mean(values)
    best, least = int(means.argmax()), int(means.argmin())
    top = tuple(map(int, np.unravel_index(int(abs(shown).to_numpy().argmax()), shown.shape)))
    place = ", ".join(f"{axis} {label(shown, axis, k)}" for axis, k in zip(shown.dims, top, strict=True))
    said = [f"{name}: {exact(float(values.sum()))} {unit} over {size}"]
    if means.size > 1:
        most, fewest = ("most gained", "most lost") if signed else ("most", "least")
        each = f"for each {place_word(values)}"
        said.append(
            f"{most} {each} in the region {names[best]}, {exact(means[best])}; "
            f"{fewest} in {names[least]}, {exact(means[least])}"
        )
    said.append(f"{'furthest from zero' if signed else 'largest'}: {exact(float(shown[top]))} at {place}")
    return "; ".join(said)


def still(figure: MapPanel, unit: str) -> Markup:
    """Draw the picture or chart that stands where no script runs, and on paper."""
    words = describe(figure.name, figure.values, unit, figure.signed)
    shown = flat(figure.values)
    if not is_line(figure.values):
        return map_svg(shown, figure.limits, figure.signed, words, STILL_CELLS, figure.lines)
    low, high = figure.limits
    few = shown.size <= STILL_CELLS // 8
    axis = str(shown.dims[0])
    names = [f"{axis} {name}" for name in labels(shown, axis)] if few else []
    lines = [Line("", positions(shown), shown.to_numpy(), named=few)]
    for number, (name, edges) in enumerate(figure.edges.items(), 1):
        for k, edge in enumerate(edges):
            lines.append(Line("" if k else name, [edge, edge], [low, high], "thin", number))
    return draw(Chart(figure.name, lines, Axis(axis, names=names), Axis(unit, low, high * 1.05), words))


def palette(signed: bool) -> str:
    """256 colours as hexadecimal digits."""
    rgb = np.rint(colours(np.linspace(0, 1, 256), signed) * 255).astype(np.uint8)
    return rgb.tobytes().hex()
