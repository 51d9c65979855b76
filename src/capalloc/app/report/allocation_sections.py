"""Sections about allocations: maps, the two side by side, layers by region, spectra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from capalloc.app.pages import PAGES
from capalloc.app.report.charts import draw
from capalloc.app.report.encode import encode
from capalloc.app.report.explorer import Explorer, LayerShares, MapPanel
from capalloc.app.report.layout import flat, high
from capalloc.app.report.pairs import compared
from capalloc.app.report.region_table import by_region
from capalloc.app.report.section import Section, exact
from capalloc.results.allocation import Allocation
from capalloc.results.evidence import layer_table
from capalloc.results.view import Axis, Chart, Fact, Line, Table, estimate

#: Bytes that all maps of a group may take, and all shares of layers, before base64.
GROUP_BYTES, LAYER_BYTES = 1_600_000, 1_600_000
#: Eigenvalues smaller than this part of the largest are rounding, and left below the chart.
NOUGHT = 1e-12


@dataclass(frozen=True)
class AllocationGroup:
    """Allocations over the same inputs."""

    key: str
    members: Mapping[str, Allocation]

    @property
    def title(self) -> str:
        """The names of its members."""
        return ", ".join(self.members)


def groups(allocations: Mapping[str, Allocation]) -> list[AllocationGroup]:
    """Those over inputs of one shape and the same axes stand together."""
    found: dict[tuple[object, ...], dict[str, Allocation]] = {}
    for name, a in allocations.items():
        places = tuple((one, values.dims, values.shape) for one, values in a.maps.items())
        found.setdefault(places, {})[name] = a
    return [AllocationGroup(f"maps-{k}", members) for k, members in enumerate(found.values(), 1)]


def allocation_sections(allocations: Mapping[str, Allocation]) -> list[Section]:
    """All that allocations have to show, group by group."""
    found = groups(allocations)
    sections: list[Section] = []
    for group in found:
        of = f": {group.title}" if len(found) > 1 else ""
        many = len(group.members) > 1
        layers: list[str] = []
        for shown, name in explorers(group):
            told = facts(group) if shown.key == group.key else []
            body = PAGES.render("report/allocations.html", facts=told, maps=shown.render(), many=many)
            sections.append(Section(shown.key, f"Where the capacity goes{name}{of}", body, {shown.key: shown.data()}))
            layers = shown.layers.names if shown.layers else []
        sections += compared(group.key, group.members, of)
        sections += used(group, of)
        sections += by_region(group.key, group.members, layers, of)
    return sections + spectra(allocations)


def used(group: AllocationGroup, of: str) -> list[Section]:
    """The use of each layer, for the allocations that know the sizes of their parameter tensors."""
    tables = {name: layer_table(a.attrs.get("parameter_sizes") or {}, a) for name, a in group.members.items()}
    known = {name: layers for name, layers in tables.items() if len(layers)}
    if not known:
        return []
    layers = pd.concat([found["parameters"] for found in known.values()])
    layers = layers[~layers.index.duplicated()]
    columns = {
        "use" if len(known) == 1 else f"use, {name}": found.reindex(layers.index) for name, found in known.items()
    }
    rows = [
        [str(layer), f"{layers.iloc[k]:,.0f}"]
        + [estimate(found["use"].iloc[k], found["use_error"].iloc[k], ".2f", ".2f") for found in columns.values()]
        for k, layer in enumerate(layers.index)
    ]
    bars = {name: found["use"].tolist() for name, found in columns.items()}
    shown = Table("layers", ["layer", "parameters", *columns], rows, bars=bars)
    return [
        Section(f"{group.key}-use", f"How much of each layer is used{of}", PAGES.render("report/use.html", shown=shown))
    ]


def facts(group: AllocationGroup) -> list[Fact]:
    """Totals, with their doubt."""
    shown = []
    for name, a in group.members.items():
        error = a.attrs.get("total_standard_error")
        value = exact(a.total) + ("" if error is None else f" ± {exact(float(error))}")
        params, more = a.attrs.get("num_params"), [f"{f.value} {f.more}" for f in a.standing]
        if params is not None:
            more.append(f"of {params:,} parameters")
        if a.bias > 0 and a.total > 0:
            more.append(f"{a.bias / a.total:.1%} on the constant input")
        more += [f"{float(m.sum()) / a.total:.1%} on {one}" for one, m in a.maps.items() if len(a.maps) > 1 and a.total]
        shown.append(Fact(name, value, "; ".join(more)))
    return shown


@dataclass(frozen=True)
class OneInput:
    """The part of an allocation that one of its inputs holds."""

    capacity: xr.DataArray
    table: xr.DataArray | None
    by_parameter: xr.DataArray


def explorers(group: AllocationGroup) -> list[tuple[Explorer, str]]:
    """The explorer of each input, and its name where there are several."""
    names = list(next(iter(group.members.values())).maps)
    found = []
    for k, one in enumerate(names):
        members = {name: OneInput(a.maps[one], a.tables.get(one), a.by_parameter) for name, a in group.members.items()}
        key = group.key if k == 0 else f"{group.key}-{k + 1}"
        found.append((explorer(key, members), f", {one}" if len(names) > 1 else ""))
    return found


def explorer(key: str, given: Mapping[str, OneInput]) -> Explorer:
    """The maps of a group on one scale, the difference of neighbours, and standard errors where they are known."""
    members = list(given.items())
    stack = np.stack([a.capacity.to_numpy() for _, a in members]).astype(float)
    share = GROUP_BYTES // (2 * len(members))
    errors = {k: _error(a) for k, (_, a) in enumerate(members)}
    return Explorer(
        key=key,
        names=[name for name, _ in members],
        unit="parameters",
        figures=_figures(members),
        maps=encode(stack, GROUP_BYTES // 2 if any(e is not None for e in errors.values()) else GROUP_BYTES),
        errors={k: encode(e.to_numpy()[None].astype(float), share) for k, e in errors.items() if e is not None},
        layers=_layers([a for _, a in members]),
    )


def _figures(members: list[tuple[str, OneInput]]) -> list[MapPanel]:
    top = max(high(a.capacity) for _, a in members)
    figures = [
        MapPanel(name, "map", (k,), a.capacity.reset_coords(drop=True), (0.0, top))
        for k, (name, a) in enumerate(members)
    ]
    if len(members) == 2:
        (first, a), (second, b) = members
        difference = a.capacity.reset_coords(drop=True).copy(data=b.capacity.to_numpy() - a.capacity.to_numpy())
        reach = float(abs(flat(difference)).max()) or 1.0
        figures.append(MapPanel(f"{second} − {first}", "difference", (0, 1), difference, (-reach, reach)))
    for k, (name, a) in enumerate(members):
        if (error := _error(a)) is not None:
            figures.append(MapPanel(f"standard error of {name}", "error", (k,), error, (0.0, high(error))))
    return figures


def _error(a: OneInput) -> xr.DataArray | None:
    """Standard errors of the map, if all are known."""
    if "standard_error" not in a.capacity.coords or not np.isfinite(a.capacity.coords["standard_error"]).all():
        return None
    return a.capacity.reset_coords(drop=True).copy(data=a.capacity.coords["standard_error"].to_numpy().astype(float))


def _layers(members: list[OneInput]) -> LayerShares | None:
    """Shares of parameter tensors, over all names that a table of the group has."""
    tables = [a.table for a in members if a.table is not None]
    if not tables:
        return None
    names = list(dict.fromkeys(str(name) for table in tables for name in table["parameter"].values))
    totals: list[list[float | None]] = []
    maps: list[dict[str, Any] | None] = []
    note = ""
    for a in members:
        own = [str(name) for name in a.by_parameter["parameter"].values]
        by_name = dict(zip(own, a.by_parameter.to_numpy().astype(float).tolist(), strict=True))
        totals.append([by_name.get(name) for name in names])
        if a.table is None:
            maps.append(None)
            continue
        coded = encode(a.table.to_numpy().astype(float, copy=False), LAYER_BYTES // len(tables))
        note = note or coded.note
        maps.append({"rows": [own.index(n) if n in by_name else -1 for n in names], **coded.as_json()})
    return LayerShares(names, totals, maps, note)


def spectra(allocations: Mapping[str, Allocation]) -> list[Section]:
    """One chart of the eigenvalues of G, for the allocations that know them."""
    known = {name: a for name, a in allocations.items() if a.spectrum is not None and a.spectrum.size}
    if not known:
        return []
    lines, ridges, floor = [], [], np.inf
    for k, (name, a) in enumerate(known.items()):
        eigenvalues, counts = _falling(a)
        lines.append(Line(name, counts, eigenvalues, "line", k))
        ridge = float(a.attrs.get("ridge") or 0)
        if ridge > 0:
            ridges.append(Line(f"ridge of {name}", [0, counts[-1]], [ridge, ridge], "dashed", k))
        floor = min(floor, eigenvalues.max() * NOUGHT, *([ridge / 100] if ridge else []))
    label = f"Eigenvalues of G in falling order, of {', '.join(known)}, against how many are at least as large"
    low = max(floor, min(float(np.min(line.y)) for line in lines)) or None
    axes = Axis("eigenvalues at least as large"), Axis("eigenvalue", low, log=True)
    drawn = draw(Chart("Spectrum of G", lines + ridges, *axes, label))
    return [Section("spectrum", "Spectrum of G", PAGES.render("report/spectrum.html", chart=drawn, ridge=bool(ridges)))]


def _falling(a: Allocation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues from the largest down, and how many there are up to each."""
    assert a.spectrum is not None
    values = a.spectrum.coords["eigenvalue"].to_numpy().astype(float)
    order = np.argsort(values)[::-1]
    return values[order], a.spectrum.to_numpy().astype(float)[order].cumsum()
