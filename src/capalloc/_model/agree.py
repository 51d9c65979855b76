"""Equality up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def agree(a: Tensor, b: Tensor, scale: Tensor | None = None) -> bool:
    """Equal up to rounding: to the square root of the dtype's, far above it and far below any mistake.

    It is relative to `scale`, by default the largest number of both.
    """
    if a.shape != b.shape:
        return False
    if scale is None:
        scale = torch.cat([a.abs().flatten(), b.abs().flatten()]).max()
    return bool(((a - b).abs() <= torch.finfo(a.dtype).eps ** 0.5 * scale).all())
