"""Moments of activations and of their slopes in closed form (docs/theory.md, sections 3 and 6).

z and z' are centred Gaussians of variance v and correlation rho.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from capalloc._decoupling.activations import Abs, Erf, Sine
from capalloc._linalg.aliases import Array

Moment = Callable[[Any, Array, Any], Array]  # of an activation, rho and v


@dataclass(frozen=True)
class GaussianMoments:
    """Gate moments A(rho) = E[phi'(z) phi'(z')] and feature moments B(rho) = E[phi(z) phi(z')] of an activation."""

    gates: Moment
    features: Moment


def two_slopes(negative: Callable[[Any], float]) -> GaussianMoments:
    """phi = m z + j |z| with slopes s below zero and 1 above, m = (1 + s) / 2 and j = (1 - s) / 2.

    A = m^2 + j^2 (2 / pi) arcsin(rho) and B = v [m^2 rho + j^2 (2 / pi) (sqrt(1 - rho^2) + rho arcsin rho)]: cross
    terms vanish by symmetry. For ReLU A = 1/4 + arcsin(rho) / (2 pi), and B is the arc-cosine kernel of order 1.
    """

    def parts(activation: Any) -> tuple[float, float]:
        s = float(negative(activation))
        return ((1 + s) / 2) ** 2, ((1 - s) / 2) ** 2 * 2 / np.pi

    def gates(activation: Any, rho: Array, variance: Any) -> Array:
        mean, jump = parts(activation)
        return np.broadcast_to(mean + jump * np.arcsin(rho), np.broadcast_shapes(rho.shape, np.shape(variance))).copy()

    def features(activation: Any, rho: Array, variance: Any) -> Array:
        mean, jump = parts(activation)
        moment: Array = variance * (mean * rho + jump * (np.sqrt((1 - rho) * (1 + rho)) + rho * np.arcsin(rho)))
        return moment

    return GaussianMoments(gates, features)


def _sine(activation: Sine, rho: Array, variance: Any) -> tuple[Array, Array]:
    """exp(-omega^2 v (1 - rho)) and exp(-omega^2 v (1 + rho)), which do not overflow for large omega."""
    power = activation.omega**2 * variance
    return np.exp(-power * (1 - rho)), np.exp(-power * (1 + rho))


#: By exact type of module. B of erf: C. Williams, Computing with infinite networks, NIPS 1996.
CLOSED_FORMS: dict[type[nn.Module], GaussianMoments] = {
    nn.Identity: GaussianMoments(lambda _, rho, v: np.ones_like(rho * v), lambda _, rho, v: v * rho),
    nn.ReLU: two_slopes(lambda _: 0.0),
    nn.LeakyReLU: two_slopes(lambda activation: activation.negative_slope),
    nn.PReLU: two_slopes(lambda activation: activation.weight),
    Abs: two_slopes(lambda _: -1.0),
    Erf: GaussianMoments(
        lambda _, rho, v: 4 / np.pi / np.sqrt((1 + 2 * v) ** 2 - 4 * v**2 * rho**2),
        lambda _, rho, v: 2 / np.pi * np.arcsin(2 * v * rho / (1 + 2 * v)),
    ),
    Sine: GaussianMoments(
        lambda activation, rho, v: activation.omega**2 / 2 * sum(_sine(activation, rho, v)),
        lambda activation, rho, v: np.subtract(*_sine(activation, rho, v)) / 2,
    ),
}
