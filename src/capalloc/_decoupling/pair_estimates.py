"""Streaming estimates of decoupling, with standard errors (docs/decoupling.md).

Index convention: pairs (pairs, 2); gates (examples, units); folds (folds, pairs). Example n is in fold n mod FOLDS
whatever the batch size, and every sum is in float64, so nothing depends on how the examples are batched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Groups of examples, or of units, that the jackknife leaves out in turn.
FOLDS = 20


@dataclass(frozen=True)
class PairEstimate:
    """A mean decoupling with its standard error, and the decoupling of each pair (NaN where a gate is dead)."""

    mean: float
    error: float
    each: Tensor


def decoupling_of(cross: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """d = 1 - |A_jj'| / sqrt(A_jj A_j'j') (docs/theory.md, section 3); NaN where a gate is never open."""
    size = (first * second).sqrt()
    return torch.where(size > 0, (1 - cross.abs() / size).clamp(0, 1), math.nan)


@dataclass
class UnitPairs:
    """A_jj', A_jj and A_j'j' of chosen pairs of units, fold by fold."""

    pairs: Tensor
    complete: bool  # all the pairs there are, so that no error comes from their choice
    weights: Tensor | None = None  # of the pairs in the mean
    sums: Tensor = field(init=False)  # (3, folds, pairs)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(3, FOLDS, len(self.pairs), dtype=torch.float64)

    def add(self, gates: Tensor, start: int) -> None:
        """Add the gates of examples `start` and on."""
        fold = torch.arange(start, start + len(gates)) % FOLDS
        a = gates[:, self.pairs[:, 0].to(gates.device)].to("cpu", torch.float64)
        b = gates[:, self.pairs[:, 1].to(gates.device)].to("cpu", torch.float64)
        for k, product in enumerate((a * b, a * a, b * b)):
            self.sums[k].index_add_(0, fold, product)

    def estimate(self, examples: int) -> PairEstimate:
        """Estimate the weighted mean over pairs; the error joins a jackknife over examples and the choice of pairs."""
        total = self.sums.sum(1)
        each = decoupling_of(*total)
        weights = torch.ones_like(each) if self.weights is None else self.weights
        weights = torch.where(each.isnan(), 0, weights)
        whole = weights.sum()
        if not whole > 0:
            return PairEstimate(math.nan, math.nan, each)
        mean = (weights * each.nan_to_num()).sum() / whole
        left_out = [decoupling_of(*(total - self.sums[:, f])) for f in range(min(FOLDS, examples))]
        means = [(weights * d.nan_to_num()).sum() / weights[~d.isnan()].sum() for d in left_out]
        choice = 0.0 if self.complete else float((weights * (each - mean).nan_to_num()).norm() / whole)
        return PairEstimate(float(mean), math.hypot(jackknife(means), choice), each)


@dataclass
class ExamplePairs:
    """Gates of chosen units on chosen examples: decoupling of examples is the mean over units instead."""

    examples: Tensor  # numbers, ascending
    units: Tensor
    complete: bool  # all the units there are
    kept: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.kept = torch.zeros(len(self.examples), len(self.units))

    def add(self, gates: Tensor, start: int) -> None:
        """Keep the gates of examples `start` and on."""
        here = (self.examples >= start) & (self.examples < start + len(gates))
        rows = gates[(self.examples[here] - start).to(gates.device)]
        self.kept[here] = rows[:, self.units.to(gates.device)].to("cpu", self.kept.dtype)

    def estimate(self) -> PairEstimate:
        """Estimate the mean over all pairs of the chosen examples; jackknife over them and over groups of units."""
        gates = self.kept.to(torch.float64)
        folds = min(FOLDS, len(self.units))
        grams = torch.stack([gates[:, f::folds] @ gates[:, f::folds].T for f in range(folds)])
        whole = grams.sum(0)
        table = _table(whole)
        each = table[torch.triu(torch.ones_like(table, dtype=torch.bool), 1)]
        if each.isnan().all():
            return PairEstimate(math.nan, math.nan, each)
        mean = each.nanmean()
        known, zeroed = ~table.isnan(), table.nan_to_num()
        # Leaving example n out takes away its row and its column.
        sums = zeroed.sum() - 2 * zeroed.sum(0)
        means = sums / (known.sum() - 2 * known.sum(0))
        over_examples = jackknife([m for m in means if m.isfinite()])
        over_units = 0.0
        if not self.complete:
            over_units = jackknife([_table(whole - gram).nanmean() for gram in grams])
        return PairEstimate(float(mean), math.hypot(over_examples, over_units), each)


@dataclass
class Units:
    """Squares, and small values, of the gates of every unit."""

    small: float | None  # gates below it are saturated; None where gates have no bound
    squares: Tensor | None = None
    saturated: int = 0
    examples: int = 0

    def add(self, gates: Tensor) -> None:
        squares = gates.square().sum(0, dtype=torch.float64)
        self.squares = squares if self.squares is None else self.squares + squares
        self.examples += len(gates)
        if self.small is not None:
            self.saturated += int((gates.abs() <= self.small).sum())

    def summary(self) -> tuple[float, float, float]:
        """Mean squared gate, share of dead units, share of saturated (example, unit) entries."""
        assert self.squares is not None
        entries = self.examples * len(self.squares)
        saturated = math.nan if self.small is None else self.saturated / entries
        return float(self.squares.sum()) / entries, float((self.squares == 0).double().mean()), saturated


def jackknife(means: list[Tensor]) -> float:
    """Standard error from the means with one group left out in turn; NaN with fewer than two."""
    if len(means) < 2:
        return math.nan
    left_out = torch.stack([m.reshape(()) for m in means])
    return float(((len(means) - 1) * left_out.var(correction=0)).sqrt())


def _table(gram: Tensor) -> Tensor:
    """Decoupling of every pair of examples, NaN on the diagonal."""
    own = gram.diagonal()
    table = decoupling_of(gram, own[:, None], own)
    return table.masked_fill(torch.eye(len(table), dtype=torch.bool), math.nan)
