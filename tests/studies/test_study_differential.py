"""Differential layers: spreads in closed form, by brute force, by the library's walk and of random networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from studies import differential

import capalloc
from study_pages import assert_page_has_places


def by_powers(eps: float, depth: int) -> float:
    """Spread of the squared coefficients of (1 + eps (z - 1/z) / sqrt(2))^depth, multiplied out."""
    block = np.array([-eps / math.sqrt(2), 1.0, eps / math.sqrt(2)])
    law = np.ones(1)
    for _ in range(depth):
        law = np.convolve(law, block)
    at = np.arange(len(law)) - depth
    return math.sqrt((law**2 * at**2).sum() / (law**2).sum())


@pytest.mark.proves("5", "the same operator in every block", oracle="polynomials multiplied out")
@pytest.mark.parametrize(("eps", "depth"), [(1.0, 7), (0.3, 12), (0.01, 5)])
def test_coherent_spread_is_that_of_the_power(eps, depth):
    assert differential.coherent(eps, depth) == pytest.approx(by_powers(eps, depth), rel=1e-12)
    operator = differential.OPERATORS["∂, the same in all"]
    generator = torch.Generator().manual_seed(0)
    found, _ = differential.observed(operator, "linear", eps, depth, 1, generator)
    assert found == pytest.approx(by_powers(eps, depth), rel=1e-9)


def test_coherent_operators_keep_their_spread_at_an_exponent_of_one():
    """1/L is the scale of transport, eps = c/L moves by c sqrt(2) at most; at 1/sqrt(L) the spread grows as sqrt(L)."""
    slope = lambda a: math.log(differential.coherent(1024**-a, 1024) / differential.coherent(512**-a, 512), 2)  # noqa: E731
    assert [slope(a) for a in (0.5, 0.75, 1.0, 1.25)] == pytest.approx([0.5, 0.25, 0.0, -0.25], abs=0.02)
    assert differential.coherent(1 / 1024, 1024) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.proves("5", "spread of differential layers", oracle="the law of the walk on the captured graph")
@pytest.mark.parametrize("eps", [1.0, 0.2])
def test_the_walk_of_equal_magnitudes_has_the_closed_form(eps):
    """Exactly, where all weights have one magnitude and there are no gates: the walk sees no more than rates."""
    field = capalloc.receptive_field(Linear(5, eps), torch.randn(2, 4, 33).double(), output_position=(16,))
    assert field.axes["column"].deviation == pytest.approx(differential.walked(2 / 3, eps**2, 5), rel=1e-9)


class Linear(differential.Stack):
    """The stack without ReLU, all weights of magnitude 1 / sqrt(12)."""

    def __init__(self, depth: int, eps: float) -> None:
        super().__init__(depth, eps)
        self.double().eval()
        for block in self.blocks:
            block.weight.data = block.weight.data.sign() / math.sqrt(12)

    def forward(self, h):
        for block in self.blocks:
            h = h + self.eps * block(h)
        return h


@pytest.mark.parametrize("phi", ["linear", "ReLU"])
def test_random_networks_spread_as_the_walk(phi):
    """Over 40 networks of 16 channels, to 10 %."""
    operator = differential.OPERATORS["random kernels"]
    found, alike = differential.observed(operator, phi, 0.5, 8, 40, torch.Generator().manual_seed(0))
    assert found == pytest.approx(differential.walked(2 / 3, 0.25, 8), rel=0.1)
    assert alike == pytest.approx(1.0) if phi == "linear" else 0.3 < alike < 0.7


@pytest.mark.proves("5", "capacity of small blocks", oracle="one even step over the kernel")
def test_capacity_takes_a_step_of_its_own():
    """However small the blocks: a parameter counts where it is used, and stays within its kernel."""
    walk, capacity = differential.capacity_spreads(2, 1e-4, seed=0)
    assert walk < 1e-3
    assert capacity == pytest.approx(differential.capacity_spread(2 / 3, 1e-8, 2), rel=1e-6)


def test_operators_have_unit_gain_and_their_step():
    generator = torch.Generator().manual_seed(0)
    for operator in differential.OPERATORS.values():
        kernels = torch.stack(operator.draw(400 if operator.fresh else 2, generator))
        energies = kernels.square().sum(2).mean((0, 1))  # of an output channel, by offset
        assert float(energies.sum()) == pytest.approx(1, rel=0.05)
        assert float(energies @ torch.tensor([1.0, 0.0, 1.0]).double()) == pytest.approx(
            operator.step_variance, rel=0.05
        )


def test_the_page_has_a_place_for_every_table():
    study = differential.run(quick=True)
    assert_page_has_places(study)
    assert all(len({line.count("|") for line in text.splitlines()}) == 1 for text in study.tables.values())
