"""Capacity by parts: additive on any partition, for any Allocation."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from capalloc.partitions import bands, patches, regions
from capalloc.results.allocation import Allocation
from capalloc.results.regions import grid, places_table


def allocation(capacity: np.ndarray, dims: tuple[str, ...], coords: dict | None = None) -> Allocation:
    values = xr.DataArray(capacity, dims=dims, coords=coords)
    total = xr.DataArray([float(values.sum()) + 0.5], dims="parameter", coords={"parameter": ["w"]})
    return Allocation(capacity=values, bias=0.5, by_parameter=total)


def image(channels: int = 2, rows: int = 5, columns: int = 7) -> Allocation:
    values = np.random.default_rng(0).random((channels, rows, columns))
    return allocation(values, ("channel", "row", "column"))


def signal(length: int = 10) -> Allocation:
    lags = np.arange(length, 0, -1)
    return allocation(np.random.default_rng(0).random(length), ("lag",), {"lag": lags})


def test_an_axis_gives_a_part_to_each_of_its_values():
    a = image()
    np.testing.assert_allclose(a.by("channel"), a.capacity.sum(["row", "column"]))
    assert list(signal(3).by("lag")["part"].values) == [3, 2, 1]


@given(st.lists(st.sampled_from("abc"), min_size=10, max_size=10))
def test_labels_partition_the_capacity(labels):
    a = signal()
    parts = a.by(labels)
    assert set(parts["part"].values) == set(labels)
    assert float(parts.sum()) == pytest.approx(a.total - a.bias, abs=1e-12)
    for label in set(labels):
        expected = a.capacity.values[np.array(labels) == label].sum()
        assert float(parts.sel(part=label)) == pytest.approx(expected, abs=1e-12)


def test_parts_come_in_order_of_appearance_and_survive_a_file(tmp_path):
    a = signal(4)
    a.save(tmp_path / "a.nc")
    parts = Allocation.load(tmp_path / "a.nc").by(["new", "new", "old", "old"])
    assert list(parts["part"].values) == ["new", "old"]
    np.testing.assert_array_equal(parts, a.by(np.array(["new", "new", "old", "old"])))


def test_labels_of_one_axis_hold_for_all_others():
    a = image()
    upper = xr.DataArray(np.arange(5) < 2, dims="row")
    np.testing.assert_allclose(a.by(upper).sel(part=True), a.capacity.values[:, :2].sum())


@pytest.mark.parametrize("size", [(2, 5, 7), (1, 1, 2), (3, 9, 8)])
def test_regions_are_the_grid_of_the_report(size):
    a = image(*size)
    expected = grid(a.capacity)
    parts = a.by(regions)
    assert set(parts["part"].values) == set(expected["region"].values)
    np.testing.assert_allclose(parts.sel(part=expected["region"].values), expected)


def test_patches_are_blocks():
    a = image()
    parts = a.by(patches(2, 3))
    assert list(parts["part"].values[:4]) == ["0, 0", "0, 1", "0, 2", "1, 0"]
    assert float(parts.sel(part="2, 1")) == pytest.approx(a.capacity.values[:, 4:, 3:6].sum())
    assert float(parts.sum()) == pytest.approx(a.total - a.bias)
    assert a.by(patches(4)).size == 2  # the last axis alone


def test_bands_cut_a_coordinate():
    a = signal()
    parts = a.by(bands([2, 5]))
    lags = a.capacity["lag"]
    assert list(parts["part"].values) == ["from 5", "2 to 5", "below 2"]
    assert float(parts.sel(part="2 to 5")) == pytest.approx(float(a.capacity[(lags >= 2) & (lags < 5)].sum()))
    assert list(image().by(bands([3], axis="row"))["part"].values) == ["below 3", "from 3"]


@pytest.mark.parametrize(
    ("partition", "error", "words"),
    [
        ("row", ValueError, "no axis 'row'"),
        ([1, 2], ValueError, r"labels have shape \(2,\)"),
        ([float("nan")] * 10, ValueError, "without a label"),
        (xr.DataArray([1, 2], dims="lag"), ValueError, "labels are over"),
        (np.array([object()] * 10), TypeError, "numbers, booleans or strings"),
        (regions, ValueError, "at least two axes"),
        (patches(2, 2), ValueError, "patches of 2 axes"),
        (bands([0.1], axis="frequency"), ValueError, "fourier_basis"),
    ],
)
def test_a_partition_that_does_not_fit_is_an_error(partition, error, words):
    with pytest.raises(error, match=words):
        signal().by(partition)


def test_bad_partitions_are_errors_where_they_are_made():
    with pytest.raises(ValueError, match="positive size"):
        patches(0)
    with pytest.raises(ValueError, match="edges must increase"):
        bands([2, 1])
    with pytest.raises(ValueError, match="say which axis"):
        image().by(bands([1]))
    named = allocation(np.ones(2), ("component",), {"component": ["0", "rest"]})
    with pytest.raises(ValueError, match="bands need numbers"):
        named.by(bands([1]))


def test_places_are_told_one_by_one_on_a_short_line_and_by_region_else():
    (tokens,) = places_table(xr.DataArray([3.0, 1.0, 2.0], dims="token"), {})
    assert tokens.rows == [["0", "3.00", "1.50"], ["1", "1.00", "0.50"], ["2", "2.00", "1.00"]]
    picture = np.ones((2, 6, 6))
    picture[:, 2:4, 2:4] = 4.0
    (areas,) = places_table(xr.DataArray(picture, dims=("channel", "row", "column")), {})
    assert areas.head == ["region", "capacity of each pixel", "of the mean"]
    by_name = {row[0]: row[1:] for row in areas.rows}
    assert by_name["centre"] == ["8.00", "3.00"]
    assert by_name["top left"] == ["2.00", "0.75"]
    (thirds,) = places_table(xr.DataArray(np.arange(30.0), dims="column"), {})
    assert thirds.rows[2] == ["last third", "24.50", "1.69"]
    assert places_table(xr.DataArray(np.ones(40), dims="input"), {}) == []  # in no order


def test_the_table_of_places_is_part_of_a_result_that_has_capacity():
    tables = [table.title for table in image().view().tables]
    assert "where capacity lies" in tables
    empty = allocation(np.zeros((1, 4, 4)), ("channel", "row", "column"))
    assert "centre" in str(image().view().tables[0].rows)
    assert all(row[2] == "–" for row in places_table(empty.capacity, {})[0].rows)
