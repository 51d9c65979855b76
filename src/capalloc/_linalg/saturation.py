"""The capacity of blocks of constraints where these are few: no more than their number (docs/theory.md, 4).

Rows C_b of G = C'C hold trace(m (1 + m)^-1), with m = C_b H^+ C_b' and H the sum of all other rows' squares. Where an
approximation A of G does not know these rows themselves, C_b A^+ C_b' = M stands for m but for a scale that all blocks
share; where it does, M = m (1 + m)^-1. Between the two lies a share of the rows that it knows.

Index convention: e examples, s slots; a block is the rows of one example in one slot, probes are k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

#: The logarithm of the scale is sought up to 1 above that where nothing is saturated, 2, 4 ... 64.
FARTHEST = 7
#: Places whose products are made at a time: with those of some probes and rows they stay in the cache.
PLACES = 4096


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
        fewer, of_places = combined < num_rows, rows.flatten(2).split(PLACES, 2)
        sums = torch.cat([_sums(part, across=fewer or combined <= probes) for part in of_places], 1)
        first, square, own = (sums / probes).view(3, *rows.shape[2:])
        square, own = square / probes, own / probes
        chance = first.square() / probes
        if fewer:
            square, chance = square - own, (first.square() - own) / probes
        second = (square - chance) * probes**2 / ((probes - 1) * (probes + 2))
        if fewer:
            second = second * (combined / max(combined - 1, 1))
        return cls(first, second, num_rows)

    def held(self, total: float, known: Tensor) -> Tensor:
        """Return what every slot holds where all hold `total`, (s,); `known` is the share of its rows that A knows.

        The eigenvalues of M are taken as equal, in a number of trace(M)^2 / trace(M^2), and of no block more than rows.
        """
        known = known.double()  # the scale may be beyond the range of float32
        tiny = torch.finfo(torch.float64).tiny
        size = torch.maximum(self.second / self.first.clamp(min=tiny), self.first / self.num_rows)
        whole = float(self.first.sum())
        if not (total > 0 and whole > 0):
            return torch.zeros_like(known)

        def too_much(log: float) -> float:
            return float(self._at(log, known, size).sum()) - total

        least = math.log(total / whole)
        high = next((least + 2.0**k for k in range(FARTHEST) if too_much(least + 2.0**k) > 0), None)
        found = self._at(brentq(too_much, least - 1, high) if high is not None else least + 2.0**FARTHEST, known, size)
        return found * (total / found.sum().clamp(min=tiny))

    def _at(self, log: float, known: Tensor, size: Tensor) -> Tensor:
        one, scale = torch.ones_like(known), math.exp(log)
        return (self.first / torch.addcmul(one, (scale - known).clamp(min=0), size)).sum(0) * scale


def _sums(rows: Tensor, across: bool) -> Tensor:
    """Return a trace, and the squares of all of inner products and of those with oneself, (3, places).

    Products are of rows, (k, rows of a block, places), over the probes where `across`, else of probes over the rows. As
    sums of few terms over many places they take a fifth of the time of as many small matrices.
    """
    terms = rows if across else rows.transpose(0, 1)
    found = rows.new_zeros(3, rows.shape[2], dtype=torch.float64)
    for i in range(terms.shape[1]):
        products = (terms[:, i : i + 1] * terms[:, i:]).sum(0).double()
        own, others = products[0], products[1:].square().sum(0)
        found += torch.stack([own, own.square() + 2 * others, own.square()])
    return found
