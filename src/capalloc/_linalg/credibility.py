"""Variances of many alike numbers, from samples too few to tell each of them."""

from __future__ import annotations

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

#: Share of errors within two standard errors, whose quantiles Student's factor compares: one tail is left out.
QUANTILE = 0.975


def credible(variances: Tensor, sizes: Tensor, chance: float) -> Tensor:
    """Draw estimated variances, each in units of its size, towards the mean of all.

    They are drawn the further the less they differ beyond chance (Bühlmann's credibility, weighed by sizes).

    Args:
        variances: (n,), without a bias.
        sizes: (n,), none below zero; variances of those of size zero stay.
        chance: relative variance of each estimate: 2 / degrees of freedom of squares of normal numbers.

    """
    used = sizes > 0
    shares = torch.where(used, variances / sizes, 0)
    weights = sizes / sizes.sum().clamp(min=torch.finfo(sizes.dtype).tiny)
    common = (weights * shares).sum()
    spread = (weights * (shares - common).square()).sum()
    own = (spread - chance * common.square()).clamp(min=0) / (1 + chance)
    kept = own / spread if spread > 0 else own
    return torch.where(used, sizes * (common + kept * (shares - common)), variances)


def students_factor(freedom: int) -> float:
    """Return how much wider 95 % of errors lie where a variance is known from so many squares of normal numbers."""
    return float(stdtrit(freedom, QUANTILE) / ndtri(QUANTILE))
