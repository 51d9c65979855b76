"""The memory study: growth by lag in closed form, against random matrices and autograd, and its training."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.special import eval_legendre, iv
from studies import memory

from study_pages import assert_page_has_places


@pytest.mark.proves("5", "one matrix for all steps", oracle="powers of wide random matrices")
@pytest.mark.parametrize(("shared", "eps"), [(True, 0.1), (True, 0.4), (False, 0.4)])
def test_growth_is_that_of_wide_random_matrices(shared, eps):
    """Of (1 + eps W)^8, entries of variance 1/400: to 5 %."""
    generator = torch.Generator().manual_seed(0)
    g = torch.eye(400, 40, dtype=torch.float64)
    draw = lambda: torch.randn(400, 400, generator=generator).double() / 20  # noqa: E731
    weight = draw()
    for _ in range(8):
        g = g + eps * (weight if shared else draw()) @ g
    assert float(g.square().sum()) / 40 == pytest.approx(memory.growth(8, eps, shared), rel=0.05)


@pytest.mark.proves("5", "one matrix for all steps", oracle="Legendre and Bessel functions")
def test_growth_of_one_matrix_is_a_legendre_polynomial_and_tends_to_a_bessel_function():
    for steps, eps in ((5, 0.3), (20, 0.1)):
        closed = (1 - eps**2) ** steps * eval_legendre(steps, (1 + eps**2) / (1 - eps**2))
        assert memory.growth(steps, eps, shared=True) == pytest.approx(closed, rel=1e-10)
    assert memory.growth(4000, 1.5 / 4000, shared=True) == pytest.approx(iv(0, 3.0), rel=2e-3)
    assert memory.growth(4000, 4000**-0.5, shared=False) == pytest.approx(math.e, rel=2e-3)


@pytest.mark.parametrize("phi", ["linear", "ReLU"])
def test_fresh_matrices_grow_as_the_walk(phi):
    energy, correlation = memory.by_lag(8, 0.3, phi, False, 40, torch.Generator().manual_seed(0))
    assert energy[0] == correlation[0] == pytest.approx(1)
    assert energy[-1] == pytest.approx(1.09**8, rel=0.1)
    assert (correlation[-1] == pytest.approx(1)) == (phi == "linear")


def test_runs_of_a_batch_are_those_of_each_alone_and_of_the_model():
    runs = [(1.0, 0.03, 0), (0.5, 0.1, 1)]
    _, together = memory.fit(4, "SGD", runs, steps=3)
    _, alone = memory.fit(4, "SGD", runs[1:], steps=3)
    for first, second in zip(together, alone, strict=True):
        torch.testing.assert_close(first[1:], second)
    x, _ = memory.task(4, torch.Generator().manual_seed(0))
    model = memory.Network([part[0] for part in alone], 4**-0.5)
    expected = memory.outputs([part.double() for part in alone], x.double(), torch.tensor([[[4**-0.5]]]).double())
    torch.testing.assert_close(model(x.double())[:, 0], expected[0])


def test_the_task_is_an_exclusive_or_of_two_steps():
    x, equal = memory.task(8, torch.Generator().manual_seed(0))
    assert ((x[:, 0, 0] * x[:, 4, 1] > 0) == equal.bool()).all()
    right, _ = memory.fit(4, "Adam", [(1.0, 0.01, 0)], steps=150)
    assert right[0] > 0.95


def test_the_page_has_a_place_for_every_table():
    study = memory.run(quick=True)
    assert_page_has_places(study)
    assert all(len({line.count("|") for line in text.splitlines()}) == 1 for text in study.tables.values())


def test_shares_of_the_past_are_of_all_inputs():
    shares = [float(cell.rstrip(" %")) for cell in memory.past(memory.Network(memory.initial(0), 0.1), 8)]
    assert sum(shares[:4]) == pytest.approx(100, abs=0.3)


def test_gradients_by_lag_are_those_of_autograd():
    """One network, without noise of the estimate: the recursion is the derivative of the last state."""
    small = replace(memory.QUICK, draws=1)
    energy, _ = memory.by_lag(3, 0.5, "linear", True, small.draws, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, 64, 64, generator=generator).double()[0] / 8
    for _ in range(4):
        torch.randn(2, 64, generator=generator)
    g = torch.randn(64, generator=generator).double()
    step = torch.eye(64, dtype=torch.float64) + 0.5 * weight
    carried = torch.linalg.matrix_power(step, 3) @ (g / g.norm())
    assert energy[3] == pytest.approx(float(carried.square().sum()), rel=1e-9)
