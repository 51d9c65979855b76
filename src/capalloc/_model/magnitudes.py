"""Magnitudes of parameters: the unit of each in the coordinates t = log|theta|.

A derivative along t_k is |theta_k| times one along theta_k, up to its sign. Rescalings of parameters that keep the
function only shift t, so that what is computed from these derivatives does not see them (docs/theory.md, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: What stands for a magnitude of 0, in units of the others' geometric mean: its square is what capacity sees of it.
NEXT_TO_NOTHING = 1e-7


def magnitudes(params: Mapping[str, Tensor]) -> Tensor:
    """|theta| of all tensors side by side, in float64."""
    return torch.cat([p.detach().double().abs().flatten() for p in params.values()])


def magnitudes_without_zeros(params: Mapping[str, Tensor], zero: float = NEXT_TO_NOTHING) -> Tensor:
    """|theta|, and `zero` for a theta of zero, in units of the others' geometric mean.

    Next to nothing, it holds what no other parameter can hold.
    """
    sizes = magnitudes(params)
    others = sizes[sizes > 0]
    least = zero * float(others.log().mean().exp()) if len(others) else 1.0
    return sizes.where(sizes > 0, least)


def notes_of_zeros(scale: Tensor | None) -> list[str]:
    """Say so where parameters have no magnitude, and with a ridge no capacity."""
    zeros = 0 if scale is None else int((scale == 0).sum())
    if scale is None or not zeros:
        return []
    return [
        f"{zeros} of {len(scale)} parameters are exactly 0: a ridge on coordinates log|theta| leaves them nothing; "
        'coordinates="plain" of the solver\'s settings counts them'
    ]
