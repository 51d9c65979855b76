"""A page about one or more allocations: one HTML file that needs no network, no script and no model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup
from numpy.typing import NDArray

from capalloc.allocation import Allocation
from capalloc.comparison import correlation, total_variation
from capalloc.plots import gradient, limits, map_svg
from capalloc.regions import grid, image
from capalloc.storage import write_text
from capalloc.templating import render


@dataclass(frozen=True)
class Map:
    """A picture of the page: capacity of one allocation, or a difference."""

    title: str
    svg: Markup
    bar: str  # CSS gradient of its colours
    low: str
    high: str


@dataclass(frozen=True)
class Row:
    """One parameter tensor, or all: a list of cells, each with one number per allocation."""

    name: str
    cells: list[list[str]]
    shares: list[float]  # the first number relative to the largest of the table's body, in 0 .. 1


def write_report(
    path: str | os.PathLike[str],
    allocations: Mapping[str, Allocation],
    title: str = "Capacity allocation",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write `report_html` to a file, whole or not at all.

    Raises:
        FileNotFoundError, IsADirectoryError: `path` is no place for a file.
        ValueError: as `report_html`.

    """
    write_text(path, report_html(allocations, title, facts))


def report_html(
    allocations: Mapping[str, Allocation],
    title: str = "Capacity allocation",
    facts: Mapping[str, str] | None = None,
) -> str:
    """A self-contained page: maps on one colour scale, the difference of two, and parameters by region.

    Args:
        allocations: by the name that the page gives each, such as "measured" and "predicted"; their inputs and
            parameters are the same.
        title: of the page.
        facts: what else to state at its head, name to value.

    Raises:
        ValueError: there is no allocation, or they differ in inputs or parameters.

    """
    _check(allocations)
    return render(
        "report.html",
        title=title,
        headline=_headline(allocations) | dict(facts or {}),
        names=list(allocations),
        maps=_maps(allocations),
        columns=_columns(next(iter(allocations.values()))),
        rows=_rows(allocations),
        notes={name: list(map(str, a.attrs.get("notes") or [])) for name, a in allocations.items()},
        settings={name: _settings(a) for name, a in allocations.items()},
    )


def _check(allocations: Mapping[str, Allocation]) -> None:
    if not allocations:
        raise ValueError("a report needs at least one allocation")
    first = next(iter(allocations.values()))
    for name, a in allocations.items():
        if a.capacity.shape != first.capacity.shape:
            raise ValueError(
                f"{name!r} has inputs {a.capacity.shape}, others {first.capacity.shape}; report them apart"
            )
        if list(a.by_parameter["parameter"].values) != list(first.by_parameter["parameter"].values):
            raise ValueError(f"{name!r} has other parameters than the rest; report them apart")


def _headline(allocations: Mapping[str, Allocation]) -> dict[str, str]:
    facts = {}
    parameters = next(iter(allocations.values())).attrs.get("num_params")
    if parameters is not None:
        facts["parameters"] = f"{parameters:,}"
    facts |= {f"{name} capacity": _number(a.total) for name, a in allocations.items()}
    if len(allocations) == 2:
        a, b = allocations.values()
        facts["correlation of maps"] = f"{correlation(a, b):.3f}"
        facts["total-variation distance"] = f"{total_variation(a, b):.3f}"
    return facts


def _maps(allocations: Mapping[str, Allocation]) -> list[Map]:
    flat = {name: image(a.capacity) for name, a in allocations.items()}
    high = max(limits(values)[1] for values in flat.values())
    maps = []
    for name, values in flat.items():
        svg = map_svg(values, (0.0, high), label=f"{name}: capacity of every input")
        maps.append(Map(name, svg, gradient(), "0", _number(high)))
    if len(flat) == 2:
        (first, a), (second, b) = flat.items()
        title, difference = f"{second} − {first}", b.copy(data=b.data - a.data)
        low, high = limits(difference, signed=True)
        svg = map_svg(difference, signed=True, label=title)
        maps.append(Map(title, svg, gradient(signed=True), _number(low), f"+{_number(high)}"))
    return maps


def _columns(a: Allocation) -> list[str]:
    """Regions of the input where it is an image, then the constant input and the sum."""
    regions = [str(name) for name in grid(a.capacity)["region"].values] if a.capacity.ndim > 1 else ["inputs"]
    return [*regions, "bias", "all"]


def _rows(allocations: Mapping[str, Allocation]) -> list[Row]:
    """Capacity of every parameter tensor, and of all, by region."""
    numbers = np.stack([_by_region(a) for a in allocations.values()], axis=-1)
    names = [*map(str, next(iter(allocations.values())).by_parameter["parameter"].values), "all"]
    largest = np.nanmax(numbers[:-1, :-1], initial=0.0) or 1.0
    shares = np.nan_to_num(numbers[..., 0] / largest).clip(0, 1)
    shares[-1], shares[:, -1] = 0, 0
    return [
        Row(name, [[_number(v) for v in cell] for cell in cells], [float(share) for share in row])
        for name, cells, row in zip(names, numbers, shares, strict=True)
    ]


def _by_region(a: Allocation) -> NDArray[np.float64]:
    """(parameters and all, regions and bias and all); NaN where there is no table to tell."""
    if a.table is None:
        inside = np.full((a.by_parameter.size, len(_columns(a)) - 1), np.nan)
    else:
        inner = _regions(a.table.drop_vars("bias"))
        inside = np.column_stack([inner, a.table.coords["bias"].to_numpy()])
    body = np.column_stack([inside, a.by_parameter.to_numpy()])
    everything = _regions(a.capacity.expand_dims("parameter"))[0]
    return np.vstack([body, [*everything, a.bias, a.total]])


def _regions(table: xr.DataArray) -> NDArray[np.float64]:
    """(parameters, regions); the inputs of one axis are one region."""
    if table.ndim > 2:
        return grid(table, keep="parameter").to_numpy().astype(float)
    total: NDArray[np.float64] = table.to_numpy().astype(float).sum(1, keepdims=True)
    return total


def _number(value: float) -> str:
    if np.isnan(value):
        return "–"
    rounded = f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return "0" if float(rounded.replace(",", "")) == 0 else rounded


def _settings(a: Allocation) -> dict[str, str]:
    return {key: _plain(value) for key, value in a.attrs.items() if key != "notes"}


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
