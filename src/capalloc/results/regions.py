"""Partitions of the inputs, and capacity summed over their parts.

A partition is a label for every input: the name of an axis, an array of labels, or a function from a capacity map to
labels, such as those made below. Parts that are no sets of inputs, such as Fourier bands, need the map in another
basis first: `capalloc.linear.fourier_basis`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from capalloc._runtime.arguments import checked
from capalloc.results.images import image
from capalloc.results.several import FLAT_AXIS
from capalloc.results.view import Table, counted

VERTICAL = ("top", "middle", "bottom")
HORIZONTAL = ("left", "centre", "right")
#: Regions of a sequence.
THIRDS = ("first third", "middle third", "last third")
#: The axis that a map of two goes along, where it is no picture.
SEQUENCES: dict[tuple[str, ...], str] = {
    ("token", "feature"): "token",
    ("step", "feature"): "step",
    ("channel", "position"): "position",
}
#: A line of at most so many places is told place by place.
MOST_PLACES = 16
#: From a capacity map to labels over some of its axes, or all.
Labelling = Callable[[xr.DataArray], xr.DataArray]
Partition = str | ArrayLike | xr.DataArray | Labelling


def sum_parts(capacity: xr.DataArray, partition: Partition) -> xr.DataArray:
    """Capacity of every part, over the axis "part", in the order in which labels first appear.

    Args:
        capacity: over the inputs' own axes.
        partition: one label for every input: the name of an axis (a part for each of its values); an array of the map's
            shape or, for a map with one axis, its length; a DataArray over some of the map's axes; or a function that
            makes one from the map: `regions`, `patches(size)`, `bands(edges)`.

    Raises:
        TypeError: labels of no kind that can be compared.
        ValueError: labels that do not fit the map.

    """
    given = labels(capacity, partition).broadcast_like(capacity).transpose(*capacity.dims).to_numpy().ravel()
    if given.dtype.kind == "f" and np.isnan(given).any():
        raise ValueError("the partition leaves inputs without a label (NaN); give every input one")
    values, first, part = np.unique(given, return_index=True, return_inverse=True)
    order = np.argsort(first)
    sums = np.bincount(part.ravel(), weights=capacity.to_numpy().ravel(), minlength=len(values))
    result = xr.DataArray(sums[order], dims="part", coords={"part": values[order]})
    total, parts = float(capacity.sum()), float(sums.sum())
    assert abs(parts - total) <= 1e-9 * max(1.0, float(abs(capacity).sum())), (parts, total)
    return result


def labels(capacity: xr.DataArray, partition: Partition) -> xr.DataArray:
    """Labels of the inputs, over some of the map's axes or all; arguments as in `sum_parts`."""
    axes = tuple(map(str, capacity.dims))
    if isinstance(partition, str):
        if partition not in axes and partition not in capacity.coords:
            raise ValueError(f"the map has no axis {partition!r}; it has {axes}")
        return capacity[partition] if partition in capacity.coords else _positions(capacity, partition)
    given = partition(capacity) if callable(partition) else partition
    if not isinstance(given, xr.DataArray):
        array = np.asarray(given)
        if array.shape != capacity.shape:
            raise ValueError(
                f"labels have shape {array.shape}, the map {dict(capacity.sizes)}; for labels of one axis pass an "
                "xarray.DataArray that names it"
            )
        given = xr.DataArray(array, dims=axes)
    if not set(given.dims) <= set(axes) or any(given.sizes[dim] != capacity.sizes[dim] for dim in given.dims):
        raise ValueError(f"labels are over {dict(given.sizes)}, the map is over {dict(capacity.sizes)}")
    if given.dtype.kind not in "biufUS" and not all(isinstance(label, str) for label in given.values.flat):
        raise TypeError(f"labels must be numbers, booleans or strings, got {given.dtype}")
    bare = given.reset_coords(drop=True).drop_vars(list(given.coords))
    return bare.astype(str) if bare.dtype.kind == "O" else bare


def _positions(capacity: xr.DataArray, axis: str) -> xr.DataArray:
    return xr.DataArray(np.arange(capacity.sizes[axis]), dims=axis)


@checked
def regions(capacity: xr.DataArray) -> xr.DataArray:
    """Label a 3 x 3 grid over the last two axes, "top left" to "bottom right".

    Raises:
        ValueError: the map has fewer than two axes.

    """
    row, column = _last_two(capacity)
    names = np.empty((capacity.sizes[row], capacity.sizes[column]), dtype=object)
    for name, rows, columns in _cells(*names.shape):
        names[rows, columns] = name
    return xr.DataArray(names.astype(str), dims=(row, column))


