"""The section about a receptive field: its map with the theoretical extent and the rings of the effective one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from capalloc.app.report.encode import encode
from capalloc.app.report.explorer import Explorer, Figure
from capalloc.app.report.layout import flat, high, is_line
from capalloc.app.report.section import Fact, Section
from capalloc.results.field_plot import LEVELS, ring, smallest_region
from capalloc.results.receptive_field import ReceptiveField
from capalloc.results.templating import render

#: Bytes of the map, before base64.
MAP = 800_000


def field_sections(fields: Mapping[str, ReceptiveField]) -> list[Section]:
    """One section for each field."""
    return [_section(f"field-{k}", name, found) for k, (name, found) in enumerate(fields.items(), 1)]


def _section(key: str, name: str, found: ReceptiveField) -> Section:
    unit = "share of path energy" if found.of == "energy" else "parameters"
    shown = Explorer(
        key=key,
        names=[name],
        unit=unit,
        figures=[_figure(name, found)],
        maps=encode(found.map.to_numpy()[None].astype(float), MAP),
    )
    body = render(
        "report/field.html",
        field=found,
        facts=_facts(found),
        maps=shown.render(),
        head=["axis", "size", "from", "to", "centre", "stride", "cut", "deviation"],
        rows=_rows(found),
        over=" × ".join(found.moving),
    )
    return Section(key, f"Receptive field: {name}", body, shown.data())


def _figure(name: str, found: ReceptiveField) -> Figure:
    values = found.map
    shown = flat(values)
    box = {str(axis): (found.axes[str(axis)].start, found.axes[str(axis)].stop) for axis in shown.dims}
    figure = Figure(name, "map", (0,), values, (0.0, high(values)))
    if is_line(values):
        (axis,) = map(str, shown.dims)
        edges = {"theoretical": (box[axis][0] - 0.5, box[axis][1] - 0.5)}
        edges |= {f"{share:.0%}": _ends(smallest_region(shown.to_numpy(), share)) for share in LEVELS}
        return Figure(name, "map", (0,), values, figure.limits, edges=edges)
    (top, bottom), (left, right) = box.values()
    lines = {"theoretical": f"M{left} {top}H{right}V{bottom}H{left}Z"}
    for share in LEVELS:
        lines[f"ring-{share * 100:.0f}"] = outline(ring(shown.to_numpy(), share))
    return Figure(name, "map", (0,), values, figure.limits, lines=lines)


def _ends(region: NDArray[np.bool_]) -> tuple[float, float]:
    inside = np.flatnonzero(region)
    return float(inside[0]) - 0.5, float(inside[-1]) + 0.5


def outline(region: NDArray[np.bool_]) -> str:
    """The border of a set of cells as an SVG path, in cells: straight runs along the grid."""
    framed = np.pad(region, 1).astype(np.int8)
    pieces = []
    for row, column, run in _runs(np.diff(framed, axis=0)[:, 1:-1] != 0):
        pieces.append(f"M{column} {row}h{run}")
    for column, row, run in _runs((np.diff(framed, axis=1)[1:-1] != 0).T):
        pieces.append(f"M{column} {row}v{run}")
    return "".join(pieces)


def _runs(marked: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(line, start, length) of the runs of True in every line."""
    steps = np.diff(np.pad(marked, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, stops = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(line), int(a), int(b - a)) for (line, a), (_, b) in zip(starts, stops, strict=True)]


def _facts(found: ReceptiveField) -> list[Fact]:
    extent = " × ".join(str(found.axes[axis].size) for axis in found.moving)
    over = " × ".join(found.moving)
    facts = [
        Fact("output position", found.shown_position),
        Fact("theoretical extent", extent, over),
        Fact("68 % of the map", f"{found.area_68:,}", f"places of {over}"),
        Fact("95 % of the map", f"{found.area_95:,}", f"places of {over}"),
    ]
    return facts


def _rows(found: ReceptiveField) -> list[list[str]]:
    rows = []
    for name, e in found.axes.items():
        stride = "–" if math.isnan(e.stride) else f"{e.stride:g}"
        cut = "by the border" if e.cut else "no"
        rows.append(
            [name, str(e.size), str(e.start), str(e.stop - 1), f"{e.centre:g}", stride, cut, f"{e.deviation:.3g}"]
        )
    return rows
