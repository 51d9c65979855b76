"""Block conjugate gradients with a preconditioner: several systems with one symmetric positive matrix A at once.

Every iterate is the best in the Krylov space of all right-hand sides: w'u = w'A w grows towards u'A^-1 u, and what
is missing is the squared error in the norm of A. Directions are kept A-conjugate to the last block and whitened;
those that have become dependent are dropped (deflation).

Index convention: k right-hand sides, blocks are (k, n).
Reference: D. O'Leary, The block conjugate gradient algorithm, Linear Algebra Appl. 29 (1980) 293-322.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Apply = Callable[[Tensor], Tensor]
#: Squared length below which, relative to the longest, a direction counts as dependent: float64 rounding squared is
#: far below, and directions this short carry no progress.
DEPENDENT = 1e-14
#: Iterations over which the rate of convergence is read.
WINDOW = 3


@dataclass(frozen=True)
class Mark:
    """An earlier iterate, to tell from it how far the last one has still to go."""

    solution: Tensor
    residual: Tensor
    energy: float
    iterations: int


@dataclass(frozen=True)
class Iterate:
    """Everything that the next iteration needs: plain tensors and numbers."""

    w: Tensor  # solutions so far, (k, n)
    residual: Tensor  # u - A w, (k, n)
    directions: Tensor  # (at most k, n)
    gains: tuple[float, ...] = ()  # growth of the sum of w'u in each iteration
    energy: float = 0.0  # sum of w'u
    marks: tuple[Mark, ...] = ()

    @property
    def iterations(self) -> int:
        """Number of iterations so far."""
        return len(self.gains)

    @property
    def missing(self) -> float:
        """Estimate of the squared error in the norm of A, summed over solutions."""
        return missing_of(self.gains, WINDOW)

    def error(self, ridge: float = 0.0) -> float:
        """What is missing relative to w'(A - ridge) w, the part of the energy that is not the ridge's.

        As w is A-orthogonal to the error, that is w'u - ridge w'w.
        """
        found = self.energy - ridge * float(self.w.square().sum())
        return self.missing / found if found > 0 else float("inf")


def begin(u: Tensor, precondition: Apply, start: tuple[Tensor, Tensor] | None = None) -> Iterate:
    """From zero, or from the best solution in the span of known vectors `start` = (v, A v)."""
    w, residual, energy = torch.zeros_like(u), u, 0.0
    if start is not None:
        v, Av = start
        coefficients = torch.linalg.lstsq(v @ Av.T, v @ u.T).solution
        w, residual = coefficients.T @ v, u - coefficients.T @ Av
        energy = float((w * u).sum())
    return Iterate(w, residual, whitened(precondition(residual)), (), energy)


def step(now: Iterate, product: Apply, precondition: Apply) -> Iterate:
    """One product with A."""
    P = now.directions
    Q = product(P)
    curvature, along = P @ Q.T, P @ now.residual.T
    a = torch.linalg.solve(curvature, along)
    gain = float((a * along).sum())
    residual = now.residual - a.T @ Q
    Z = precondition(residual)
    b = torch.linalg.solve(curvature, Q @ Z.T)
    directions = whitened(Z - b.T @ P)
    marks = marked(now.marks, Mark(now.w, now.residual, now.energy, now.iterations), WINDOW)
    return Iterate(now.w + a.T @ P, residual, directions, (*now.gains, gain), now.energy + gain, marks)


def marked(marks: tuple[Mark, ...], now: Mark, window: int) -> tuple[Mark, ...]:
    """The last two marks, `window` iterations apart: the first is at least as old, once there are two."""
    if marks and now.iterations < marks[-1].iterations + window:
        return marks
    return (*marks, now)[-2:]


def missing_of(gains: tuple[float, ...], window: int) -> float:
    """What is still to come of a sum of gains.

    A geometric series, at a rate half as far from 1 as that of the last `window` gains: convergence slows down as what
    is easy has been found.
    """
    if len(gains) <= window:
        return float("inf")
    first, last = gains[-1 - window], gains[-1]
    if last <= 0:
        return 0.0
    rate = min((last / first) ** (1 / window), 0.98) if first > 0 else 0.98
    slower = (1 + rate) / 2
    return last * slower / (1 - slower)


def whitened(P: Tensor) -> Tensor:
    """An orthonormal basis of the span of the rows, dependent ones dropped."""
    return whitening(P) @ P


def whitening(P: Tensor) -> Tensor:
    """What turns rows into an orthonormal basis of their span, dependent ones dropped: (at most k, k)."""
    lengths = P.norm(dim=1, keepdim=True)
    lengths = torch.where(lengths > 0, lengths, 1)
    unit = P / lengths
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    keep = values > max(DEPENDENT * float(values[-1]), torch.finfo(P.dtype).tiny)
    basis: Tensor = (vectors[:, keep] / values[keep].sqrt()).T / lengths.T
    return basis