def grid(values: xr.DataArray, keep: str | None = None) -> xr.DataArray:
    """Sum capacity in a 3 x 3 grid of regions, named "top left" to "bottom right", over the axis "region".

    Args:
        values: a map (*axes), or with the axis `keep` beside them, of at least two axes.
        keep: an axis that is not part of the map, such as "parameter".

    Returns:
        Sums over (keep, region); regions that hold no pixel, on images under 3 wide, are left out.

    Raises:
        ValueError: the map has fewer than two axes.

    """
    row, column = _last_two(values, keep)
    flat = image(values, keep).transpose(..., row, column)
    cells = {
        name: np.nansum(flat.to_numpy()[..., rows, columns], (-2, -1))
        for name, rows, columns in _cells(flat.sizes[row], flat.sizes[column])
    }
    outer = flat.isel({row: 0, column: 0}, drop=True).drop_attrs()
    return outer.expand_dims(region=list(cells), axis=-1).copy(data=np.stack([*cells.values()], -1))


def is_line(values: xr.DataArray) -> bool:
    """Tell whether the map is over one axis, up to axes of one entry."""
    return values.ndim == 1 or values.shape[-2] == 1


def named_parts(values: xr.DataArray, keep: str | None = None) -> xr.DataArray:
    """Sums over (keep, region): several inputs, thirds of a sequence, a 3 x 3 grid of a picture."""
    if "input_name" in values.coords:
        names = values.coords["input_name"]
        found = list(dict.fromkeys(names.to_numpy().tolist()))
        held = [values.isel({FLAT_AXIS: (names == name).to_numpy()}).sum(FLAT_AXIS) for name in found]
        return _joined(held, found)
    axes = [str(axis) for axis in values.dims if axis != keep]
    one = values.isel({keep: 0}) if keep else values
    along = SEQUENCES.get(tuple(axes), axes[-1] if is_line(one) else "")
    if not along:
        return grid(values, keep=keep)
    last = values.sum([axis for axis in axes if axis != along])
    if last.sizes[along] < len(THIRDS):
        return last.sum(along).expand_dims(region=["inputs"], axis=-1)
    sums = [last.isel({along: cut}).sum(along) for cut in thirds(last.sizes[along])]
    return _joined(sums, list(THIRDS))


def parts_each(values: xr.DataArray, *, per_place: bool = True) -> list[int]:
    """Number of inputs in each of `named_parts`; `per_place` of pixels or positions, whatever their channels."""
    ones = xr.ones_like(values, dtype=float)
    if per_place and "input_name" not in values.coords:
        axes = tuple(map(str, values.dims))
        kept = [SEQUENCES[axes]] if axes in SEQUENCES else axes[-1:] if is_line(values) else axes[-2:]
        ones = ones.isel({axis: slice(1) for axis in axes if axis not in kept})
    return [int(number) for number in named_parts(ones).to_numpy()]


