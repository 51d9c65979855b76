"""Feature moments B(rho) = E[phi(z) phi(z')] of Gaussian pre-activations: closed forms, and quadrature for the rest.

z and z' are centred Gaussians of variance v and correlation rho. The kernel map k(rho) = B(rho) / B(1) is the
correlation that a random layer of infinite width gives to what follows it (docs/theory.md, section 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from capalloc._decoupling import quadrature
from capalloc._decoupling.activations import Abs, Activation, Erf, Sine

Array = NDArray[np.float64]
FeatureMoment = Callable[[Any, Array, float], Array]
FEATURE_MOMENTS: dict[type[nn.Module], FeatureMoment] = {}


def closed_form(*kinds: type[nn.Module]) -> Callable[[FeatureMoment], FeatureMoment]:
    """Register B(activation, rho, v) for exactly these types of module."""

    def register(function: FeatureMoment) -> FeatureMoment:
        FEATURE_MOMENTS.update(dict.fromkeys(kinds, function))
        return function

    return register


def feature_moment(activation: Activation, rho: Array, variance: float, kinks: Sequence[float]) -> Array:
    """B(rho) = E[phi(z) phi(z')], in closed form where one is registered.

    Args:
        activation: phi, elementwise on float64 tensors.
        rho: correlations in [-1, 1], shape (pairs,).
        variance: v of both pre-activations.
        kinks: points where phi' or phi'' jumps; not used by closed forms.

    """
    closed = FEATURE_MOMENTS.get(type(activation)) if isinstance(activation, nn.Module) else None
    if closed is not None:
        return closed(activation, rho, variance)
    distinct, back = np.unique(rho, return_inverse=True)
    values: Array = quadrature.moment(activation, torch.from_numpy(distinct), math.sqrt(variance), kinks).numpy()
    return values[back]


@closed_form(nn.Identity)
def linear(_: nn.Identity, rho: Array, variance: float) -> Array:
    """B = v rho."""
    return variance * rho


@closed_form(nn.ReLU)
def relu(_: nn.ReLU, rho: Array, variance: float) -> Array:
    """B = (v / 2 pi) [sqrt(1 - rho^2) + rho (pi - arccos rho)], the arc-cosine kernel of order 1."""
    return two_slopes(0.0, rho, variance)


@closed_form(nn.LeakyReLU)
def leaky_relu(activation: nn.LeakyReLU, rho: Array, variance: float) -> Array:
    """The negative side has the slope `negative_slope`."""
    return two_slopes(float(activation.negative_slope), rho, variance)


@closed_form(nn.PReLU)
def prelu(activation: nn.PReLU, rho: Array, variance: float) -> Array:
    """The negative side has the learned slope."""
    return two_slopes(float(activation.weight), rho, variance)


@closed_form(Abs)
def absolute(_: Abs, rho: Array, variance: float) -> Array:
    """B = (2 v / pi) [sqrt(1 - rho^2) + rho arcsin rho]."""
    return two_slopes(-1.0, rho, variance)


@closed_form(Erf)
def erf(_: Erf, rho: Array, variance: float) -> Array:
    """B = (2 / pi) arcsin(2 v rho / (1 + 2 v)); C. Williams, Computing with infinite networks, NIPS 1996."""
    return 2 / np.pi * np.arcsin(2 * variance * rho / (1 + 2 * variance))


@closed_form(Sine)
def sine(activation: Sine, rho: Array, variance: float) -> Array:
    """B = exp(-omega^2 v) sinh(omega^2 v rho), written so that large omega does not overflow."""
    power = activation.omega**2 * variance
    return (np.exp(-power * (1 - rho)) - np.exp(-power * (1 + rho))) / 2


def two_slopes(negative: float, rho: Array, variance: float) -> Array:
    """phi = m z + j |z| with m = (1 + s) / 2 and j = (1 - s) / 2, whose cross terms vanish by symmetry."""
    mean, jump = (1 + negative) / 2, (1 - negative) / 2
    both = 2 / np.pi * (np.sqrt((1 - rho) * (1 + rho)) + rho * np.arcsin(rho))  # E|z||z'| / v
    return variance * (mean**2 * rho + jump**2 * both)
