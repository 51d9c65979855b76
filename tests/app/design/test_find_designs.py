"""Designs by target: fields against the closed form, widths at their bound, orders against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from capalloc.app.design import Design, find_designs, read, search
from capalloc.app.design.find_designs import unevenness

LIKE = Design(ndim=1, size=32)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    for name, values in {"KERNELS": (3, 5), "DILATIONS": (1, 2), "CYCLES": (1, 2), "STRIDES": ((1, 1), (2, 1))}.items():
        monkeypatch.setattr(find_designs, name, values)


def field_by_hand(design: Design) -> int:
    """The pixels that some entry of a kernel reaches, layer by layer from the output."""
    reached = {0}
    layers = list(zip((1, *design.dilations), design.strides, strict=True))
    for dilation, stride in reversed(layers):
        taps = range(-(design.kernel // 2), design.kernel // 2 + 1)
        reached = {place * stride + tap * dilation for place, tap in itertools.product(reached, taps)}
    return max(reached) - min(reached) + 1


@pytest.mark.parametrize("field", [9, 10, 17])
def test_fields_are_the_nearest_and_widths_the_largest(field):
    found = search(field, flat=5, max_params=2000, like=LIKE, most=4)
    away = [abs(field_by_hand(reading.design) - field) for reading in found]
    assert away == sorted(away)
    assert away[0] == (0 if field % 2 else 1)  # odd kernels at stride 1 make odd fields
    for reading in found:
        d = reading.design
        wider = 2000 - (d.width + 1) * d.kernel - d.depth * (d.width + 1) ** 2 * d.kernel - (d.width + 1)
        assert reading.num_params <= 2000
        assert wider < 0 or d.width == 256
        assert (d.ndim, d.size, d.residual) == (1, 32, LIKE.residual)


def test_among_fields_alike_the_most_even_comes_first():
    found = [r for r in search(9, flat=5, max_params=2000, like=LIKE, most=9) if r.extent == 9]
    scores = [unevenness(r.profile(r.law), 5) for r in found]
    assert len(found) > 2
    assert scores == pytest.approx(sorted(scores), abs=1e-9)


def test_without_flat_the_most_parameters_count():
    totals = [r.total for r in search(9, max_params=2000, like=LIKE, most=9) if r.extent == 9]
    assert totals == sorted(totals, reverse=True)


def test_unevenness_of_known_laws():
    assert unevenness(np.array([0, 0.25, 0.25, 0.25, 0.25, 0]), 4) == 0
    assert unevenness(np.eye(1, 9, 4)[0], 5) == pytest.approx(0.8)
    assert unevenness(np.array([0.5, 0, 0, 0, 0.5]), 3) == pytest.approx(1)


def test_the_law_of_one_axis_is_the_marginal_of_two():
    """Without borders in reach the profile of a map is the law of one axis."""
    flat, plane = (read(Design(depth=3, ndim=n, size=31, width=4)) for n in (1, 2))
    np.testing.assert_allclose(plane.profile(plane.law), flat.law, atol=1e-9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"field": 2}, "field must lie from 3 to 512, got 2"),
        ({"field": 9, "flat": 10}, "flat must lie from 1 to the field, 9, got 10"),
        ({"field": 9, "most": 0}, "most must be at least 1, got 0"),
        ({"field": 9, "max_params": 3, "like": LIKE}, "max_params = 3 are too few for a field of 9 pixels"),
    ],
)
def test_refused(given, message):
    with pytest.raises(ValueError, match=message):
        search(**given)
