"""Two estimators of capacity from random solves: perturbed ones where rows are many, regressions where they are few.

*Perturb and solve.* With xi, eta standard normal, u = C'xi + sqrt(ridge) eta is N(0, G + ridge), so that the solution w
of (G + ridge) w = u is N(0, (G + ridge)^-1) and kappa_i = E |(C w) restricted to slot i|^2 (docs/theory.md, section 2):
unbiased, up to the error of the solves.

*Regress.* Random signs xi, one for each row, are regressed on the constraints (`_linalg.block_cg`), and kappa_i is the
mean of xi_i q_i over fitted values q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Protocol

from torch import Tensor

from capalloc._linalg.block_cg import Apply, Iterate, Mark, begin, begin_fit, step, step_fit
from capalloc._linalg.inverse_root import InverseRoot
from capalloc._measure.estimates import Estimates, Inner, Levels, estimated, fitted, perturbed
from capalloc._measure.example_sums import ExampleSums
from capalloc._measure.examples import Examples
from capalloc._measure.precondition import Preconditioner, precondition

#: What estimates may be told to change by at most, relative to their last change.
MOST_MISSING = 5.0

Known = tuple[Tensor, Tensor]  # the solutions w at another ridge, and G w


@dataclass(frozen=True)
class Draw:
    """Random vectors that a round of probes starts from: their place, and their image C'xi, (k, params)."""

    number: int
    count: int
    image: Tensor


@dataclass(frozen=True)
class Account:
    """The account of one ridge: its estimates, and how its solves went."""

    estimates: Estimates
    iterations: int
    error: float  # the largest estimated squared relative error of a solve, in the norm of G + ridge
    residual: float  # the largest true residual, relative
    levels: Levels | None = None  # where all probes were read early too
    early_at: int = 0  # iterations that those took
    shares: Tensor | None = None  # of the two estimates of each tensor

    def __add__(self, other: Account) -> Account:
        return replace(
            self,
            estimates=self.estimates + other.estimates,
            iterations=self.iterations + other.iterations,
            error=max(self.error, other.error),
            residual=max(self.residual, other.residual),
            levels=None if self.levels is None or other.levels is None else self.levels + other.levels,
        )

    def with_early(self, others: Estimates) -> Account:
        """Return the account of these probes and of others, read as early as these were."""
        assert self.levels is not None
        return replace(self, estimates=self.levels.with_early(self.estimates, others))


class Estimator(Protocol):
    """One way to draw, to solve, and to read the answer off."""

    @property
    def sums(self) -> ExampleSums:
        """Products with the constraints of all examples."""

    def draw(self, number: int, count: int) -> Draw:
        """Return the random vectors of a round."""

    def begin(self, draw: Draw, ridge: float, known: Known | None) -> Iterate:
        """Return the iterate that a solve begins with."""

    def product(self, v: Tensor) -> Tensor:
        """Return the product with G, or with K = CC'."""

    def step(self, now: Iterate, product: Apply, ridge: float) -> Iterate:
        """Return the next iterate, by one product."""

    def error(self, now: Iterate, ridge: float) -> float:
        """Return the estimated squared error of a solve, relative to the capacity found."""

    def read(
        self, draw: Draw, now: Iterate, ridge: float, parts: Tensor, early_at: int | None
    ) -> tuple[Account, Known | None]:
        """Return what the last iterate tells, and what helps the next solve.

        Also what an early one tells, after so many iterations, or after a third of them for 0.
        """

    def read_early(self, draw: Draw, now: Iterate, ridge: float, parts: Tensor, account: Account) -> Estimates:
        """Return what an early iterate tells, as those of the account did."""


