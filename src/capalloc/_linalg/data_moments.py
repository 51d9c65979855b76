"""Moments of data in one pass, and the weight that shrinks their covariance towards a multiple of the identity.

Index convention: a batch is (examples, inputs). Moments are kept about an origin, such as the mean of the first batch,
so that a large mean costs no digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class DataMoments:
    """Sums over examples of y = x - origin, of y y', and of |y|^2 y and |y|^4."""

    origin: Tensor
    count: int = 0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    third: Tensor | float = 0.0
    fourth: float = 0.0

    def add(self, batch: Tensor) -> None:
        """Take a batch (examples, inputs) in."""
        y = batch - self.origin
        squares = y.square().sum(1)
        self.count += len(y)
        self.first = self.first + y.sum(0)
        self.second = self.second + y.T @ y
        self.third = self.third + squares @ y
        self.fourth += float(squares.square().sum())

    def covariance(self) -> Tensor:
        """Return the covariance about the mean, over the number of examples."""
        mean = torch.as_tensor(self.first) / self.count
        return torch.as_tensor(self.second) / self.count - torch.outer(mean, mean)

    def mean_fourth_power(self) -> float:
        """Return the mean of |x - mean|^4: |y - m|^2 = |y|^2 - 2 y'm + |m|^2, squared and summed."""
        m = torch.as_tensor(self.first) / self.count
        second = torch.as_tensor(self.second) / self.count
        third = torch.as_tensor(self.third) / self.count
        square = float(m @ m)
        return (
            self.fourth / self.count
            - 4 * float(third @ m)
            + 4 * float(m @ second @ m)
            + 2 * square * float(second.trace())
            - 3 * square**2
        )


def shrinkage_weight(method: str, S: Tensor, moments: DataMoments) -> float:
    """Weigh the identity by the share that minimises the expected squared error, as each paper estimates it."""
    n, count = len(S), moments.count
    if method == "none":
        return 0.0
    scale = float(S.diagonal().mean())
    if method == "ledoit-wolf":
        size = float(S.square().sum())
        noise = (moments.mean_fourth_power() - size) / (n * count)
        distance = size / n - scale**2
        return 0.0 if noise <= 0 or distance <= 0 else min(noise, distance) / distance
    size = float(S.square().mean())
    numerator, denominator = size + scale**2, (count + 1) * (size - scale**2 / n)
    return 1.0 if denominator == 0 else min(numerator / denominator, 1.0)
