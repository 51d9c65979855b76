"""Block conjugate gradients: several systems with one symmetric positive matrix A at once.

*With a preconditioner.* Every iterate is the best in the Krylov space of all right-hand sides: w'u = w'A w grows
towards u'A^-1 u, and what is missing is the squared error in the norm of A. Directions are kept A-conjugate to the last
block and whitened; those that have become dependent are dropped (deflation).

*In the space of rows.* With K = CC', random rows xi are regressed on the columns of C: w = C'y with (K + ridge) y = xi,
fitted values q = K y. Iterates minimise the error of w in the norm of G + ridge, so that

    q'(xi + residual),    residual = xi - (K + ridge) y,

grows towards xi'K(K + ridge)^-1 xi from below, with an error of second order, entry by entry in the mean: what is
missing is K(K + ridge)^-1 times the square of a polynomial in K. No vector is longer than the number of rows.

Index convention: k right-hand sides, blocks are (k, n).
Reference: M. Hestenes, E. Stiefel, Methods of conjugate gradients for solving linear systems, J. Res. Nat. Bur.
Standards 49 (1952) 409-436; D. O'Leary, The block conjugate gradient algorithm, Linear Algebra Appl. 29 (1980) 293-322.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capalloc._linalg.symmetric import eigh

Apply = Callable[[Tensor], Tensor]
#: Squared length below which, relative to the longest, a direction counts as dependent: float64 rounding squared is
#: far below, and directions this short carry no progress.
DEPENDENT = 1e-14
#: Growth of the energy that is rounding, relative to it: nothing is left to find, however few iterations there were.
NOTHING_LEFT = torch.finfo(torch.float64).eps
#: Iterations over which the rate of convergence is read: without a preconditioner it is slow, and steady.
PRECONDITIONED_WINDOW, PLAIN_WINDOW = 3, 6
#: Early iterates that are held, of so many numbers at most: they reach back to a third of the iterations.
HELD_EARLY, EARLY_NUMBERS = 4, 2**22


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

    solution: Tensor  # so far, (k, n)
    residual: Tensor  # (k, n)
    directions: Tensor  # (at most k, n)
    moved: Tensor | None = None  # K times the directions, in the space of rows
    window: int = PRECONDITIONED_WINDOW
    gains: tuple[float, ...] = ()  # growth of the energy in each iteration
    energy: float = 0.0  # sum of w'u, or of q'(xi + residual)
    marks: tuple[Mark, ...] = ()
    early: tuple[Mark, ...] = ()  # after 2, 3, 4, 6, 8, 12 ... iterations, the last few of them

    @property
    def iterations(self) -> int:
        """Number of iterations so far."""
        return len(self.gains)

    @property
    def missing(self) -> float:
        """Estimate of what the energy still grows by: the squared error in the norm of A, summed over solutions."""
        if self.gains and self.gains[-1] <= NOTHING_LEFT * self.energy:
            return max(0.0, self.gains[-1])
        return missing_of(self.gains, self.window)

    def early_mark(self, iterations: int) -> Mark | None:
        """Return the iterate after so many iterations, or the last; for 0, that after a third of them all, if any."""
        if self.iterations <= iterations:
            return Mark(self.solution, self.residual, self.energy, self.iterations)
        fits = (
            m
            for m in self.early
            if m.iterations == iterations or (not iterations and 3 * m.iterations >= self.iterations)
        )
        return next(fits, None)

    def error(self, ridge: float = 0.0) -> float:
        """Return what is missing, relative to the part of the energy that is not the ridge's.

        As w is A-orthogonal to the error, w'(A - ridge) w = w'u - ridge w'w.
        """
        found = self.energy - (ridge * float(self.solution.square().sum()) if ridge else 0.0)
        return self.missing / found if found > 0 else float("inf")

    def along(self, shadow: Tensor, product: Tensor) -> tuple[Iterate, Tensor]:
        """Return the best iterate along the directions P, and their curvature, (k, k).

        Args:
            shadow: M P, where M is the metric that makes A symmetric.
            product: A P.

        """
        curvature, along = shadow @ product.T, shadow @ self.residual.T
        a = torch.linalg.solve(curvature, along)
        gain = float((a * along).sum())
        mark = Mark(self.solution, self.residual, self.energy, self.iterations)
        after = replace(
            self,
            solution=self.solution + a.T @ self.directions,
            residual=self.residual - a.T @ product,
            gains=(*self.gains, gain),
            energy=self.energy + gain,
            marks=marked(self.marks, mark, self.window),
            early=(*self.early, mark)[-HELD_EARLY:] if holds_early(mark) else self.early,
        )
        return after, curvature


def holds_early(mark: Mark) -> bool:
    """Return True after numbers of iterations that are powers of two or three times these, from 2 on."""
    part = mark.iterations // 3 if mark.iterations % 3 == 0 else mark.iterations
    return mark.iterations > 1 and part & (part - 1) == 0 and mark.solution.numel() <= EARLY_NUMBERS


def begin(u: Tensor, precondition: Apply, start: tuple[Tensor, Tensor] | None = None) -> Iterate:
    """Return the iterate at zero, or the best one in the span of known vectors `start` = (v, A v)."""
    w, residual, energy = torch.zeros_like(u), u, 0.0
    if start is not None:
        v, Av = start
        coefficients = torch.linalg.lstsq(v @ Av.T, v @ u.T).solution
        w, residual = coefficients.T @ v, u - coefficients.T @ Av
        energy = float((w * u).sum())
    return Iterate(w, residual, whitened(precondition(residual)), energy=energy)


def step(now: Iterate, product: Apply, precondition: Apply) -> Iterate:
    """Return the next iterate, by one product with A."""
    P = now.directions
    Q = product(P)
    after, curvature = now.along(P, Q)
    Z = precondition(after.residual)
    b = torch.linalg.solve(curvature, Q @ Z.T)
    return replace(after, directions=whitened(Z - b.T @ P))


def begin_fit(xi: Tensor, image: Tensor) -> Iterate:
    """Return the regression of xi at zero, from `image` = K xi."""
    turn = whitening(xi)
    return Iterate(torch.zeros_like(xi), xi, turn @ xi, turn @ image, PLAIN_WINDOW)


def step_fit(now: Iterate, product: Apply, ridge: float) -> Iterate:
    """Return the next iterate of a regression, by one product with K."""
    P, KP = now.directions, now.moved
    assert KP is not None
    Q = KP + ridge * P
    after, curvature = now.along(KP, Q)
    Z = after.residual
    KZ = product(Z)
    b = torch.linalg.solve(curvature, Q @ KZ.T)
    directions = Z - b.T @ P
    turn = whitening(directions)
    return replace(after, directions=turn @ directions, moved=turn @ (KZ - b.T @ KP))


def marked(marks: tuple[Mark, ...], now: Mark, window: int) -> tuple[Mark, ...]:
    """Return the last two marks, `window` iterations apart: the first is at least as old, once there are two."""
    if marks and now.iterations < marks[-1].iterations + window:
        return marks
    return (*marks, now)[-2:]


def missing_of(gains: tuple[float, ...], window: int) -> float:
    """Return what is still to come of a sum of gains.

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
    """Return an orthonormal basis of the span of the rows, dependent ones dropped."""
    return whitening(P) @ P


def whitening(P: Tensor) -> Tensor:
    """Return what turns rows into an orthonormal basis of their span, dependent ones dropped: (at most k, k)."""
    lengths = P.norm(dim=1, keepdim=True)
    lengths = torch.where(lengths > 0, lengths, 1)
    unit = P / lengths
    values, vectors = eigh(unit @ unit.T)
    keep = values > max(DEPENDENT * float(values[-1]), torch.finfo(P.dtype).tiny)
    basis: Tensor = (vectors[:, keep] / values[keep].sqrt()).T / lengths.T
    return basis
