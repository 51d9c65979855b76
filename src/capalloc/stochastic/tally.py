"""What the probes add up to, and the standard errors that follow.

A probe z, uniform on the sphere of radius root p in the coordinates A^(1/2) w, gives z'B z with mean trace B: the
capacity of a slot, a part or a tensor, according to B. Its variance is 2 p/(p + 2) (trace B^2 - (trace B)^2 / p), and
two probes give trace B^2 without a bias, as E (z_1'B z_2)^2: k probes have k (k - 1)/2 pairs to tell their error from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Least share of trace B^2 that a variance is put at: the difference above is an estimate and may come out negative.
FLOOR = 0.02


@dataclass(frozen=True)
class Tally:
    """Sums over probes and pairs of probes, for many B at once: plain tensors (b,) and counts."""

    sums: Tensor
    squares: Tensor
    probes: int = 0
    pairs: int = 0

    @classmethod
    def of(cls, inner: Tensor) -> Tally:
        """From the inner products z_i'B z_j of one block of probes, (b, k, k)."""
        k = inner.shape[-1]
        diagonal = inner.diagonal(dim1=1, dim2=2)
        off = (inner.square().sum((1, 2)) - diagonal.square().sum(1)) / 2
        return cls(diagonal.sum(1), off, k, k * (k - 1) // 2)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.sums + other.sums, self.squares + other.squares, self.probes + other.probes, self.pairs + other.pairs
        )

    @property
    def mean(self) -> Tensor:
        """Estimates of trace B."""
        return self.sums / self.probes

    def variance(self, num_params: int) -> Tensor:
        """Of one probe."""
        second = self.squares / self.pairs
        inner = torch.maximum(second - self.mean.square() / num_params, FLOOR * second)
        return inner * (2 * num_params / (num_params + 2))

    def standard_error(self, num_params: int) -> Tensor:
        """Of the mean over probes."""
        return (self.variance(num_params) / self.probes).sqrt()


@dataclass(frozen=True)
class Tallies:
    """Of slots, of parts of the inputs, of parameter tensors, and of the total, (1,)."""

    slots: Tally
    parts: Tally
    tensors: Tally
    total: Tally

    def __add__(self, other: Tallies) -> Tallies:
        return Tallies(
            self.slots + other.slots, self.parts + other.parts, self.tensors + other.tensors, self.total + other.total
        )

    def relative_error(self, num_params: int) -> float:
        """The largest relative standard error of a part that has any capacity."""
        mean, error = self.parts.mean, self.parts.standard_error(num_params)
        used = mean > 0
        return float((error[used] / mean[used]).max()) if bool(used.any()) else 0.0


def tallies(w: Tensor, u: Tensor, Gw: Tensor, by_slot: Tensor, parts: Tensor, sizes: list[int]) -> Tallies:
    """From solutions w of (G + ridge) w = u, (k, params), and the inner products of C w by slot, (s, k, k).

    Each probe is scaled so that w'u = p: on the sphere it has the same mean, and less variance. For a tensor t the
    estimate w_t'(G w)_t is corrected by beta times w_t'u_t - p_t, which has mean zero; beta, the mean capacity of a
    parameter, is the same for all tensors, so that they still sum to the total.

    Args:
        w, u, Gw: (k, params).
        by_slot: (s, k, k).
        parts: the part of every slot, (s,), or -1.
        sizes: number of parameters of every tensor.

    """
    p = w.shape[1]
    scale = (p / (w * u).sum(1)).sqrt()
    both = scale[:, None] * scale
    by_slot = by_slot * both
    total = by_slot.sum(0, keepdim=True)
    beta = float(total.diagonal(dim1=1, dim2=2).mean()) / p
    unit = (w @ u.T) * both
    pieces = zip(w.split(sizes, 1), u.split(sizes, 1), Gw.split(sizes, 1), sizes, strict=True)
    tensors = torch.stack(
        [(wt @ Gt.T) * both - beta * ((wt @ ut.T) * both - unit * (size / p)) for wt, ut, Gt, size in pieces]
    )
    inside = parts >= 0
    count = int(parts.max()) + 1
    summed = by_slot.new_zeros(count, *by_slot.shape[1:]).index_add_(0, parts[inside], by_slot[inside])
    return Tallies(Tally.of(by_slot), Tally.of(summed), Tally.of((tensors + tensors.mT) / 2), Tally.of(total))
