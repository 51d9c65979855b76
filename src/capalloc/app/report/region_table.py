"""Capacity of every parameter tensor by region of the input: what one place of it gets, and the sum over its places.

Regions differ in area, so that colours and first numbers are means: sums alone would say that corners of an image of
8 pixels get more than its centre, whose thirds are 3, 2 and 3 pixels long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capalloc.app.pages import PAGES
from capalloc.app.report.section import Section, exact, number
from capalloc.results.allocation import Allocation
from capalloc.results.regions import named_parts, parts_each, place_word

#: Shades of a cell, the lightest none.
SHADES = 10


@dataclass(frozen=True)
class ShadedCell:
    """One number for each allocation, and how strong its colour is."""

    values: list[str]
    shade: int
    means: list[str] = field(default_factory=list)  # of one place of the region; empty for what has no places


@dataclass(frozen=True)
class TensorRow:
    """One parameter tensor, or all; `layer` is its number among the maps' layers, or None."""

    name: str
    cells: list[ShadedCell]
    layer: int | None = None


def by_region(key: str, members: Mapping[str, Allocation], layers: list[str], of: str) -> list[Section]:
    """A table for the allocations that share their parameter tensors, one for each such set."""
    sets: dict[tuple[str, ...], dict[str, Allocation]] = {}
    for name, a in members.items():
        sets.setdefault(tuple(map(str, a.by_parameter["parameter"].values)), {})[name] = a
    sections = []
    for k, same in enumerate(sets.values(), 1):
        told = any(a.table is not None for a in same.values())
        title = "Which parameters serve which region" if told else "Capacity of the parameter tensors"
        title += of if len(sets) == 1 else f": {', '.join(same)}"
        body = PAGES.render(
            "report/regions.html",
            key=key,
            names=list(same),
            columns=columns(next(iter(same.values()))) if told else ["all"],
            told=told,
            place=place_word(next(iter(same.values())).capacity),
            rows=rows(same, layers),
            errors=any("by_parameter_standard_error" in a.attrs for a in same.values()),
        )
        sections.append(Section(f"{key}-regions-{k}", title, body))
    return sections


def columns(a: Allocation) -> list[str]:
    """The sum, regions of the input, and the constant input."""
    return ["all", *map(str, named_parts(a.capacity)["region"].values), "constant input"]


def rows(members: Mapping[str, Allocation], layers: list[str]) -> list[TensorRow]:
    """Capacity of every parameter tensor, and of all, by region."""
    numbers = np.stack([_numbers(a) for a in members.values()], axis=-1)
    areas = np.array(parts_each(next(iter(members.values())).capacity))[:, None]
    if all(a.table is None for a in members.values()):
        numbers = numbers[:, :1]
    names = [*map(str, next(iter(members.values())).by_parameter["parameter"].values), "all"]
    inside = slice(1, 1 + len(areas))
    means = numbers[:, inside] / areas[: numbers[:, inside].shape[1]]
    largest = np.nanmax(np.append(means[:-1, :, 0], 0.0)) or 1.0
    shades = np.zeros(numbers.shape[:2], int)
    shades[:-1, inside] = np.rint(np.nan_to_num(means[:-1, :, 0] / largest).clip(0, 1) * SHADES)
    place = {name: k for k, name in enumerate(layers)}
    found = []
    for k, name in enumerate(names):
        texts = [[number(v) for v in cell] for cell in numbers[k]]
        if k < len(names) - 1:
            texts[0] = [_with_error(text, a, name) for text, a in zip(texts[0], members.values(), strict=True)]
        each = [[], *([_mean(v) for v in cell] for cell in means[k]), []]
        cells = [ShadedCell(*cell) for cell in zip(texts, map(int, shades[k]), each, strict=False)]
        found.append(TensorRow(name, cells, place.get(name) if k < len(names) - 1 else None))
    return found


def _mean(value: float) -> str:
    """Three digits, and none below a tenth of a thousandth."""
    if np.isnan(value):
        return "–"
    return exact(value) if abs(value) >= 100 else f"{value if abs(value) >= 1e-4 else 0:.3g}".replace("-", "−")


def _with_error(text: str, a: Allocation, name: str) -> str:
    error = a.attrs.get("by_parameter_standard_error", {}).get(name)
    return text if error is None else f"{text} ± {number(float(error))}"


def _numbers(a: Allocation) -> NDArray[np.float64]:
    """(parameters and all, all and regions and constant); NaN where there is no table to tell."""
    everything = named_parts(a.capacity).to_numpy().astype(float)
    if a.table is None:
        inside = np.full((a.by_parameter.size, len(everything) + 1), np.nan)
    else:
        names = {"input_name": a.capacity.coords["input_name"]} if "input_name" in a.capacity.coords else {}
        inner = _regions(a.table.drop_vars("bias").assign_coords(names))
        inside = np.column_stack([inner, a.table.coords["bias"].to_numpy()])
    body = np.column_stack([a.by_parameter.to_numpy(), inside])
    return np.vstack([body, [a.total, *everything, a.bias]])


def _regions(table: xr.DataArray) -> NDArray[np.float64]:
    found: NDArray[np.float64] = named_parts(table, keep="parameter").transpose("parameter", "region").to_numpy()
    return found.astype(float)
