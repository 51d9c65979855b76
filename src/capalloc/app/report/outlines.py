"""Lines over the map of a receptive field: the box of the theoretical extent, the rings of the effective one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capalloc.results.images import RING_SHARES, ring, smallest_region

Box = Mapping[str, tuple[int, int]]


def lines_over(flat: xr.DataArray, box: Box) -> dict[str, str]:
    """Box and rings as SVG paths over a picture, in cells."""
    (top, bottom), (left, right) = (box[str(axis)] for axis in flat.dims)
    rings = {f"ring-{share * 100:.0f}": outline(ring(flat.to_numpy(), share)) for share in RING_SHARES}
    return {"theoretical": f"M{left} {top}H{right}V{bottom}H{left}Z", **rings}


def edges_over(flat: xr.DataArray, box: Box) -> dict[str, tuple[float, float]]:
    """The ends of box and regions on a line."""
    start, stop = box[str(flat.dims[0])]
    regions = {f"{share:.0%}": _ends(smallest_region(flat.to_numpy(), share)) for share in RING_SHARES}
    return {"theoretical": (start - 0.5, stop - 0.5), **regions}


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
