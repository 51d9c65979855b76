"""The capacity of blocks of constraints where these are few: no more than their number (docs/theory.md, 4).

Rows C_b of G = C'C hold trace(m (1 + m)^-1), with m = C_b H^+ C_b' and H the sum of all other rows' squares. Where an
approximation A of G does not know these rows themselves, C_b A^+ C_b' = M stands for m but for a scale that all blocks
share; where it does, M = m (1 + m)^-1. Between the two lies a share of the rows that it knows.

Index convention: e examples, s slots; a block is the rows of one example in one slot, probes are k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Halvings of the logarithm of the scale, from this range: to the rounding of float64.
SCALE_HALVINGS, FARTHEST_LOG = 70, 60.0


@dataclass(frozen=True)
class BlockMoments:
    """The traces of M and of M^2 for every block, (e, s)."""

    first: Tensor
    second: Tensor
    num_rows: int  # of a block

    @classmethod
    def of(cls, rows: Tensor, num_rows: int) -> BlockMoments:
        """Estimate them from C_b A^(-1/2) z of several probes z, (k, rows of a block, e, s), two or more.

        Of k draws with the covariance M, the mean square of the estimated covariance is
        (1 + 1 / k) trace(M^2) + trace(M)^2 / k where they are Gaussian, as sums over many parameters are nearly. Fewer
        rows than `num_rows` are random combinations: their products with one another lack what chance makes of their
        squares. One combination tells nothing of M^2, and rows are then taken as unlike as can be.
        """
        probes, combined = rows.shape[:2]
        of_block = rows.permute(2, 3, 1, 0)  # (e, s, rows, k)
        if combined < num_rows or combined <= probes:
            inner = (of_block @ of_block.mT).double() / probes
        else:
            inner = (of_block.mT @ of_block).double() / probes
        own = inner.diagonal(dim1=-2, dim2=-1)
        first, square = own.sum(-1), inner.square().sum((-2, -1))
        chance = first.square() / probes
        if combined < num_rows:
            squares = own.square().sum(-1)
            square, chance = square - squares, (first.square() - squares) / probes
        second = (square - chance) * probes**2 / ((probes - 1) * (probes + 2))
        if combined < num_rows:
            second = second * (combined / max(combined - 1, 1))
        return cls(first, second, num_rows)

    def held(self, total: float, known: Tensor) -> Tensor:
        """Return what every slot holds where all hold `total`, (s,); `known` is the share of its rows that A knows.

        The eigenvalues of M are taken as equal, in a number of trace(M)^2 / trace(M^2), and of no block more than rows.
        """
        tiny = torch.finfo(torch.float64).tiny
        size = torch.maximum(self.second / self.first.clamp(min=tiny), self.first / self.num_rows)
        low, high = torch.full_like(known, -FARTHEST_LOG), torch.full_like(known, FARTHEST_LOG)
        for _ in range(SCALE_HALVINGS):
            middle = (low + high) / 2
            enough = self._at(middle.exp(), known, size).sum() > total
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        found = self._at(low.exp(), known, size)
        return found * (total / found.sum().clamp(min=tiny))

    def _at(self, scale: Tensor, known: Tensor, size: Tensor) -> Tensor:
        return (scale * self.first / (1 + (scale - known).clamp(min=0) * size)).sum(0)
