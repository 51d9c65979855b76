"""The rank of all constraints by few passes: the oracle is the dense solver, which forms every one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import capalloc
from capalloc._measure import rank
from capalloc._measure.example_sums import ExampleSums
from capalloc.solvers import Block
from zoo import gaussian, seeded_module


def opened_by_one(hidden: int, inputs: int) -> tuple[nn.Module, torch.Tensor]:
    """Units that one example each opens, the last ones: windows of a few examples do not see enough of them."""
    model = seeded_module(lambda: nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 2)))
    x = gaussian(300, inputs)
    with torch.no_grad():
        model[0].weight[1:] = x[1 - hidden :]  # each unit is near one example
        model[0].bias[1:] = -0.999 * x[1 - hidden :].square().sum(1)
    return model, x


NETWORKS = {
    "open on one example each": lambda: opened_by_one(12, 9),
    "linear": lambda: (seeded_module(lambda: nn.Sequential(nn.Linear(7, 3), nn.Linear(3, 5))), gaussian(60, 7)),
    "two examples": lambda: (
        seeded_module(lambda: nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 6))),
        gaussian(2, 5),
    ),
    "convolution": lambda: (
        seeded_module(lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 3, 3), nn.Flatten())),
        gaussian(40, 1, 9),
    ),
    "gates that move": lambda: (
        seeded_module(lambda: nn.Sequential(nn.Linear(4, 5), nn.Softmax(1), nn.Linear(5, 3))),
        gaussian(50, 4),
    ),
}


def counted(model: nn.Module, x: torch.Tensor) -> capalloc.Allocation:
    return capalloc.propagate(model, x, solver=Block(num_steps=0, num_probes=2))


def test_a_sample_has_the_rank_of_what_is_no_rounding():
    sample = gaussian(12, 4) @ gaussian(4, 9, seed=2) * torch.logspace(-8, 0, 9)
    assert rank.rank_of_sample(torch.cat([sample, 1e-17 * gaussian(12, 3)], 1)) == 4
    assert (
        rank.rank_of_sample(torch.cat([sample, sample[:, :1] * (1 + 5e-14 * gaussian(len(sample), 1))], 1)) == 4
    )  # of derivatives
    assert rank.rank_of_sample(torch.zeros(3, 2, dtype=torch.float64)) == 0


@pytest.mark.proves("4", "total is a rank", oracle="the dense solver")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_total_is_the_rank_of_all_constraints(name):
    model, x = NETWORKS[name]()
    assert counted(model, x).total == pytest.approx(capalloc.measure(model, x).total)


@pytest.mark.parametrize(("name", "later"), [("open on one example each", 2), ("convolution", 0)])
def test_passes_over_all_examples_are_as_many_as_directions_that_windows_miss(monkeypatch, name, later):
    drawn, own = [], ExampleSums.noise

    def noise(self, number, count, *precision):
        drawn.append(count)
        return own(self, number, count, *precision)

    monkeypatch.setattr(ExampleSums, "noise", noise)
    model, x = NETWORKS[name]()
    counted(model, x)
    assert [count for count in drawn if count != 2] == [rank.FIRST] + [rank.LATER] * later


@pytest.mark.parametrize("steps", [0, 24])
def test_units_that_no_sampled_example_opens_have_their_capacity(steps):
    model, x = opened_by_one(30, 9)
    measured = capalloc.measure(model, x)
    found = capalloc.propagate(model, x, solver=Block(num_steps=steps, num_probes=64))
    assert float(found.by_parameter[0]) == pytest.approx(float(measured.by_parameter[0]), rel=0.1)
    assert steps == 0 or capalloc.total_variation(found, measured) < 0.02


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_steps_beyond_the_answer_leave_it_as_it_is(name):
    model, x = NETWORKS[name]()
    solved, beyond = (capalloc.propagate(model, x, solver=Block(num_steps=k, num_probes=4)) for k in (80, 160))
    np.testing.assert_allclose(beyond.capacity, solved.capacity, atol=1e-6)
    assert capalloc.total_variation(beyond, capalloc.measure(model, x)) < 4 * beyond.attrs["noise"]
