"""Gate moments A(rho) = E[phi'(z) phi'(z')] in closed form (docs/theory.md, section 3).

z and z' are centred Gaussians of variance v and correlation rho. One registered function per activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from capalloc._decoupling.activations import Abs, Erf, Sine

Array = NDArray[np.float64]
ClosedForm = Callable[[Any, Array, Array], Array]
CLOSED_FORMS: dict[type[nn.Module], ClosedForm] = {}


def closed_form(*kinds: type[nn.Module]) -> Callable[[ClosedForm], ClosedForm]:
    """Register A(activation, rho, v) for exactly these types of module."""

    def register(function: ClosedForm) -> ClosedForm:
        CLOSED_FORMS.update(dict.fromkeys(kinds, function))
        return function

    return register


@closed_form(nn.Identity)
def linear(_: nn.Identity, rho: Array, variance: Array) -> Array:
    """A = 1."""
    return np.ones(np.broadcast_shapes(rho.shape, variance.shape))


@closed_form(nn.ReLU)
def relu(_: nn.ReLU, rho: Array, variance: Array) -> Array:
    """A = 1/4 + arcsin(rho) / (2 pi)."""
    return two_slopes(0.0, rho, variance)


@closed_form(nn.LeakyReLU)
def leaky_relu(activation: nn.LeakyReLU, rho: Array, variance: Array) -> Array:
    """The negative side has the slope `negative_slope`."""
    return two_slopes(float(activation.negative_slope), rho, variance)


@closed_form(nn.PReLU)
def prelu(activation: nn.PReLU, rho: Array, variance: Array) -> Array:
    """The negative side has the learned slope."""
    return two_slopes(float(activation.weight), rho, variance)


@closed_form(Abs)
def absolute(_: Abs, rho: Array, variance: Array) -> Array:
    """A = (2 / pi) arcsin(rho): slopes -1 and 1."""
    return two_slopes(-1.0, rho, variance)


@closed_form(Erf)
def erf(_: Erf, rho: Array, variance: Array) -> Array:
    """A = (4 / pi) / sqrt((1 + 2v)^2 - 4 v^2 rho^2)."""
    return 4 / np.pi / np.sqrt((1 + 2 * variance) ** 2 - 4 * variance**2 * rho**2)


@closed_form(Sine)
def sine(activation: Sine, rho: Array, variance: Array) -> Array:
    """A = (omega^2 / 2) [exp(-omega^2 v (1 - rho)) + exp(-omega^2 v (1 + rho))]."""
    power = activation.omega**2
    return power / 2 * (np.exp(-power * variance * (1 - rho)) + np.exp(-power * variance * (1 + rho)))


def two_slopes(negative: float, rho: Array, variance: Array) -> Array:
    """A = ((1 + s) / 2)^2 + ((1 - s) / 2)^2 (2 / pi) arcsin(rho), for slopes s below zero and 1 above."""
    mean, jump = (1 + negative) / 2, (1 - negative) / 2
    return np.broadcast_to(
        mean**2 + jump**2 * 2 / np.pi * np.arcsin(rho), np.broadcast_shapes(rho.shape, variance.shape)
    ).copy()
