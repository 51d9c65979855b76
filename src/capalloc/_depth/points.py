"""The inputs at which gradients are compared, and which of them are compared with which.

Index convention: a batch of points (points, *inputs); pairs (pairs, 2) index it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    index: Tensor
    groups: Tensor  # (pairs, 2): the examples that a pair is made of


def examples_and_neighbours(examples: Tensor, step: float) -> tuple[Tensor, Pairs, Pairs]:
    """Examples followed by points `step` of the way from each to the next; pairs of examples, pairs of neighbours."""
    count = len(examples)
    points = torch.cat([examples, torch.lerp(examples, examples.roll(-1, 0), step)])
    apart = torch.combinations(torch.arange(count))
    near = torch.stack([torch.arange(count), torch.arange(count) + count], 1)
    after = near[:, :1]
    return points, Pairs(apart, apart), Pairs(near, torch.cat([after, (after + 1) % count], 1))


def line(start: Tensor, stop: Tensor, count: int) -> Tensor:
    """Points at equal distances from one example to another, both among them."""
    at = torch.linspace(0, 1, count, dtype=start.dtype, device=start.device)
    return torch.stack([torch.lerp(start, stop, t) for t in at])


def lags(count: int) -> list[Tensor]:
    """Pairs of the points of a line, by the number of steps between them, from 1 to count - 1."""
    return [torch.stack([torch.arange(count - k), torch.arange(k, count)], 1) for k in range(1, count)]


def correlation(gram: Tensor, index: Tensor) -> Tensor:
    """sum <a, b> / sum |a| |b| over pairs of points, from inner products (..., points, points); NaN where all are 0."""
    own = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    a, b = index.unbind(1)
    return gram[..., a, b].sum(-1) / (own[..., a] * own[..., b]).sum(-1)


def error(gram: Tensor, pairs: Pairs) -> Tensor:
    """Standard error of the correlation: a jackknife over the examples; NaN where fewer than three leave pairs."""
    left_out = []
    for example in pairs.groups.unique():
        kept = pairs.index[(pairs.groups != example).all(1)]
        if len(kept):
            left_out.append(correlation(gram, kept))
    count = len(left_out)
    if count < 3:
        return torch.full(gram.shape[:-2], torch.nan, dtype=gram.dtype)
    return ((count - 1) * torch.stack(left_out).var(0, correction=0)).sqrt()
