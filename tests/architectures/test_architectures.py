"""The architectures people use: the Markov rule against the Hessian identity on small versions of them."""

from __future__ import annotations

import numpy as np
import pytest

import capalloc
from architectures import ARCHITECTURES

#: Correlation of the two maps is at least this on all of them, total variation at most that.
CORRELATION, DISTANCE = 0.999, 0.01


@pytest.fixture(scope="module", params=ARCHITECTURES)
def solved(request):
    """(name, by the Markov rule, by the Hessian identity) on two examples."""
    architecture = ARCHITECTURES[request.param]
    model, x = architecture.build(), architecture.examples(2)
    return request.param, capalloc.propagate(model, x, solver="markov"), capalloc.propagate(model, x, solver="hessian")


def test_capacity_is_conserved(solved):
    _, markov, exact = solved
    for allocation in (markov, exact):
        inputs = float(allocation.capacity.sum()) + allocation.bias
        assert inputs == pytest.approx(allocation.total)
        assert float(allocation.by_parameter.sum()) == pytest.approx(allocation.total)
        np.testing.assert_allclose(
            allocation.table.sum(allocation.capacity.dims) + allocation.table.bias, allocation.by_parameter, atol=1e-8
        )
        assert min(float(allocation.table.min()), float(allocation.table.bias.min())) > -1e-9


@pytest.mark.proves("4", "symmetries of any graph", oracle="the rank of the Hessian")
def test_the_total_is_the_rank_of_the_hessian(solved):
    _, markov, exact = solved
    assert exact.total == pytest.approx(exact.attrs["rank"])
    assert markov.total == pytest.approx(exact.attrs["rank"])
    assert "symmetries: lower bound" not in markov.attrs["notes"]


@pytest.mark.proves("4", "any graph: the rule used by default", oracle="the Hessian identity")
def test_the_map_is_that_of_the_hessian(solved):
    _, markov, exact = solved
    assert capalloc.correlation(markov, exact) > CORRELATION
    assert capalloc.total_variation(markov, exact) < DISTANCE


@pytest.mark.parametrize("gates", ["gaussian", "unit"])
@pytest.mark.parametrize("name", ["ResNet", "U-Net, transposed", "U-Net, interpolated", "MobileNet"])
def test_without_data_capacity_is_conserved_too(name, gates):
    architecture = ARCHITECTURES[name]
    allocation = capalloc.propagate(architecture.build(), architecture.examples(1), gates=gates, solver="markov")
    assert float(allocation.capacity.sum()) + allocation.bias == pytest.approx(float(allocation.by_parameter.sum()))
    assert allocation.total == pytest.approx(allocation.attrs["num_params"] - allocation.attrs["symmetries"])
