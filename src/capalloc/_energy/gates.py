"""Squared slopes of activations: E[a^2] from data or from theory (docs/theory.md, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

GateSource = Literal["data", "gaussian", "unit"]
GATE_SOURCES: tuple[str, ...] = ("data", "gaussian", "unit")
#: Even, so that no node falls on a kink at 0: E[relu'^2] = 1/2 comes out exactly.
NODES = 256


def squared_slope(activation: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """phi'(z)^2 of an elementwise activation at `value`, same shape."""
    with torch.enable_grad():
        z = value.detach().requires_grad_()
        (slope,) = torch.autograd.grad(activation(z).sum(), z)
    return slope.square()


def gaussian_squared_slope(activation: Callable[[Tensor], Tensor]) -> float:
    """E[phi'(z)^2] for z a unit Gaussian, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    slopes = squared_slope(activation, torch.from_numpy(nodes))
    return float(slopes @ torch.from_numpy(weights / weights.sum()))
