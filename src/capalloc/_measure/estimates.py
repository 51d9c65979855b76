"""Estimates: sums over probes, and the standard errors that follow.

A probe z, uniform on the sphere of radius root p in the coordinates A^(1/2) w, gives z'B z with mean trace B: the
capacity of a slot, a part or a tensor, according to B. Its variance is 2 p/(p + 2) (trace B^2 - (trace B)^2 / p), and
two probes give trace B^2 without a bias, as E (z_1'B z_2)^2: k probes have k (k - 1)/2 pairs to tell their error from.

Probes whose solves end early have another mean, that of B_early, at a part of the cost. The mean of many of these, and
that of z'(B - B_early) z over the few probes that are solved to the end, add to trace B (multilevel Monte Carlo). Where
n probes of N are solved to the end, the sum's variance is V(B)/N + V(B - B_early)(1/n - 1/N).

Reference: M. Giles, Multilevel Monte Carlo path simulation, Operations Research 56 (2008) 607-617.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from capalloc._linalg.credibility import credible, students_factor
from capalloc._model.places import Places

#: Least share of trace B^2 that a variance is put at: the difference above is an estimate and may come out negative.
FLOOR = 0.1
#: Shares of the accuracy asked that sampling may use up, at least and at most; the rest is for the solves.
SAMPLING = (0.5, 0.9)
#: Pairs that the bound on a variance counts as, where it stands beside what pairs tell of a single B.
PAIRS_OF_BOUND = 2


class Additive:
    """A dataclass that adds field by field."""

    def __add__(self, other: Self) -> Self:
        """Return the sums."""
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Estimate(Additive):
    """Sums over probes and pairs of probes, for many B at once: plain tensors (b,) and counts."""

    sums: Tensor
    squares: Tensor
    known: Tensor  # the same for the diagonal of B alone, where probes are signs
    drift: Tensor  # what the solves are estimated to have left out, with its sign
    probes: int = 0
    pairs: int = 0

    @classmethod
    def of(cls, inner: Tensor, drift: Tensor, diagonal: Tensor | None = None) -> Estimate:
        """Return the sums of one block of probes from the inner products z_i'B z_j, (b, k, k).

        Args:
            inner: symmetric.
            drift: (b,), summed over probes.
            diagonal: for signs, which know B's diagonal: inner products of z * (B z), (b, k, k).

        """
        k = inner.shape[-1]
        squares = above(inner.square())
        known = torch.zeros_like(squares) if diagonal is None else above(diagonal)
        return cls(inner.diagonal(dim1=1, dim2=2).sum(1), squares, known, drift, k, k * (k - 1) // 2)

    def drawn_together(self, number: int) -> Estimate:
        """Draw each trace B^2 of the first `number`, of inputs or of parts of them, towards what these have in common.

        It is the mean of squares of about normal numbers, one for each pair. Eigenvalues of B are at most 1, so that it
        is at most trace B.
        """
        sizes = self.mean[:number].clamp(min=0)
        drawn = credible(self.squares[:number] / self.pairs, sizes, 2 / self.pairs)
        drawn = torch.where(sizes > 0, drawn.minimum(sizes), drawn)
        return replace(self, squares=torch.cat([drawn * self.pairs, self.squares[number:]]))

    def widened(self) -> Estimate:
        """Widen each trace B^2 as Student's distribution does, where few pairs tell it and nothing bounds it."""
        return replace(self, squares=self.squares * students_factor(self.pairs) ** 2)

    def unsettled(self, missing: float, sizes: Sequence[int]) -> Estimate:
        """Count what all solves miss among the errors of each B, but no more than half of its size for each probe.

        It may all lie in one small tensor, which has then not begun to change.
        """
        most = torch.tensor(sizes, dtype=self.sums.dtype, device=self.sums.device) * (self.probes / 2)
        return replace(self, drift=self.drift.abs() + most.clamp(max=missing))

    @property
    def mean(self) -> Tensor:
        """Estimates of trace B."""
        return self.sums / self.probes

    def variance(self, dimension: float) -> Tensor:
        """Return that of one probe, uniform on a sphere of so many dimensions; infinitely many where none is known."""
        second = self.squares / self.pairs
        inner = torch.maximum(second - self.known / self.pairs - self.mean.square() / dimension, FLOOR * second)
        return inner * (2 / (1 + 2 / dimension))

    def bounded_variance(self, dimension: float) -> Tensor:
        """Return that of one probe where eigenvalues of B are at most 1, so that trace B^2 is at most trace B.

        Few pairs may tell far too little of a single B: the bound counts as some more of them.
        """
        unit, least = 2 / (1 + 2 / dimension), self.known / self.pairs + self.mean.square() / dimension
        most = torch.maximum(self.mean - least, FLOOR * self.mean).clamp(min=0) * unit
        return (self.pairs * self.variance(dimension).minimum(most) + PAIRS_OF_BOUND * most) / (
            self.pairs + PAIRS_OF_BOUND
        )

    def sampling_error(self, dimension: float) -> Tensor:
        """Return the standard error of the mean over probes, were the solves exact."""
        return (self.variance(dimension) / self.probes).sqrt()

    def standard_error(self, dimension: float, bounded: bool = False) -> Tensor:
        """Return that of sampling and solves together."""
        variance = self.bounded_variance(dimension) if bounded else self.variance(dimension)
        return (variance / self.probes + (self.drift / self.probes).square()).sqrt()


