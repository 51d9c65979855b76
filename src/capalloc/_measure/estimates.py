"""Estimates: sums over probes, and the standard errors that follow.

A probe z, uniform on the sphere of radius root p in the coordinates A^(1/2) w, gives z'B z with mean trace B: the
capacity of a slot, a part or a tensor, according to B. Its variance is 2 p/(p + 2) (trace B^2 - (trace B)^2 / p), and
two probes give trace B^2 without a bias, as E (z_1'B z_2)^2: k probes have k (k - 1)/2 pairs to tell their error from.
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

    def relative_error(self, dimension: float, sampling: bool = False) -> float:
        """Return the largest relative error of a part that has any capacity; of sampling alone if so asked."""
        parts, mean = self.parts.drawn_together(len(self.parts.sums)), self.parts.mean
        error = parts.sampling_error(dimension) if sampling else parts.standard_error(dimension)
        used = mean > 0
        return float((error[used] / mean[used]).max()) if bool(used.any()) else 0.0


@dataclass(frozen=True)
class Inner:
    """Inner products z_i'B z_j of one block of probes for slots (s, k, k) and parameter tensors (t, k, k)."""

    slots: Tensor
    tensors: Tensor
    diagonal: Tensor | None = None  # of probes that are signs: inner products of z * (B z) by slot

    def by_place(self, places: Places) -> Inner:
        """Return those of places, which may have several slots."""

        def pooled(slots: Tensor) -> Tensor:
            return places.pooled(slots.movedim(0, -1)).movedim(-1, 0)

        return Inner(pooled(self.slots), self.tensors, None if self.diagonal is None else pooled(self.diagonal))


def perturbed(w: Tensor, u: Tensor, eta: Tensor, ridge: float, by_slot: Tensor, sizes: Sequence[int]) -> Inner:
    """Return what solutions w of (G + ridge) w = u = C'xi + sqrt(ridge) eta tell; `by_slot` are inner products of C w.

    For slots each probe is scaled so that w'u = p: on the sphere it has the same mean, and less variance. A tensor t of
    p_t parameters has the capacity E |sqrt(ridge) w - eta|_t^2, and p_t - E ridge |w_t|^2: the two are independent, and
    pairs of probes tell how to weigh them.
    """
    inner = (w * u).sum(1)
    scale = torch.where(inner > 0, w.shape[1] / inner, 0).sqrt()
    left = ridge**0.5 * w
    taken = left - eta
    pieces = zip(taken.split(sizes, 1), left.split(sizes, 1), sizes, strict=True)
    tensors = torch.stack([weighed(one @ one.T, other @ other.T, size) for one, other, size in pieces])
    return Inner(by_slot * (scale[:, None] * scale), tensors)


def weighed(taken: Tensor, left: Tensor, size: int) -> Tensor:
    """Return the inner products (k, k) of one tensor, from those of the parts of a probe that are taken up and left."""
    one, other = (float(above(t.square()[None])) for t in (taken, left))
    share = other / (one + other) if one + other > 0 else 1.0
    free = size * torch.eye(len(taken), dtype=taken.dtype, device=taken.device) - left
    return share * taken + (1 - share) * free


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
