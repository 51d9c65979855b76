"""Magnitudes of parameters: the unit of each in the coordinates t = log|theta|.

A derivative along t_k is |theta_k| times one along theta_k, up to its sign. Rescalings of parameters that keep the
function only shift t, so that what is computed from these derivatives does not see them (docs/theory.md, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: Sweeps over rows and columns that fit a matrix's magnitudes around its zeros; one is enough where there are none.
SWEEPS = 32


def magnitudes(params: Mapping[str, Tensor]) -> Tensor:
    """|theta| of all tensors side by side, in float64."""
    return torch.cat([p.detach().double().abs().flatten() for p in params.values()])


def typical_magnitudes(params: Mapping[str, Tensor]) -> Tensor:
    """|theta|, and for a theta of zero what its row and its column of the tensor have, so that it keeps a unit."""
    return torch.cat([_filled(p.detach().double().abs()).flatten() for p in params.values()])


def notes_of_zeros(scale: Tensor | None) -> list[str]:
    """Say so where parameters have no magnitude, and with a ridge no capacity."""
    zeros = 0 if scale is None else int((scale == 0).sum())
    if scale is None or not zeros:
        return []
    return [
        f"{zeros} of {len(scale)} parameters are exactly 0: a ridge on coordinates log|theta| leaves them nothing; "
        'coordinates="plain" of the solver\'s settings counts them'
    ]


def _filled(sizes: Tensor) -> Tensor:
    """Zeros replaced by r_i c_j, the fit to the others in the mean of logarithms: it scales as its row and column do.

    A tensor of zeros has units of 1.
    """
    known = sizes > 0
    if bool(known.all()):
        return sizes
    matrix = sizes.flatten(1) if sizes.ndim > 1 else sizes.reshape(1, -1)
    there = matrix > 0
    logs = torch.where(there, matrix, 1.0).log()
    rows, columns = logs.new_zeros(len(logs), 1), logs.new_zeros(1, logs.shape[1])
    for _ in range(SWEEPS):
        rows = ((logs - columns) * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        columns = ((logs - rows) * there).sum(0, keepdim=True) / there.sum(0, keepdim=True).clamp(min=1)
    return torch.where(known, sizes, (rows + columns).exp().view(sizes.shape))
