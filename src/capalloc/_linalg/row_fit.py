"""Ridge regression of random rows on the constraints, by block conjugate gradients in the space of rows.

With K = CC', xi is regressed on the columns of C: w = C'y with (K + ridge) y = xi, fitted values q = K y. Iterates
minimise the error of w in the norm of G + ridge, so that

    q'(xi + residual),    residual = xi - (K + ridge) y,

grows towards xi'K(K + ridge)^-1 xi from below, with an error of second order, entry by entry in the mean: what is
missing is K(K + ridge)^-1 times the square of a polynomial in K. No vector is longer than the number of rows.

Index convention: k regressions, blocks are (k, rows).
Reference: M. Hestenes, E. Stiefel, Methods of conjugate gradients for solving linear systems, J. Res. Nat. Bur.
Standards 49 (1952) 409-436; D. O'Leary, The block conjugate gradient algorithm, Linear Algebra Appl. 29 (1980) 293-322.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._linalg.block_cg import Apply, Mark, marked, missing_of, whitening


@dataclass(frozen=True)
class Fit:
    """Everything that the next iteration needs: plain tensors and numbers."""

    y: Tensor  # coefficients so far, (k, rows)
    residual: Tensor
    directions: Tensor  # (at most k, rows)
    moved: Tensor  # K times the directions
    gains: tuple[float, ...] = ()  # growth of the sum of q'(xi + residual)
    energy: float = 0.0
    marks: tuple[Mark, ...] = ()

    @property
    def iterations(self) -> int:
        """Number of iterations so far."""
        return len(self.gains)

    @property
    def missing(self) -> float:
        """Estimate of what the energy still grows by."""
        return missing_of(self.gains, WINDOW)

    def error(self, ridge: float = 0.0) -> float:
        """What is missing relative to what is found."""
        return self.missing / self.energy if self.energy > 0 else float("inf")


#: Iterations over which the rate of convergence is read: with no preconditioner it is slow, and steady.
WINDOW = 6


def begin_fit(xi: Tensor, product: Apply) -> Fit:
    """From zero; one product with K."""
    turn = whitening(xi)
    return Fit(torch.zeros_like(xi), xi, turn @ xi, turn @ product(xi))


def step_fit(now: Fit, product: Apply, ridge: float) -> Fit:
    """One product with K."""
    P, KP = now.directions, now.moved
    Q = KP + ridge * P
    curvature, along = KP @ Q.T, KP @ now.residual.T
    a = torch.linalg.solve(curvature, along)
    residual = now.residual - a.T @ Q
    KZ = product(residual)
    b = torch.linalg.solve(curvature, Q @ KZ.T)
    directions, moved = residual - b.T @ P, KZ - b.T @ KP
    turn = whitening(directions)
    gain = float((a * along).sum())
    marks = marked(now.marks, Mark(now.y, now.residual, now.energy, now.iterations), WINDOW)
    y, energy = now.y + a.T @ P, now.energy + gain
    return Fit(y, residual, turn @ directions, turn @ moved, (*now.gains, gain), energy, marks)