@dataclass(frozen=True)
class Perturbed:
    """Perturb and solve, in the space of parameters."""

    sums: ExampleSums
    sampled: Examples  # for the preconditioner

    @cached_property
    def preconditioner(self) -> Preconditioner:
        """An approximate inverse of G + ridge, at any ridge."""
        return precondition(self.sampled)

    @cached_property
    def root(self) -> Callable[[float], InverseRoot]:
        """Its root at a ridge, of which the last one is kept."""
        return lru_cache(maxsize=1)(self.preconditioner.at)

    def draw(self, number: int, count: int) -> Draw:
        return Draw(number, count, self.sums.noise(number, count))

    def begin(self, draw: Draw, ridge: float, known: Known | None) -> Iterate:
        """Return the best iterate that the last ridge's solutions give."""
        start = None if known is None else (known[0], known[1] + ridge * known[0])
        return begin(self._sides(draw, ridge)[0], self.root(ridge).square, start)

    def product(self, v: Tensor) -> Tensor:
        return self.sums.gram(v)

    def step(self, now: Iterate, product: Apply, ridge: float) -> Iterate:
        return step(now, lambda w: product(w) + ridge * w, self.root(ridge).square)

    def error(self, now: Iterate, ridge: float) -> float:
        return now.error(ridge)

    def read(
        self, draw: Draw, now: Iterate, ridge: float, parts: Tensor, early_at: int | None
    ) -> tuple[Account, Known | None]:
        """Return the account of the solutions w, and w with G w."""
        (u, eta), w, sizes = self._sides(draw, ridge), now.solution, self.sums.examples.sizes
        mark = None if early_at is None else now.early_mark(early_at)
        earlier = now.marks[0].solution if now.marks else w[:0]
        Gw, inner, *others = self.sums.inner(w, earlier, w[:0] if mark is None else mark.solution)
        found = self._told(w, u, eta, ridge, inner)
        before = self._told(earlier, u, eta, ridge, others[0]) if now.marks else found
        estimates = estimated(found, before, still_missing(now, 1), False, parts)
        estimates = replace(
            estimates,
            tensors=estimates.tensors.unsettled(now.missing, sizes),
            total=estimates.total.unsettled(now.missing, (sum(sizes),)),
        )
        whole = account(estimates, now, self.error(now, ridge), u - Gw - ridge * w, u)
        if mark is not None:
            early = self._told(mark.solution, u, eta, ridge, others[1], found.shares)
            whole = replace(whole, levels=found.levels(early, parts), early_at=mark.iterations, shares=found.shares)
        return whole, (w, Gw)

    def read_early(self, draw: Draw, now: Iterate, ridge: float, parts: Tensor, account: Account) -> Estimates:
        """Return what solutions w tell."""
        (u, eta), w = self._sides(draw, ridge), now.solution
        *_, inner = self.sums.inner(w[:0], w)
        return self._told(w, u, eta, ridge, inner, account.shares).estimates(parts)

    def _told(
        self, w: Tensor, u: Tensor, eta: Tensor, ridge: float, by_slot: Tensor, shares: Tensor | None = None
    ) -> Inner:
        examples = self.sums.examples
        found = perturbed(w, u, eta, ridge, by_slot, examples.sizes, shares)
        return found.by_place(examples.operator.problem.places)

    def _sides(self, draw: Draw, ridge: float) -> tuple[Tensor, Tensor]:
        eta = self.sums.examples.normal_params(draw.number, draw.count)
        return draw.image + math.sqrt(ridge) * eta, eta


@dataclass(frozen=True)
class Regressed:
    """Regressions of random signs, in the space of rows."""

    sums: ExampleSums

    def draw(self, number: int, count: int) -> Draw:
        return Draw(number, count, self.sums.pull(self._signs(number, count)))

    def begin(self, draw: Draw, ridge: float, known: Known | None) -> Iterate:
        """Return the iterate at zero."""
        return begin_fit(self._signs(draw.number, draw.count), self.sums.push(draw.image))

    def product(self, v: Tensor) -> Tensor:
        return self.sums.kernel(v)

    def step(self, now: Iterate, product: Apply, ridge: float) -> Iterate:
        return step_fit(now, product, ridge)

    def error(self, now: Iterate, ridge: float) -> float:
        """Return the error; the ridge has no part in the energy."""
        return now.error()

    def read(
        self, draw: Draw, now: Iterate, ridge: float, parts: Tensor, early_at: int | None
    ) -> tuple[Account, Known | None]:
        """Return the account of the fitted values."""
        sums, xi = self.sums, self._signs(draw.number, draw.count)
        mark = None if early_at is None else now.early_mark(early_at)
        back = sums.pull(now.solution)
        residual = xi - sums.push(back) - ridge * now.solution  # the true one
        found = self._told(draw, xi, ridge, now.solution, residual, back)
        before = self._told_of(draw, xi, ridge, now.marks[0]) if now.marks else found
        estimates = estimated(found, before, still_missing(now, 2), True, parts)
        whole = account(estimates, now, self.error(now, ridge), residual, xi)
        if mark is not None:
            levels = found.levels(self._told_of(draw, xi, ridge, mark), parts)
            whole = replace(whole, levels=levels, early_at=mark.iterations)
        return whole, None

    def read_early(self, draw: Draw, now: Iterate, ridge: float, parts: Tensor, account: Account) -> Estimates:
        """Return what fitted values tell."""
        return self._told_of(draw, self._signs(draw.number, draw.count), ridge, now).estimates(parts)

    def _told_of(self, draw: Draw, xi: Tensor, ridge: float, at: Mark | Iterate) -> Inner:
        return self._told(draw, xi, ridge, at.solution, at.residual, self.sums.pull(at.solution))

    def _told(self, draw: Draw, xi: Tensor, ridge: float, y: Tensor, residual: Tensor, back: Tensor) -> Inner:
        examples = self.sums.examples
        q = xi - residual - ridge * y
        both = (draw.image + self.sums.pull(residual), back)
        found = fitted(examples.by_slot(xi + residual), examples.by_slot(q), both, examples.sizes)
        return found.by_place(examples.operator.problem.places)

    def _signs(self, number: int, count: int) -> Tensor:
        return self.sums.examples.signs(number, count)


def account(estimates: Estimates, now: Iterate, error: float, residual: Tensor, right: Tensor) -> Account:
    """Return the account of solves with a right-hand side."""
    return Account(estimates, now.iterations, error, float((residual.norm(dim=1) / right.norm(dim=1)).max()))


def still_missing(now: Iterate, order: int) -> float:
    """Return what estimates will still change by, relative to their change since the first mark.

    Energies miss the square of an error; estimates of order 1 miss the error itself.
    """
    gained = now.energy - now.marks[0].energy if now.marks else 0.0
    if not math.isfinite(now.missing):
        return 1.0
    if gained <= 0:
        return 0.0
    left = math.pow(now.missing / (now.missing + gained), order / 2)
    return min(left / (1 - left), MOST_MISSING)