def with_early(last: Estimate, early: Estimate, added: Estimate, others: Estimate) -> Estimate:
    """Return the estimate of all probes: the last and early iterates of some, what the last add, and the others' early.

    Its squares are those that make its variance the sum's, as if from the pairs of the first: these alone tell what is
    added. What signs know of B - B_early's diagonal is left out.
    """
    every = early + others
    ratio = every.probes / last.probes

    def by_pair(name: str) -> Tensor:
        own, of_early, of_last = (torch.as_tensor(getattr(one, name) / one.pairs) for one in (every, early, last))
        return own + of_last - of_early

    squares = by_pair("squares").maximum(FLOOR * every.squares / every.pairs)
    squares = squares + (ratio - 1) * added.squares / added.pairs
    mean = every.mean + last.mean - early.mean
    return Estimate(
        mean * every.probes,
        squares * last.pairs,
        by_pair("known").clamp(min=0) * last.pairs,
        last.drift * ratio,
        every.probes,
        last.pairs,
    )


def above(inner: Tensor) -> Tensor:
    """Return the sum over pairs, (b, k, k) to (b,)."""
    return (inner.sum((1, 2)) - inner.diagonal(dim1=1, dim2=2).sum(1)) / 2


@dataclass(frozen=True)
class Estimates(Additive):
    """Estimates of slots, of parts of the inputs, of parameter tensors, and of the total, (1,)."""

    slots: Estimate
    parts: Estimate
    tensors: Estimate
    total: Estimate

    def relative_error(self, dimension: float) -> float:
        """Return the largest relative error of a part that has any capacity."""
        mean = self.parts.mean
        return _largest(self._parts.standard_error(dimension)[mean > 0] / mean[mean > 0])

    def excess(self, dimension: float, rtol: float) -> float:
        """Return how many times the sampling variance allowed that of a part is, at most.

        Allowed is what solves leave of `rtol`, within the shares `SAMPLING`.
        """
        parts, mean = self._parts, self.parts.mean
        sampling, drift = (one[mean > 0] / mean[mean > 0] for one in (parts.sampling_error(dimension), parts.drift))
        least, most = ((share * rtol) ** 2 for share in SAMPLING)
        allowed = (rtol**2 - (drift / parts.probes).square()).clamp(least, most)
        return _largest(sampling.square() / allowed)

    @property
    def _parts(self) -> Estimate:
        return self.parts.drawn_together(len(self.parts.sums))


def _largest(values: Tensor) -> float:
    return float(values.max()) if len(values) else 0.0


@dataclass(frozen=True)
class Levels(Additive):
    """Estimates of early iterates, and of what the last ones of the same probes add to them."""

    early: Estimates
    added: Estimates

    def with_early(self, last: Estimates, others: Estimates) -> Estimates:
        """Return the estimates of these probes and of others that ended early."""
        levels = (last, self.early, self.added, others)
        return Estimates(*(with_early(*(getattr(one, f.name) for one in levels)) for f in fields(Estimates)))


