"""Arrays that a caller hands over: real, finite, in floating point, on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

RealArray = Tensor | ArrayLike


def real_tensor(array: RealArray, name: str, ndim: int | None = None) -> Tensor:
    """Turn the array into a tensor, in float32 if that is how it came, else in float64.

    Raises:
        TypeError: no array of real numbers.
        ValueError: NaN or inf, or another number of axes than `ndim`.

    """
    try:
        tensor = array.detach().cpu() if isinstance(array, Tensor) else torch.as_tensor(np.asarray(array))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array or tensor of numbers: {error}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    if ndim is not None and tensor.ndim != ndim:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it needs {ndim} {'axis' if ndim == 1 else 'axes'}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or inf")
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.double()
