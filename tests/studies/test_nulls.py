"""Nulls beside a rule, and the benchmarks that show them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from benchmarks import nulls
from torch import nn

import capalloc
from zoo import gaussian, seeded_module


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(10, 2)
    )


@pytest.mark.proves("2", "nulls keep the energy of every tensor", oracle="sums of squares")
def test_equal_magnitudes_keep_signs_and_energies():
    model = seeded_module(network)
    before = [p.detach().clone() for p in model.parameters()]
    equal = nulls.equal_magnitudes(model)
    for old, own, new in zip(before, model.parameters(), equal.parameters(), strict=True):
        assert torch.equal(old, own)
        assert torch.equal(old.sign(), new.sign())
        assert float(new.square().sum()) == pytest.approx(float(old.square().sum()))
        assert float(new.abs().std()) == pytest.approx(0, abs=1e-12)


def test_a_network_is_its_own_null_where_weights_are_equal():
    """With equal magnitudes from the start the second null is the rule itself."""
    x = gaussian(20, 1, 9)
    rule = partial(capalloc.propagate, inputs=x, table=False, solver="markov")
    model, *others = (nulls.equal_magnitudes(seeded_module(network, seed=seed)) for seed in (0, *nulls.OTHER_SEEDS))
    measured = capalloc.measure(model, x)
    columns = nulls.agreement(measured, rule(model), model, others, rule)
    assert len(columns) == len(nulls.HEADER)
    assert columns[0] == f"{capalloc.total_variation(measured, rule(model)):.3f}"
    assert columns[::3] == columns[2::3]
    assert "–" not in columns


def test_a_flat_map_has_no_correlation():
    """One linear unit: one unit of capacity for every input."""
    flat = capalloc.propagate(nn.Linear(4, 1, bias=False).double(), gaussian(5, 4), solver="markov")
    assert math.isnan(nulls.correlated(flat, flat))
    assert nulls.spread([math.nan]) == "–"
    assert nulls.spread([0.5, math.nan, 0.25]) == "0.250 to 0.500"
    assert np.ptp(flat.capacity.values) == pytest.approx(0)