@dataclass(frozen=True)
class Inner:
    """Inner products z_i'B z_j of one block of probes for slots (s, k, k) and parameter tensors (t, k, k)."""

    slots: Tensor
    tensors: Tensor
    diagonal: Tensor | None = None  # of probes that are signs: inner products of z * (B z) by slot
    shares: Tensor | None = None  # by which the two estimates of each tensor are weighed, (t,)

    def by_place(self, places: Places) -> Inner:
        """Return those of places, which may have several slots."""

        def pooled(slots: Tensor) -> Tensor:
            return places.pooled(slots.movedim(0, -1)).movedim(-1, 0)

        return replace(
            self, slots=pooled(self.slots), diagonal=None if self.diagonal is None else pooled(self.diagonal)
        )

    def estimates(self, parts: Tensor) -> Estimates:
        """Return sums, with the parts that `estimated` takes, as of exact solves."""
        return estimated(self, self, 0.0, False, parts)

    def levels(self, early: Inner, parts: Tensor) -> Levels:
        """Return the estimates of early iterates, and of what these ones add."""
        added = Inner(self.slots - early.slots, self.tensors - early.tensors)
        return Levels(early.estimates(parts), added.estimates(parts))


def perturbed(
    w: Tensor,
    u: Tensor,
    eta: Tensor,
    ridge: float,
    by_slot: Tensor,
    sizes: Sequence[int],
    shares: Tensor | None = None,
) -> Inner:
    """Return what solutions w of (G + ridge) w = u = C'xi + sqrt(ridge) eta tell; `by_slot` are inner products of C w.

    For slots each probe is scaled so that w'u = p: on the sphere it has the same mean, and less variance. A tensor t of
    p_t parameters has the capacity E |sqrt(ridge) w - eta|_t^2, and p_t - E ridge |w_t|^2: the two are independent, and
    pairs of probes tell how to weigh them, if no `shares` of the first do.
    """
    inner = (w * u).sum(1)
    scale = torch.where(inner > 0, w.shape[1] / inner, 0).sqrt()
    left = ridge**0.5 * w
    taken = left - eta
    of_taken, of_left = (torch.stack([v @ v.T for v in part.split(sizes, 1)]) for part in (taken, left))
    one, other = above(of_taken.square()), above(of_left.square())
    if shares is None:
        shares = torch.where(one + other > 0, other / (one + other), 1.0)
    all_of = torch.tensor(sizes).to(w)[:, None, None] * torch.eye(len(w)).to(w)
    tensors = torch.lerp(all_of - of_left, of_taken, shares[:, None, None])
    return Inner(by_slot * (scale[:, None] * scale), tensors, shares=shares)


def fitted(xi: Tensor, q: Tensor, pulled: tuple[Tensor, Tensor], sizes: Sequence[int]) -> Inner:
    """Return what regressions tell, from xi + residual and q by slot, (s, k, n), and their C', (k, params).

    Args:
        xi: xi + residual.
        q: fitted values.
        pulled: C' of xi + residual, and of y.
        sizes: number of parameters of every tensor.

    """
    slots, diagonal = xi @ q.mT, xi * q
    pieces = zip(pulled[0].split(sizes, 1), pulled[1].split(sizes, 1), strict=True)
    tensors = torch.stack([one @ other.T for one, other in pieces])
    return Inner((slots + slots.mT) / 2, (tensors + tensors.mT) / 2, diagonal @ diagonal.mT)


def estimated(now: Inner, before: Inner, share: float, correct: bool, parts: Tensor) -> Estimates:
    """Return sums and errors; an earlier iterate tells what the solves leave out.

    Args:
        now: inner products of the last iterate.
        before: those of an earlier one.
        share: what is still missing, relative to what changed between the two.
        correct: add it; in any case it counts as an error.
        parts: the part of every slot, (s,), or -1.

    """
    inside, count = parts >= 0, int(parts.max()) + 1

    def estimate(one: Tensor, earlier: Tensor, diagonal: Tensor | None) -> Estimate:
        drift = share * (one - earlier).diagonal(dim1=1, dim2=2).sum(1)
        found = Estimate.of(one, drift, diagonal)
        return replace(found, sums=found.sums + drift) if correct else found

    def by_part(slots: Tensor) -> Tensor:
        return slots.new_zeros(count, *slots.shape[1:]).index_add_(0, parts[inside], slots[inside])

    def pooled(pool: Callable[[Tensor], Tensor]) -> Estimate:
        diagonal = None if now.diagonal is None else pool(now.diagonal)
        return estimate(pool(now.slots), pool(before.slots), diagonal)

    return Estimates(
        slots=pooled(lambda slots: slots),
        parts=pooled(by_part),
        tensors=estimate(now.tensors, before.tensors, None),
        total=pooled(lambda slots: slots.sum(0, keepdim=True)),
    )
