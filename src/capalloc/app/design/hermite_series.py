"""Moments of gates and features at unit variance, fast enough to follow a slider.

Activations of a design read Gaussian pre-activations of variance 1 at initial weights, so that two moments,
A = E[phi'^2] and B = E[phi^2], set its energies, and A(rho), B(rho) how its gradients shatter (docs/theory.md, sections
3 and 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.polynomial.polynomial import polyval

from capalloc._decoupling.activations import resolve
from capalloc._depth.shattering_law import crossing
from capalloc._linalg.aliases import Array
from capalloc._operators.calls import slope

#: Terms of a Hermite series; what is left out counts as one more term.
HERMITE_TERMS: Final = 96
#: Gauss-Legendre panels between -9 and 9, even, so that the kinks of ReLU and its relatives, at 0, lie between two.
PANELS, PANEL_NODES, REACH = 24, 16, 9.0
#: Gauss-Hermite nodes for what several pre-activations share.
COMMON_NODES: Final = 40


@dataclass(frozen=True, eq=False)
class HermiteSeries:
    """Powers of an activation and of its gate on normalised Hermite polynomials: E[phi(z) h_n(z)]^2, z a unit Gaussian.

    B(rho) = E[phi(z) phi(z')] = sum_n features_n rho^n, and A(rho) = E[phi'(z) phi'(z')] with gates_n.
    """

    activation: str
    gates: Array
    features: Array

    @classmethod
    def of(cls, activation: str) -> HermiteSeries:
        """The series of an activation, by a name that `gaussian_decoupling` knows, with kinks at 0 alone."""
        phi = resolve(activation)
        z, weight = nodes()
        at = torch.from_numpy(z)
        return cls(activation, *(powers(values.numpy(), z, weight) for values in (slope(phi, at), phi(at))))

    @property
    def mean_squared_gate(self) -> float:
        """A = E[phi'(z)^2]."""
        return float(self.gates.sum())

    @property
    def mean_square(self) -> float:
        """B = E[phi(z)^2]."""
        return float(self.features.sum())

    def decouplings(self, rates: Array, averages: Sequence[int], maxima: Sequence[int]) -> Array:
        """d_l of two independent inputs at every block, for rates lambda_l.

        d = 1 - A(rho) / A(1), and rho goes up as in `gradient_correlation`, which takes a quadrature for each block;
        the average over `averages[l]` positions that follows a layer takes it to `averaged` of it. A layer that reads
        the largest of `maxima[l]` activations has no skip, and the gates of `largest`.
        """
        rho, found = 0.0, np.empty(len(rates))
        variance_rates = rates * self.mean_square / self.mean_squared_gate  # mu, at which branches bring variance
        for k, share in enumerate(crossing(variance_rates)):
            if maxima[k] > 1:
                largest = self.largest(rho, maxima[k])
                found[k], rho = largest.decoupling, largest.correlation
                continue
            found[k] = 1 - polyval(rho, self.gates) / self.mean_squared_gate
            rho = averaged((1 - share) * rho + share * self.correlation(rho), averages[k])
        return found.clip(0, 1)

    def correlation(self, rho: float) -> float:
        """The correlation of phi(z) and phi(z'), means included: B(rho) / B(1)."""
        return float(polyval(rho, self.features)) / self.mean_square

    def largest(self, rho: float, number: int) -> Largest:
        """The largest of phi(z_1) .. phi(z_number), any two z of which correlate by rho, also those of two inputs.

        z_i = sqrt(rho) c + sqrt(1 - rho) y_i: given c, which all share, places and inputs are independent, and two
        inputs have the same winner once in `number` times.
        """
        phi = resolve(self.activation)
        y, weight = nodes()
        c, outer = np.polynomial.hermite_e.hermegauss(COMMON_NODES)
        at = torch.from_numpy(math.sqrt(rho) * c[:, None] + math.sqrt(1 - rho) * y)
        values, gates = phi(at).numpy(), slope(phi, at).numpy()
        order = np.argsort(values, axis=1, kind="stable")
        values, gates, here = (np.take_along_axis(a, order, 1) for a in (values, gates, np.tile(weight, (len(c), 1))))
        below = np.cumsum(here, axis=1) - here / 2
        wins = number * here * below ** (number - 1)
        wins /= wins.sum(1, keepdims=True)
        outer = outer / outer.sum()
        square, gate_square = (float(outer @ (wins * a**2).sum(1)) for a in (values, gates))
        cross, gate_cross = (float(outer @ (wins * a).sum(1) ** 2) for a in (values, gates))
        return Largest(square, cross / square, 1 - gate_cross / gate_square / number)


@dataclass(frozen=True)
class Largest:
    """Moments of the largest of several activations, and of the gate that lets the one that won through."""

    mean_square: float
    correlation: float  # of two places, or inputs, means included
    decoupling: float  # of the gates at two inputs, 1 - A(rho) / A(1)


def averaged(rho: float, number: int) -> float:
    """Correlation of the means of `number` values each, of variance 1, any two of which correlate by rho.

    White inputs give all pairs of positions, of one example or of two, one correlation at every depth.
    """
    return number * rho / (1 + (number - 1) * rho)


def nodes() -> tuple[Array, Array]:
    """Points z and weights of a quadrature over the unit Gaussian."""
    x, weight = np.polynomial.legendre.leggauss(PANEL_NODES)
    half = REACH / PANELS
    middles = np.arange(1 - PANELS, PANELS, 2) * half
    z = (middles[:, None] + half * x).ravel()
    return z, np.tile(half * weight, PANELS) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def powers(values: Array, z: Array, weight: Array) -> Array:
    """E[f(z) h_n(z)]^2 for n below `HERMITE_TERMS`, and the rest of E[f(z)^2]: coefficients of a power series."""
    below, here = np.zeros_like(z), np.ones_like(z)
    found: Array = np.zeros(HERMITE_TERMS + 1)
    for n in range(HERMITE_TERMS):
        found[n] = (weight * values) @ here
        below, here = here, (z * here - np.sqrt(n) * below) / np.sqrt(n + 1)
    np.square(found, out=found)
    found[HERMITE_TERMS] = max(weight @ values**2 - found.sum(), 0.0)
    return found
