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
from capalloc.results.comparison import agreement, doubt, same_data

MAPS = arrays(float, (3, 4), elements=st.floats(0.01, 100))


def with_map(values: np.ndarray, bias: float = 0.0, axes: tuple[str, ...] = ("row", "column")) -> Allocation:
    whole = xr.DataArray([values.sum() + bias], dims="parameter", coords={"parameter": ["w"]})
    return Allocation(xr.DataArray(values, dims=axes), bias, whole)


def test_a_map_agrees_with_itself_at_any_scale():
    a = allocation()
    twice = Allocation(a.capacity * 2, a.bias * 2, a.by_parameter * 2)
    assert correlation(a, twice) == pytest.approx(1)
    assert total_variation(a, twice) == pytest.approx(0)


def test_the_constant_input_counts():
    """Two maps of one pattern, of which one also has a constant: its share of the whole would have to move."""
    a = allocation()
    without = Allocation(a.capacity, 0.0, a.by_parameter * float(a.capacity.sum()) / a.total)
    assert total_variation(a, without) == pytest.approx(a.bias / a.total)
    assert total_variation(a, without, constant=False) == 0
    assert correlation(a, without) == pytest.approx(1)
    assert correlation(a, without, constant=True) < 1


def test_a_wrong_constant_shows_whatever_the_map():
    """The error that the map alone hides: 62 of 533 on the constant, told as 452 of 690."""
    pattern = np.arange(1.0, 13).reshape(3, 4)
    pattern /= pattern.sum()
    measured, rule = with_map(pattern * (533 - 62), 62), with_map(pattern * (690 - 452), 452)
    assert total_variation(measured, rule, constant=False) == pytest.approx(0, abs=1e-12)
    assert total_variation(measured, rule) == pytest.approx(452 / 690 - 62 / 533)


@pytest.mark.proves("2", "distances count the constant", oracle="one more input by hand")
@given(MAPS, MAPS, st.floats(0, 50), st.floats(0, 50))
def test_the_constant_is_one_more_input(x, y, p, q):
    a, b = with_map(x, p), with_map(y, q)
    whole = [np.append(values.ravel(), bias) for values, bias in ((x, p), (y, q))]
    one, other = (with_map(values[None]) for values in whole)
    assert total_variation(a, b) == pytest.approx(total_variation(one, other), abs=1e-12)
    if all(np.ptp(values) > 1e-3 for values in whole):
        assert correlation(a, b, constant=True) == pytest.approx(correlation(one, other), abs=1e-8)


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


def test_the_same_data_is_known_where_both_tell():
    a, b, other, silent = (allocation(**attrs) for attrs in (*[{"data_digest": "00"}] * 2, {"data_digest": "01"}, {}))
    assert same_data(a, b) is True
    assert same_data(a, other) is False
    assert same_data(a, silent) is None


@pytest.mark.parametrize("compare", [correlation, total_variation])
def test_refuses_maps_of_other_inputs(compare):
    with pytest.raises(ValueError, match=r"the maps differ in shape: \(1, 4, 6\) and \(1, 6, 4\)"):
        compare(allocation(), allocation((1, 6, 4)))


def test_a_correlation_backwards_turns_places_and_leaves_channels():
    generator = np.random.default_rng(0)
    values, others = generator.random((2, 3, 4)), generator.random((2, 3, 4))
    a, b = (with_map(v, axes=("channel", "row", "column")) for v in (values, others))
    expected = stats.pearsonr(values.ravel(), others[:, ::-1, ::-1].ravel()).statistic
    assert correlation(a, b, backwards=True) == pytest.approx(expected, abs=1e-12)
    assert agreement(a, b)["correlation_backwards"] == pytest.approx(expected, abs=1e-12)
    line, other = (with_map(v.ravel(), axes=("input",)) for v in (values, others))
    expected = stats.pearsonr(values.ravel(), others.ravel()[::-1]).statistic
    assert correlation(line, other, backwards=True) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"solver": "dense"}, {"solver": "dense"}, "of two exact maps"),
        ({"solver": "dense"}, {"solver": "markov"}, "a guide has no known error, which is part of it"),
        (
            {"solver": "block", "missing": 0.02, "noise": 0.01},
            {"solver": "block", "missing": 0.01, "noise": 0.0},
            "up to about 0.04 of it may be errors of the maps",
        ),
        ({}, {"solver": "stochastic"}, "errors of the maps are part of it"),
    ],
)
def test_a_distance_says_what_errors_may_be_part_of_it(first, second, said):
    assert doubt(*(allocation((3, 3), **attrs) for attrs in (first, second))) == said


def test_refuses_what_has_no_correlation():
    with pytest.raises(ValueError, match="a constant capacity map has no correlation"):
        correlation(with_map(np.ones((2, 2))), with_map(np.eye(2)))
    with pytest.raises(ValueError, match="a constant capacity map has no correlation"):
        correlation(with_map(np.ones((2, 2)) + 1e-15 * np.eye(2)), with_map(np.eye(2)))


def test_refuses_what_has_no_distance():
    a = with_map(np.ones((2, 2)))
    with pytest.raises(ValueError, match="a map without capacity cannot be normalised"):
        total_variation(a, a.replace(capacity=a.capacity * 0, by_parameter=a.by_parameter * 0))
