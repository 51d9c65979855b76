"""Moments of the inputs that a metric is made of, in float64 over all examples, and the inputs that never vary.

Index convention: examples (examples, *inputs), an iterable of batches of them gone through as often as needed; moments
have the inputs' own shape. Every rank goes through all examples, so that all know the same moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capalloc._linalg.covariance import root_of_covariance
from capalloc._linalg.data_moments import DataMoments, shrinkage_weight
from capalloc._model.given_examples import check_batch, iterate_batches
from capalloc._model.places import Places

#: Inputs up to which a covariance of the data is made: a matrix with a row for each, and its eigenvectors.
MOST_CORRELATED = 8192
#: Inputs that never vary that a note names one by one.
NAMED = 5


@dataclass(frozen=True)
class InputMoments:
    """Number of examples, and mean and variance of each input over them (divided by their number)."""

    count: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, inputs: Tensor | Iterable[Any]) -> InputMoments:
        """Go through the examples twice; an input that never varies has a variance of exactly zero."""
        count, origin, total = 0, torch.empty(0), torch.empty(0)
        for x in _batches(inputs):
            if not count:
                origin, total = x[0], torch.zeros_like(x[0])
            count += len(x)
            total = total + (x - origin).sum(0)
        mean = total / count
        squares = sum(((x - origin - mean).square().sum(0) for x in _batches(inputs)), torch.zeros_like(mean))
        return cls(count, origin + mean, squares / count)

    def root_of_correlation(self, inputs: Tensor | Iterable[Any]) -> Tensor:
        """A root A of the shrunken covariance, A A' = S, that commutes with scaling: A = D C^(1/2).

        D holds the deviations and C the correlations, shrunk towards the identity by the weight of Ledoit and Wolf, so
        that a change of units of the inputs changes D alone. Inputs that never vary have rows and columns of zeros.
        Each whitened coordinate stays as near to its own input as coordinates without correlation can be (ZCA-cor;
        A. Kessy, A. Lewin, K. Strimmer, Optimal whitening and decorrelation, 2018).

        Raises:
            ValueError: more inputs than a covariance is made of.

        """
        n = self.mean.numel()
        if n > MOST_CORRELATED:
            raise ValueError(
                f"metric='covariance' makes a matrix of all pairs of inputs and serves up to {MOST_CORRELATED}; "
                f"there are {n}: use metric='variance'"
            )
        deviation = self.variance.sqrt().reshape(-1)
        varying = deviation > 0
        moments = DataMoments(torch.zeros(int(varying.sum()), dtype=deviation.dtype, device=deviation.device))
        for x in _batches(inputs):
            moments.add(((x - self.mean).reshape(len(x), -1) / deviation)[:, varying])
        C = moments.covariance()
        weight = shrinkage_weight("ledoit-wolf", C, moments)
        shrunk = (1 - weight) * C + weight * torch.eye(len(C), dtype=C.dtype, device=C.device)
        root = deviation.new_zeros(n, n)
        kept = torch.nonzero(varying)[:, 0]
        root[kept[:, None], kept] = deviation[kept, None] * root_of_covariance(shrunk, 1e-12)
        return root


def still_inputs(inputs: Tensor | Iterable[Any]) -> Tensor | None:
    """Tell which inputs have one value in all examples: boolean, of one example's shape; None for a single example."""
    count, first, still = 0, torch.empty(0), torch.empty(0)
    for x in (batch for batch in iterate_batches(inputs) if len(batch)):
        if not count:
            first, still = x[:1], torch.ones_like(x[0], dtype=torch.bool)
        count += len(x)
        still = still & (x == first).all(0)
    return still if count > 1 else None


def note_of_still(inputs: Tensor | Iterable[Any], capacity: Tensor, places: Places) -> list[str]:
    """Name the inputs that never vary in the data and hold capacity all the same."""
    still = still_inputs(inputs)
    if still is None:
        return []
    holding = ~places.holds(~still.cpu()) & (capacity.cpu() > 0)
    number = int(holding.sum())
    if not number:
        return []
    shown = ", ".join(map(places.label, holding.nonzero()[:NAMED].tolist())) + (", ..." if number > NAMED else "")
    share = float(capacity.cpu()[holding].sum() / capacity.sum())
    return [
        f"{number} {'input never varies' if number == 1 else 'inputs never vary'} in these examples and hold"
        f"{'s' if number == 1 else ''} {share:.1%} of the map: {shown}; metric='variance' gives them none"
    ]


def _batches(inputs: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    first = None
    for x in iterate_batches(inputs):
        if len(x):
            first = x if first is None else first
            check_batch(x, like=first)
            yield x.detach().double()
