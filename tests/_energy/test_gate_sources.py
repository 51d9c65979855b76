"""Mean squared gates on a unit Gaussian: against closed forms, and against integrals that end at the kinks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import capalloc
from capalloc._decoupling.activations import NAMED_ACTIVATIONS
from capalloc._energy.gate_sources import gaussian_mean, squared_gates
from capalloc._operators.calls import slope


def cdf(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def exponential(power: float) -> float:
    """E[exp(power z); z < 0]."""
    return math.exp(power**2 / 2) * cdf(-power)


def ramp(low: float, high: float) -> float:
    """Share of the mass between two kinks."""
    return cdf(high) - cdf(low)


def hardswish() -> float:
    """z + 1/2 between -3 and 3 is (2 z + 3) / 6, whose square has the moments of a cut Gaussian; 1 above."""
    inside = ramp(-3, 3)
    second = inside - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi)
    return (4 * second + 9 * inside) / 36 + cdf(-3)


SCALE, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
CLOSED: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (torch.relu, 0.5),
    "leaky relu": (lambda z: F.leaky_relu(z, 0.2), (1 + 0.04) / 2),
    "elu": (F.elu, 0.5 + exponential(2)),
    "elu, alpha 0.3": (lambda z: F.elu(z, 0.3), 0.5 + 0.09 * exponential(2)),
    "selu": (F.selu, SCALE**2 * (0.5 + ALPHA**2 * exponential(2))),
    "celu": (lambda z: F.celu(z, 0.5), 0.5 + exponential(4)),
    "hardtanh": (F.hardtanh, ramp(-1, 1)),
    "hardtanh, odd": (lambda z: F.hardtanh(z, -0.37, 1.21), ramp(-0.37, 1.21)),
    "relu6": (F.relu6, ramp(0, 6)),
    "hardsigmoid": (F.hardsigmoid, ramp(-3, 3) * float(torch.tensor(1 / 6)) ** 2),  # as torch has it
    "hardswish": (F.hardswish, hardswish()),
    "softshrink": (lambda z: F.softshrink(z, 0.3), 1 - ramp(-0.3, 0.3)),
    "threshold": (lambda z: F.threshold(z, 0.7, 0.0), 1 - cdf(0.7)),
    "sine": (lambda z: torch.sin(3 * z), 4.5 * (1 + math.exp(-18))),
}


@pytest.mark.parametrize("name", CLOSED)
def test_kinks_leave_the_mean_squared_gate_exact(name: str) -> None:
    function, expected = CLOSED[name]
    found = squared_gates(lambda z: slope(function, z), torch.zeros(1), "gaussian")
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMED_ACTIVATIONS)
def test_it_is_the_gate_moment(name: str) -> None:
    activation = NAMED_ACTIVATIONS[name]().double()
    found = squared_gates(lambda z: slope(activation, z), torch.zeros(1), "gaussian")
    assert found == pytest.approx(float(capalloc.gates.gaussian_gate_moment(name, 1.0)), abs=1e-9)


@pytest.mark.parametrize("edge", [0.0, 1 / 3, math.pi])
def test_a_jump_anywhere_is_found(edge: float) -> None:
    assert gaussian_mean(lambda z: (z > edge).double()) == pytest.approx(1 - cdf(edge), abs=1e-13)


def test_unit_gates_are_one() -> None:
    assert squared_gates(torch.relu, torch.zeros(2), "unit") == 1.0
