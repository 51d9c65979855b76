"""Variances of many alike numbers, from samples too few to tell each of them."""

from __future__ import annotations

import torch
from torch import Tensor


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
