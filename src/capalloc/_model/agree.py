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


def check_size(y: Tensor) -> None:
    """Refuse outputs of which capacity, in which derivatives are squared, leaves the range of numbers.

    Raises:
        ValueError: all are beyond 1e150, or below 1e-150 and not 0.

    """
    size = float(y.abs().max())
    if size and not 1e-150 < size < 1e150:
        raise ValueError(
            f"outputs are about {size:.0e}, and squares of their derivatives leave the range of numbers: scale them, "
            f"outputs=lambda y: y / {size:.0e}; capacity does not depend on it"
        )
