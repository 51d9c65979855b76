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
HERMITE_DEGREE = 256


def squared_gates(slope: Callable[[Tensor], Tensor], value: Tensor, source: GateSource) -> Tensor | float:
    """Give a(z)^2 at `value`; E[a(z)^2] for z a unit Gaussian, by Gauss-Hermite quadrature; or 1.

    A slope may be boolean, as that of ReLU is.
    """
    if source == "unit":
        return 1.0
    if source == "data":
        gates = slope(value)
        return gates if gates.dtype == torch.bool else gates.double().square()  # in float32 1e-23 would square to 0
    nodes, weights = np.polynomial.hermite_e.hermegauss(HERMITE_DEGREE)
    slopes = slope(torch.from_numpy(nodes)).double().square()
    return float(slopes @ torch.from_numpy(weights / weights.sum()))