def regions_by_mean(values: xr.DataArray) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the regions, and what one place of each gets: areas differ, and their sums would say otherwise."""
    sums = named_parts(values)
    return list(map(str, sums["region"].to_numpy())), sums.to_numpy() / np.array(parts_each(values))


def places_table(values: xr.DataArray, errors: Mapping[str, float]) -> list[Table]:
    """Tell what each place of a short line gets, or one place of each region, and its ratio to the mean place.

    Sums of regions may have standard `errors`, by name.
    """
    word = place_word(values)
    line = values.sum([axis for axis in values.dims if axis != word]) if word in values.dims else None
    if line is not None and line.size <= MOST_PLACES:
        names = (
            [str(name) for name in line[word].to_numpy()] if word in line.coords else list(map(str, range(line.size)))
        )
        head, each, counts = [word, "capacity"], line.to_numpy(), [1] * line.size
    elif word == "input" or values.size == 0:
        return []  # inputs without an order have no regions
    else:
        (names, each), counts = regions_by_mean(values), parts_each(values)
        head = ["region", f"capacity of each {word}"]
    mean = float(each @ np.array(counts)) / sum(counts)
    digits = "z,.2f" if mean >= 1 else "z.3g"
    rows = [
        [
            n,
            counted(own, errors[n] / count) if n in errors else f"{own:{digits}}",
            f"{own / mean:z.2f}" if mean else "–",
        ]
        for n, own, count in zip(names, each, counts, strict=True)
    ]
    return [Table("where capacity lies", [*head, "of the mean"], rows, detail=True)]


def place_word(values: xr.DataArray) -> str:
    """The word for one place of a map: its channels, or features, are summed."""
    axes = tuple(map(str, values.dims))
    if "input_name" in values.coords:
        return "input"
    return SEQUENCES.get(axes, axes[-1] if is_line(values) else "pixel" if axes[-2:] == ("row", "column") else "place")


def cell_words(values: xr.DataArray) -> str:
    """Words for one cell of a map as it is drawn: a place, or one feature of it."""
    axes = tuple(map(str, values.dims))
    return f"{axes[1]} of each {axes[0]}" if axes in SEQUENCES else place_word(values)


def _joined(sums: list[xr.DataArray], names: list[str]) -> xr.DataArray:
    return xr.concat(sums, dim="region").assign_coords(region=names).transpose(..., "region")


def _last_two(values: xr.DataArray, keep: str | None = None) -> tuple[str, str]:
    axes = tuple(str(dim) for dim in values.dims if dim != keep)
    if len(axes) < 2:
        raise ValueError(f"a grid of regions needs a capacity map of at least two axes, got {axes}")
    return axes[-2], axes[-1]


def _cells(rows: int, columns: int) -> Iterator[tuple[str, slice, slice]]:
    """Name, rows and columns of the cells that hold a pixel."""
    for vertical, down in zip(VERTICAL, thirds(rows), strict=True):
        for horizontal, along in zip(HORIZONTAL, thirds(columns), strict=True):
            if down.stop > down.start and along.stop > along.start:
                centre = (vertical, horizontal) == ("middle", "centre")
                yield "centre" if centre else f"{vertical} {horizontal}", down, along


def thirds(length: int) -> list[slice]:
    """Symmetrical cuts of 0 .. length into three: 8 -> 0:3, 3:5, 5:8."""
    first = round(length / 3)
    return [slice(*ends) for ends in itertools.pairwise([0, first, length - first, length])]


def patches(*size: int) -> Labelling:
    """Blocks of `size` over the last axes, named by their place: "0, 0", "0, 1" ...; the last may be smaller.

    Raises:
        ValueError: a size that is no positive number; on use, more sizes than the map has axes.

    """
    if not size or any(length < 1 for length in size):
        raise ValueError(f"patches need a positive size for each axis, got {size}")

    def label(capacity: xr.DataArray) -> xr.DataArray:
        if len(size) > capacity.ndim:
            raise ValueError(f"patches of {len(size)} axes on a map over {capacity.dims}")
        dims = capacity.dims[capacity.ndim - len(size) :]
        places = [[k // step for k in range(capacity.sizes[dim])] for dim, step in zip(dims, size, strict=True)]
        names = [", ".join(map(str, place)) for place in itertools.product(*places)]
        return xr.DataArray(np.array(names).reshape([len(place) for place in places]), dims=dims)

    return label


@checked
def bands(edges: Sequence[float], axis: str | None = None) -> Labelling:
    """Intervals of an axis by its coordinate, such as frequencies or lags: below the first edge, then from each on.

    Args:
        edges: increasing; a value on an edge goes to the band above it.
        axis: whose coordinate; the only axis by default. Without a coordinate the positions 0, 1, ... count.

    Raises:
        ValueError: edges that do not increase; on use, no such axis, or several and none chosen.

    """
    if len(edges) == 0 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(f"edges must increase, got {list(edges)}")
    limits = [f"{edge:g}" for edge in edges]
    names = [f"below {limits[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(limits)), f"from {limits[-1]}"]

    def label(capacity: xr.DataArray) -> xr.DataArray:
        if axis is None and capacity.ndim != 1:
            raise ValueError(f"say which axis the bands are of: bands(edges, axis=...), one of {capacity.dims}")
        own = capacity.dims[0] if axis is None else axis
        if own not in capacity.dims:
            raise ValueError(
                f"the map has no axis {own!r}; it has {capacity.dims}. For frequencies, compute it with "
                "linear_capacity(..., basis=fourier_basis(n))"
            )
        places = capacity[own] if own in capacity.coords else _positions(capacity, str(own))
        if places.dtype.kind not in "iuf":
            raise ValueError(f"bands need numbers along {own!r}, got {places.dtype}")
        return xr.DataArray(np.array(names)[np.digitize(places, edges)], dims=str(own))

    return label
