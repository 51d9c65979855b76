"""The grid of a walk: where it starts, what moves where with which rates, and what borders do to that.

Index convention: offsets are (moves, *places, axes) in cells, weights (moves, *places); `places` is the grid, or empty
where they are the same everywhere. A state is (cells + 1,): the grid in C order, then what has been absorbed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from capalloc._linalg.aliases import Array, Indices
from capalloc._runtime.arguments import checked

Border = Literal["periodic", "reflecting", "absorbing"]
BORDERS = get_args(Border)


@dataclass(frozen=True, eq=False)
class Moves:
    """Weights >= 0 of moves from every position, by displacement."""

    offsets: Indices
    weights: Array


@dataclass(frozen=True)
class Grid:
    """Cells, what happens at their border on each axis, and their size in pixels."""

    shape: tuple[int, ...]
    borders: tuple[Border, ...]
    spacing: float = 1.0

    @property
    def cells(self) -> int:
        """Their number."""
        return math.prod(self.shape)

    @property
    def periodic(self) -> bool:
        """True where it has no border at all."""
        return all(border == "periodic" for border in self.borders)


def make_grid(shape: tuple[int, ...], border: Border | Sequence[Border], spacing: float = 1.0) -> Grid:
    """The grid with one border for each axis.

    Raises:
        ValueError: an unknown border, one for another number of axes, or a spacing that is not positive.

    """
    borders = (border,) * len(shape) if isinstance(border, str) else tuple(border)
    if len(borders) != len(shape) or any(name not in BORDERS for name in borders):
        raise ValueError(f"border must be one of {BORDERS}, or one for each of {len(shape)} axes, got {border!r}")
    if not (math.isfinite(spacing) and spacing > 0):
        raise ValueError(f"spacing must be a finite number of pixels above 0, got {spacing}")
    return Grid(shape, borders, spacing)


def arrivals(moves: Moves, grid: Grid) -> sparse.csr_array:
    """Weights as a matrix, entry (target, source) over states: what leaves the grid for good goes to the last state."""
    sources = np.moveaxis(np.indices(grid.shape), 0, -1)
    used = [k for k, weight in enumerate(moves.weights) if np.any(weight)]
    rows = [targets(sources + moves.offsets[k], grid).ravel() for k in used]
    data = [np.broadcast_to(moves.weights[k], grid.shape).ravel() for k in used]
    columns = np.tile(np.arange(grid.cells), len(used))
    entries = (np.concatenate([np.empty(0), *data]), (np.concatenate([np.empty(0, int), *rows]), columns))
    return sparse.csr_array(entries, shape=(grid.cells + 1, grid.cells + 1))


def targets(positions: Indices, grid: Grid) -> Indices:
    """Cells where positions (..., axes), perhaps outside, end; the number of cells for those that are absorbed."""
    cell = np.zeros(positions.shape[:-1], dtype=np.int64)
    gone = np.zeros(positions.shape[:-1], dtype=bool)
    for axis, (n, border) in enumerate(zip(grid.shape, grid.borders, strict=True)):
        place = positions[..., axis]
        if border == "absorbing":
            gone |= (place < 0) | (place >= n)
        elif border == "reflecting":  # mirrored about the outer edges of the border cells, as often as it takes
            place = np.minimum(place % (2 * n), 2 * n - 1 - place % (2 * n))
        cell = cell * n + place % n
    return np.where(gone, grid.cells, cell)


def spectrum(moves: Moves, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Fourier transform over a periodic grid of weights that are the same everywhere."""
    wrapped = np.zeros(shape)
    np.add.at(wrapped, tuple((moves.offsets % np.array(shape)).T), moves.weights)
    transform: NDArray[np.complex128] = np.fft.rfftn(wrapped)
    return transform


def check_start(start: ArrayLike) -> Array:
    """A copy of the law that the walk starts from, in float64, if it is one.

    Raises:
        ValueError: entries that are negative or not finite, that do not sum to 1, or more than three axes.

    """
    law: Array = np.array(start, dtype=float)
    if not 1 <= law.ndim <= 3 or not law.size:
        raise ValueError(f"start must have one to three axes and some position, got shape {law.shape}")
    if not (np.isfinite(law).all() and (law >= 0).all()):
        raise ValueError("start must be a law: finite entries of at least 0")
    # sums of many float32 entries miss 1 by about this
    if not abs(law.sum() - 1) < 1e-6:
        raise ValueError(f"start must sum to 1, got {law.sum():.8g}; divide it by its sum")
    law /= law.sum()
    return law


@checked
def point(shape: int | Sequence[int], position: int | Sequence[int] | None = None) -> Array:
    """The law of a walk that starts at one position, the centre n // 2 by default.

    Args:
        shape: of the grid, one to three axes.
        position: index on every axis.

    Raises:
        ValueError: a shape without axes; a position outside the grid or on another number of axes.

    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not sizes:
        raise ValueError("shape must have one axis at least, got none")
    at = tuple(n // 2 for n in sizes) if position is None else np.atleast_1d(position).tolist()
    if len(at) != len(sizes) or any(not 0 <= k < n for k, n in zip(at, sizes, strict=False)):
        raise ValueError(f"position {tuple(at)} lies outside a grid of shape {sizes}")
    law = np.zeros(sizes)
    law[tuple(at)] = 1.0
    return law
