"""Regions of an input: a grid over its last two axes, and capacity summed over its cells.

Index convention: maps are (*leading axes, rows, columns); the leading axes (channels, depth) are summed.
"""

from __future__ import annotations

import itertools

import xarray as xr

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")


def image(values: xr.DataArray, keep: str | None = None) -> xr.DataArray:
    """Sum over every axis but the last two, and `keep` where it is given."""
    axes = [str(dim) for dim in values.dims if dim != keep]
    return values.sum(axes[:-2])


def grid(values: xr.DataArray, keep: str | None = None) -> xr.DataArray:
    """Capacity in a 3 x 3 grid of regions, named "top left" to "bottom right", over the axis "region".

    Args:
        values: a map (*axes), or with the axis `keep` beside them, of at least two axes.
        keep: an axis that is not part of the map, such as "parameter".

    Returns:
        Sums over (keep, region); regions that hold no pixel, on images under 3 wide, are left out.

    Raises:
        ValueError: the map has fewer than two axes.

    """
    axes = [str(dim) for dim in values.dims if dim != keep]
    if len(axes) < 2:
        raise ValueError(f"a grid of regions needs a map of at least two axes, got {tuple(axes)}")
    row, column = axes[-2:]
    flat = image(values, keep)
    cells, names = [], []
    for (top, bottom), vertical in zip(thirds(flat.sizes[row]), ROWS, strict=True):
        for (left, right), horizontal in zip(thirds(flat.sizes[column]), COLUMNS, strict=True):
            if bottom > top and right > left:
                cell = flat.isel({row: slice(top, bottom), column: slice(left, right)})
                cells.append(cell.sum([row, column]))
                names.append(region_name(vertical, horizontal))
    return xr.concat(cells, dim="region").assign_coords(region=names).transpose(..., "region")


def region_name(row: str, column: str) -> str:
    """Of a cell: "top left", and "centre" for the one in the middle."""
    return "centre" if (row, column) == ("middle", "centre") else f"{row} {column}"


def thirds(length: int) -> list[tuple[int, int]]:
    """Symmetrical cuts of 0 .. length into three: 8 -> (0, 3), (3, 5), (5, 8)."""
    first = round(length / 3)
    return list(itertools.pairwise([0, first, length - first, length]))
