"""Squared slopes of activations: E[a^2] from data or from theory (docs/theory.md, sections 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

GateSource = Literal["data", "gaussian", "unit"]
GATE_SOURCES: tuple[str, ...] = ("data", "gaussian", "unit")
#: Deviations of a Gaussian beyond which its mass is 1e-32, Gauss-Legendre nodes on a panel, and its halvings at most.
LONGEST_REACH, NODES_OF_PANEL, MOST_HALVINGS_OF_PANELS = 12, 16, 50
#: Difference between a panel and its halves that is rounding.
SAME_TO_ROUNDING = 1e-14


def squared_gates(slope: Callable[[Tensor], Tensor], value: Tensor, source: GateSource) -> Tensor | float:
    """Give a(z)^2 at `value`; E[a(z)^2] for z a unit Gaussian, by quadrature; or 1.

    A slope may be boolean, as that of ReLU is.
    """
    if source == "unit":
        return 1.0
    if source == "data":
        gates = slope(value)
        return gates if gates.dtype == torch.bool else gates.double().square()  # in float32 1e-23 would square to 0
    return gaussian_mean(lambda z: slope(z).double().square())


def gaussian_mean(function: Callable[[Tensor], Tensor]) -> float:
    """E[g(z)] for z a unit Gaussian, to 1e-12 of what g is like: panels are halved until halves and whole agree.

    So a kink or a jump of g lies between two panels in the end, wherever it is.
    """
    start, width, total = torch.arange(-LONGEST_REACH, LONGEST_REACH, dtype=torch.float64), 1.0, 0.0
    whole = _panels(function, start, width)
    for _ in range(MOST_HALVINGS_OF_PANELS):
        width /= 2
        start = torch.stack([start, start + width], 1)
        halves = _panels(function, start.flatten(), width).reshape(-1, 2)
        open_ = (halves.sum(1) - whole).abs() > SAME_TO_ROUNDING
        total += float(halves[~open_].sum())
        start, whole = start[open_].flatten(), halves[open_].flatten()
        if not len(start):
            break
    return total + float(whole.sum())


def _panels(function: Callable[[Tensor], Tensor], start: Tensor, width: float) -> Tensor:
    """Gauss-Legendre on panels of one width."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(NODES_OF_PANEL))
    z = start[:, None] + width / 2 * (1 + nodes)
    density = torch.exp(-z.square() / 2) * (width / 2 / math.sqrt(2 * math.pi))
    found: Tensor = (function(z.flatten()).reshape(z.shape) * density) @ weights
    return found
