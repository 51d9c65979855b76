"""Agreement of two capacity maps."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from allocations import allocation
from capalloc import Allocation, correlation, total_variation

MAPS = arrays(float, (3, 4), elements=st.floats(0.01, 100))


def with_map(values: np.ndarray) -> Allocation:
    whole = xr.DataArray([values.sum()], dims="parameter", coords={"parameter": ["w"]})
    return Allocation(xr.DataArray(values, dims=("row", "column")), 0.0, whole)


def test_a_map_agrees_with_itself_at_any_scale():
    a = allocation()
    twice = Allocation(a.capacity * 2, a.bias * 2, a.by_parameter * 2)
    assert correlation(a, twice) == pytest.approx(1)
    assert total_variation(a, twice) == pytest.approx(0)


def test_bias_does_not_count():
    a = allocation()
    without = Allocation(a.capacity, 0.0, a.by_parameter * float(a.capacity.sum()) / a.total)
    assert total_variation(a, without) == 0


def test_maps_without_overlap_are_at_distance_one():
    a = with_map(np.array([[1.0, 0], [2, 0]]))
    b = with_map(np.array([[0, 5.0], [0, 1]]))
    assert total_variation(a, b) == 1


@given(MAPS, MAPS)
def test_against_plain_formulas(x, y):
    a, b = with_map(x), with_map(y)
    assert total_variation(a, b) == pytest.approx(0.5 * np.abs(x / x.sum() - y / y.sum()).sum(), abs=1e-12)
    if np.ptp(x) > 1e-3 and np.ptp(y) > 1e-3:
        assert correlation(a, b) == pytest.approx(stats.pearsonr(x.ravel(), y.ravel()).statistic, abs=1e-8)


@pytest.mark.parametrize("compare", [correlation, total_variation])
def test_refuses_maps_of_other_inputs(compare):
    with pytest.raises(ValueError, match=r"the maps differ in shape: \(1, 4, 6\) and \(1, 6, 4\)"):
        compare(allocation(), allocation((1, 6, 4)))


def test_refuses_what_has_no_correlation():
    with pytest.raises(ValueError, match="a constant capacity map has no correlation"):
        correlation(with_map(np.ones((2, 2))), with_map(np.eye(2)))


def test_refuses_what_has_no_distance():
    a = with_map(np.ones((2, 2)))
    with pytest.raises(ValueError, match="a map without capacity cannot be normalised"):
        total_variation(a, a.replace(capacity=a.capacity * 0, by_parameter=a.by_parameter * 0))
