"""Sums over the regions that results name have standard errors of their own: those of inputs do not add up to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import capalloc
from capalloc.results.regions import named_parts
from capalloc.solvers import Block
from zoo import gaussian, seeded_module

ERRORS = "by_region_standard_error"


class Difference(nn.Module):
    """A model of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([first, second], 1))


def convolutions() -> nn.Module:
    layers = (nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    return seeded_module(lambda: nn.Sequential(*layers))


@pytest.mark.parametrize(("probes", "steps"), [(4, 4), (4, 0)])
def test_errors_of_regions_cover_what_probes_miss(probes, steps):
    model, x = convolutions(), gaussian(8, 1, 6, 6)
    found = [
        capalloc.propagate(model, x, solver=Block(steps, num_probes=probes, max_seconds=None, seed=seed))
        for seed in range(8)
    ]
    sums = np.stack([named_parts(f.capacity) for f in found])
    told = np.stack([[*f.attrs[ERRORS].values()] for f in found])
    scores = (sums - sums.mean(0)) / told
    assert (np.abs(scores) <= 2).mean() > 0.9
    assert 0.1 < np.sqrt((scores**2).mean()) < 1.2
    for f in found:
        assert list(f.attrs[ERRORS]) == named_parts(f.capacity)["region"].to_numpy().tolist()
        assert 0 < f.attrs["noise_of_regions"] < f.attrs["noise"]
        inputs = float((f.capacity.standard_error**2).sum()) ** 0.5
        assert sum(e**2 for e in f.attrs[ERRORS].values()) ** 0.5 < 3 * inputs  # of the size of independent errors


def test_regions_are_told_with_their_errors():
    found = capalloc.propagate(convolutions(), gaussian(8, 1, 6, 6), solver=Block(2, num_probes=4))
    table = next(table for table in found.view().tables if table.title == "where capacity lies")
    assert all("±" in row[1] for row in table.rows)
    said = next(fact.more for fact in found.view().facts if fact.value == "estimated")
    assert f"sums of its regions within {found.attrs['missing'] + found.attrs['noise_of_regions']:.2f}" in said


def test_regions_of_a_sequence_are_those_of_its_view():
    """Axes of tokens are named where the result is marked, after its errors are known."""
    layer = seeded_module(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(90, 2)))
    found = capalloc.propagate(layer, gaussian(8, 18, 4), solver=Block(0, num_probes=4))
    assert list(found.attrs[ERRORS]) == ["first third", "middle third", "last third"]
    table = next(table for table in found.view().tables if table.title == "where capacity lies")
    assert [row[0] for row in table.rows] == list(found.attrs[ERRORS])
    assert all("±" in row[1] for row in table.rows)


def test_several_inputs_have_errors():
    model = seeded_module(Difference)
    inputs = {"first": gaussian(12, 2), "second": gaussian(12, 4)}
    found = capalloc.propagate(model, inputs, solver=Block(0, num_probes=4))
    assert list(found.attrs[ERRORS]) == ["first", "second"]
    table = next(table for table in found.view().tables if table.title == "inputs")
    assert all("±" in row[1] for row in table.rows)
