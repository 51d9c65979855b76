"""Moments of gates and features at unit variance, fast enough to follow a slider.

Activations of a design read Gaussian pre-activations of variance 1 at initial weights, so that two moments,
A = E[phi'^2] and B = E[phi^2], set its energies, and A(rho), B(rho) how its gradients shatter (docs/theory.md, sections
3 and 6).
"""

from __future__ import annotations

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


@dataclass(frozen=True, eq=False)
class HermiteSeries:
    """Powers of an activation and of its gate on normalised Hermite polynomials: E[phi(z) h_n(z)]^2, z a unit Gaussian.

    B(rho) = E[phi(z) phi(z')] = sum_n features_n rho^n, and A(rho) = E[phi'(z) phi'(z')] with gates_n.
    """

    gates: Array
    features: Array

    @classmethod
    def of(cls, activation: str) -> HermiteSeries:
        """The series of an activation, by a name that `gaussian_decoupling` knows, with kinks at 0 alone."""
        phi = resolve(activation)
        z, weight = nodes()
        at = torch.from_numpy(z)
        return cls(powers(slope(phi, at).numpy(), z, weight), powers(phi(at).numpy(), z, weight))

    @property
    def mean_squared_gate(self) -> float:
        """A = E[phi'(z)^2]."""
        return float(self.gates.sum())

    @property
    def mean_square(self) -> float:
        """B = E[phi(z)^2]."""
        return float(self.features.sum())

    def decouplings(self, rates: Array, merged: Sequence[int]) -> Array:
        """d_l of two independent inputs at every block, for rates lambda_l.

        d = 1 - A(rho) / A(1), and rho goes up as in `gradient_correlation`, which takes a quadrature for each block;
        the average over `merged[l]` positions that follows a layer takes it to `averaged` of it.
        """
        rho, found = 0.0, np.empty(len(rates))
        variance_rates = rates * self.mean_square / self.mean_squared_gate  # mu, at which branches bring variance
        for k, share in enumerate(crossing(variance_rates)):
            found[k] = 1 - polyval(rho, self.gates) / self.mean_squared_gate
            rho = averaged((1 - share) * rho + share * self.correlation(rho), merged[k])
        return found.clip(0, 1)

    def correlation(self, rho: float) -> float:
        """The correlation of phi(z) and phi(z'), means included: B(rho) / B(1)."""
        return float(polyval(rho, self.features)) / self.mean_square


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
